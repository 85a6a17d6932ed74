"""The steps of `gpu_check.py` that run tests: those of a device, and kernels of every shape."""

import os
import re
import sys
from importlib.util import find_spec

from _gpu_cases import Run

from numbadsd.kernels.cuda.switch import SIMULATED

_NEEDS = {"elftools": "tests/bench/test_kernels.py"}  # no test for a GPU is in it
_SANITIZED = "tests/kernels/cuda/test_sanitizer.py"  # a step of its own
_WORKERS = 8
_SAY_S = 10.0  # for tests that are late, to say what failed


def tests(run: Run) -> None:
    """Run the tests that need a device."""
    _run_tests(run)


def shapes(run: Run) -> None:
    """Run the kernel tests of every shape, which the simulator runs in the ordinary tests."""
    os.environ["NUMBADSD_ALL_SHAPES"] = "1"
    _run_tests(run, "tests/kernels/cuda")


def _run_tests(run: Run, *arguments: str) -> None:
    """Run tests in several processes, where xdist is here: most of their time is the host's."""
    if SIMULATED:
        return run.tell("the simulator is no GPU", "skipped")
    left_out = [file for name, file in _NEEDS.items() if not find_spec(name)]
    parallel = ("-p", "xdist", "-n", _WORKERS) if find_spec("xdist") else ()
    os.environ.setdefault("NUMBA_NUM_THREADS", str(max(1, os.cpu_count() // _WORKERS)))
    status, output = run.call(
        sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-x", "--maxfail=20",
        "--continue-on-collection-errors", "-p", "no:cacheprovider", *parallel,
        *(f"--ignore={file}" for file in (_SANITIZED, *left_out)), *arguments, ask_s=_SAY_S,
    )  # fmt: skip
    counts = re.findall(r"^.*\d+ (?:passed|failed|error|skipped).* in [\d.]+s", output, re.M)
    said = counts[-1].strip(" =") if counts else f"no counts, status {status}"
    ran = status == 0 and "passed" in said  # a run that skipped everything has shown nothing
    run.tell(said if status is not None else f"late: {said}", "ok" if ran else "failed")
