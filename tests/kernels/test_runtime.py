"""Why no kernel can run here: each reason with its remedy, without CUDA and without a device."""

import re
import sys
from types import ModuleType, SimpleNamespace

import pytest

from numbadsd.kernels.cuda import runtime
from numbadsd.kernels.cuda.sim_driver import SimDriver

SUCCESS = SimpleNamespace(name="CUDA_SUCCESS")
NO_DEVICE = SimpleNamespace(name="CUDA_ERROR_NO_DEVICE")
MAJOR, MINOR = "major", "minor"


def why():
    """Return the answer for now: `why_unavailable` itself remembers its first one."""
    return runtime.why_unavailable.__wrapped__()


def fake_driver(status=SUCCESS, version=13000, count=1, capability=(9, 0), packages=13000):
    """Return what cuda.bindings.driver would be on some machine."""
    return SimpleNamespace(
        CUDA_VERSION=packages,
        CUresult=SimpleNamespace(CUDA_SUCCESS=SUCCESS),
        CUdevice_attribute=SimpleNamespace(
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=MINOR,
        ),
        cuInit=lambda flags: (status,),
        cuDriverGetVersion=lambda: (SUCCESS, version),
        cuDeviceGetCount=lambda: (SUCCESS, count),
        cuDeviceGet=lambda index: (SUCCESS, index),
        cuDeviceGetAttribute=lambda name, device: (SUCCESS, capability[name == MINOR]),
    )


@pytest.fixture
def no_simulator(monkeypatch):
    """Let the runtime look for a device, as where NUMBA_ENABLE_CUDASIM is not set."""
    monkeypatch.setattr(runtime, "SIMULATED", False)


@pytest.fixture
def use_driver(no_simulator, monkeypatch):
    """Return a setter of the CUDA driver that the runtime finds."""

    def use(driver):
        package, bindings = ModuleType("cuda"), ModuleType("cuda.bindings")
        package.bindings, bindings.driver = bindings, driver
        monkeypatch.setitem(sys.modules, "cuda", package)
        monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
        monkeypatch.setattr(runtime, "find_spec", lambda name: SimpleNamespace(name=name))

    return use


def test_the_simulator_runs_anywhere_with_greenlet(monkeypatch):
    assert why() is None
    monkeypatch.setattr(runtime, "find_spec", lambda name: None)
    reason, remedy = why()
    assert "greenlet" in reason and "pip install 'numbadsd[sim]'" in remedy


@pytest.mark.parametrize(
    "missing, package", [("numba_cuda", "numba-cuda"), ("cuda.bindings", "cuda-bindings")]
)
@pytest.mark.parametrize("parent_is_missing", [False, True])
def test_a_missing_package_is_named(no_simulator, monkeypatch, missing, package, parent_is_missing):
    def find_spec(name):
        if name == missing and parent_is_missing:  # of `cuda.bindings` without `cuda`
            raise ModuleNotFoundError(name)
        return None if name == missing else SimpleNamespace(name=name)

    monkeypatch.setattr(runtime, "find_spec", find_spec)
    assert why() == (f"{package} is not installed", runtime.INSTALL)


def test_a_device_that_will_do(use_driver):
    for capability in ((8, 0), (9, 0), (10, 0), (12, 1)):
        use_driver(fake_driver(capability=capability))
        assert why() is None
    for packages, version in ((12090, 12000), (12090, 13010), (13000, 13000), (13020, 13000)):
        use_driver(fake_driver(version=version, packages=packages))
        assert why() is None


REFUSED = {
    "a driver that does not start": (
        dict(status=NO_DEVICE), "does not start.*CUDA_ERROR_NO_DEVICE", "NVIDIA GPU and its driver",
    ),
    "a driver older than the packages": (
        dict(version=12080), "CUDA 12.8, .* are for CUDA 13$", "13.0 or newer, or.*cuda12",
    ),
    "a driver older than any packages": (dict(version=11040), "CUDA 11.4,", "13.0 or newer$"),
    "no device": (dict(count=0), "sees no device", "the CPU paths run anywhere"),
    "an old device": (dict(capability=(7, 5)), "compute capability 7.5$", "8.0"),
}  # fmt: skip


@pytest.mark.parametrize("machine, reason, remedy", REFUSED.values(), ids=REFUSED)
def test_a_machine_that_will_not_do(use_driver, machine, reason, remedy):
    use_driver(fake_driver(**machine))
    got_reason, got_remedy = why()
    assert re.search(reason, got_reason) and re.search(remedy, got_remedy)


def test_a_library_that_cannot_be_loaded(use_driver):
    def cuInit(flags):
        raise RuntimeError("libcuda.so.1: cannot open shared object file")

    driver = fake_driver()
    driver.cuInit = cuInit
    use_driver(driver)
    reason, remedy = why()
    assert "libcuda.so.1" in reason and "CPU paths" in remedy


def test_the_answer_is_found_once_and_so_is_the_driver(monkeypatch):
    first = runtime.why_unavailable()
    monkeypatch.setattr(runtime, "find_spec", None)  # asked no more
    assert runtime.why_unavailable() == first
    assert isinstance(runtime.get_driver(), SimDriver)
    assert runtime.get_driver() is runtime.get_driver()


def test_a_cleared_answer_is_found_again(use_driver):
    use_driver(fake_driver(count=0))
    runtime.why_unavailable.cache_clear()
    try:
        assert runtime.why_unavailable()[0] == "the CUDA driver sees no device"
    finally:
        runtime.why_unavailable.cache_clear()
