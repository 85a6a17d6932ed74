"""Where these tests run: in the simulator, or with ``-m gpu`` on a device; or why they cannot.

`NUMBADSD_ALL_SHAPES=1` adds every shape of the simulator to what runs on a device.

What kernels run on is asked late: tests/conftest.py has to choose it before numbadsd is imported.
"""

import os
from pathlib import Path

import pytest

SIMULATOR_FILES = {"test_sim.py", "test_tiles.py"}  # of the simulator, or of code inside kernels


class Unavailable(pytest.Module):
    """A test file that is not imported: the words of kernels have no meaning here."""

    def collect(self):
        """Skip the whole file with the reason."""
        from numbadsd.kernels.cuda.runtime import why_unavailable

        pytest.skip("; ".join(why_unavailable()), allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    """Collect a test file only if kernels can run."""
    from numbadsd.kernels.cuda.runtime import why_unavailable

    if why_unavailable():
        return Unavailable.from_parent(parent, path=module_path)
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark every test as one of a device, where that is asked for: its kernels take minutes."""
    from numbadsd.kernels.cuda.switch import SIMULATED

    wanted = os.environ.get("NUMBADSD_ALL_SHAPES") == "1" and not SIMULATED
    for item in items if wanted else []:
        if item.path.parent == Path(__file__).parent and item.path.name not in SIMULATOR_FILES:
            item.add_marker(pytest.mark.gpu)
