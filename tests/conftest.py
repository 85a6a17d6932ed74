"""Settings and fixtures that all tests share; markers are declared in setup.cfg."""

import os

import pytest


def pytest_configure(config):
    """Choose, before numbadsd is imported, what CUDA kernels run on: the simulator, or a GPU."""
    wants_gpu = config.option.markexpr == "gpu"
    os.environ["NUMBA_ENABLE_CUDASIM"] = "0" if wants_gpu else "1"


import numba  # noqa: E402
from hypothesis import settings  # noqa: E402

# Compiling inside an example would break hypothesis' deadline, and examples must not change
# from run to run in the ordinary test run.
settings.register_profile("numbadsd", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("numbadsd")


@pytest.fixture
def simulator_as_gpu(monkeypatch):
    """Let `dsd_bench` take the simulator for a GPU that it uses unasked."""
    monkeypatch.setattr("numbadsd.bench.sampling.SIMULATED", False)


@pytest.fixture
def no_gpu(simulator_as_gpu, monkeypatch):
    """Make every GPU path unavailable; returns the reason and the remedy."""
    problem = ("no GPU was found", "plug one in")
    monkeypatch.setattr("numbadsd.decode.path.why_unavailable", lambda: problem)
    return problem


@pytest.fixture
def num_threads():
    """Return a setter of Numba's thread count; the old count comes back after the test."""
    before = numba.get_num_threads()
    yield numba.set_num_threads
    numba.set_num_threads(before)
