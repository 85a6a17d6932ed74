"""Where these tests run: in the simulator, or with ``-m gpu`` on a device; or why they cannot.

What kernels run on is asked late: tests/conftest.py has to choose it before numbadsd is imported.
"""

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
    """Mark every test as one of a device, where there is one: all shapes run there too."""
    from numbadsd.kernels.cuda.switch import SIMULATED

    for item in [] if SIMULATED else items:
        if __package__ in item.module.__name__ and item.path.name not in SIMULATOR_FILES:
            item.add_marker(pytest.mark.gpu)
