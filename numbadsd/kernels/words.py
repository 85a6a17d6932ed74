"""Storage words: how a K, V or summary array reaches a kernel.

Numba's CPU target knows no half precision, so a float16 array enters a kernel as uint16 and a
bfloat16 array as int16: two types for the same bits, by which a kernel is specialised.
"""

import ml_dtypes
import numpy as np

_WORDS = {
    np.dtype(np.float32): np.dtype(np.float32),
    np.dtype(np.float16): np.dtype(np.uint16),
    np.dtype(ml_dtypes.bfloat16): np.dtype(np.int16),
}


def as_words(array: np.ndarray) -> np.ndarray:
    """Return `array` as the words a kernel reads, sharing its memory."""
    if array.dtype == np.float32:
        return array
    if array.dtype not in _WORDS:
        raise ValueError(f"dtype: got {array.dtype}, want float32, float16 or bfloat16")
    return array.view(_WORDS[array.dtype])


def as_rows(array: np.ndarray) -> np.ndarray:
    """Return a C-contiguous array as words in rows of its last axis, [rows, D]."""
    return as_words(array).reshape(-1, array.shape[-1])


def check_array(name: str, array: np.ndarray, shape: tuple, dtype=None) -> None:
    """Raise ValueError unless `array` is C-contiguous with this shape (None: any) and dtype."""
    # A step makes a dozen of these checks with cold caches: the good case is three comparisons.
    if not (
        (array.shape == shape or _fits(array.shape, shape))
        and (dtype is None or array.dtype == dtype)
        and array.flags.c_contiguous
    ):
        _explain(name, array, shape, dtype)


def _fits(shape: tuple, wanted: tuple) -> bool:
    pairs = zip(shape, wanted, strict=False)
    return len(shape) == len(wanted) and all(n is None or got == n for got, n in pairs)


def _explain(name: str, array: np.ndarray, shape: tuple, dtype) -> None:
    if not _fits(array.shape, shape):
        want = tuple("any" if n is None else n for n in shape)
        raise ValueError(f"{name}: got shape {array.shape}, want {want}".replace("'", ""))
    if dtype is not None and array.dtype != dtype:
        raise ValueError(f"{name}: got dtype {array.dtype}, want {np.dtype(dtype)}")
    raise ValueError(f"{name}: got a strided array, want a C-contiguous one")
