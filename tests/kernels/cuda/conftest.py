"""Tests of CUDA kernels say why they cannot run, where neither a device nor the simulator can."""

import pytest


class Unavailable(pytest.Module):
    """A test file that is not imported: the words of kernels have no meaning here."""

    def collect(self):
        """Skip the whole file with the reason."""
        from numbadsd.kernels.cuda.runtime import why_unavailable

        pytest.skip("; ".join(why_unavailable()), allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    """Collect a test file only if its kernels can run."""
    # imported here: tests/conftest.py has to choose first between a device and the simulator
    from numbadsd.kernels.cuda.runtime import why_unavailable

    if why_unavailable():
        return Unavailable.from_parent(parent, path=module_path)
    return None
