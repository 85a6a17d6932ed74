"""numba.cuda, imported so that the versions that people have together work together.

NumPy 2.5 has dropped `row_stack`, which numba-cuda 0.30 overloads when it first compiles; and both
warn of what they will change one day, which would end a program whose warnings are errors. Every
module that needs numba.cuda takes it from here.
"""

import warnings
from contextlib import contextmanager

import numpy as np

_DROPPED, _SAME = "row_stack", "vstack"


@contextmanager
def as_numba_expects():
    """Give NumPy the name that it may lack, and keep deprecations quiet, for a while."""
    is_dropped = not hasattr(np, _DROPPED)
    if is_dropped:
        setattr(np, _DROPPED, getattr(np, _SAME))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        if is_dropped:
            delattr(np, _DROPPED)


with as_numba_expects():
    from numba import cuda
    from numba.cuda import cgutils, compiler, dispatcher, types
    from numba.cuda.cudadrv import devices
    from numba.cuda.extending import intrinsic

__all__ = ["cgutils", "compiler", "cuda", "devices", "dispatcher", "intrinsic", "types"]
