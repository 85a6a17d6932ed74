"""How CPU kernels are compiled and where the compiled code is kept.

Numba's own cache notices a change of the file that holds a kernel, but not of the device functions
that the kernel calls. The cache folder is therefore named by a digest of all kernel sources.
"""

import hashlib
import os
from functools import cache
from pathlib import Path

import numba
import numpy as np
import platformdirs
from numba import njit

# No fastmath: NaN and -inf rules must hold, and the order of every sum is written down.
device = njit(forceinline=True, error_model="numpy")


@cache
def cache_folder() -> str | None:
    """Return the folder that holds the compiled code of exactly these sources, None without one.

    It lies in NUMBA_CACHE_DIR where that is set, else in the user's cache folder.
    """
    here = Path(__file__).parent
    digest = hashlib.sha256(f"{numba.__version__} {np.__version__}".encode())
    for source in sorted([*here.glob("*.py"), *here.parent.glob("*.py")]):
        digest.update(source.read_bytes())
    base = numba.config.CACHE_DIR or platformdirs.user_cache_dir("numbadsd", appauthor=False)
    folder = Path(base) / f"kernels-{digest.hexdigest()[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return str(folder) if os.access(folder, os.W_OK) else None


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
