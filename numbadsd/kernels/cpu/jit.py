"""How CPU kernels are compiled."""

from pathlib import Path

import numba
import numpy as np
from numba import njit

from numbadsd.kernels.cache_folder import kernel_cache_folder

# No fastmath: NaN and -inf rules must hold, and the order of every sum is written down.
device = njit(forceinline=True, error_model="numpy")


def cache_folder() -> str | None:
    """Return the folder that holds the compiled code of exactly these sources, None without one."""
    return kernel_cache_folder(Path(__file__).parent, f"{numba.__version__} {np.__version__}")


def kernel(function=None, *, parallel: bool = True):
    """Compile `function` as a kernel, cached on disk where a folder can be written."""
    if function is None:
        return lambda f: kernel(f, parallel=parallel)
    previous, numba.config.CACHE_DIR = numba.config.CACHE_DIR, cache_folder() or ""
    try:
        options = {"parallel": parallel, "nogil": True, "error_model": "numpy"}
        return njit(cache=cache_folder() is not None, **options)(function)
    finally:
        numba.config.CACHE_DIR = previous
