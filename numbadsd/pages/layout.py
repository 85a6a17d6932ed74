"""Index arithmetic of pages: where tokens land, and what shapes the pools have."""

from typing import NamedTuple

import numpy as np

from numbadsd.config import KV_DTYPES, ModelConfig, Summary
from numbadsd.kernels.cpu.tables import list_runs


class Runs(NamedTuple):
    """The parts of an append, one for each page that it writes.

    Attributes
    ----------
    page_ids, first_slots : ndarray [R] int32
        The page of a run, and the slot of its first token.
    token_indptr : ndarray [R + 1] int64
        Run r stores the new tokens ``token_indptr[r] : token_indptr[r + 1]``.
    """

    page_ids: np.ndarray
    first_slots: np.ndarray
    token_indptr: np.ndarray


def pages_for(num_tokens: int, page_size: int) -> int:
    """Return how many pages hold `num_tokens`."""
    return -(-num_tokens // page_size)


def runs_of(page_ids: np.ndarray, first_token: int, num_tokens: int, page_size: int) -> Runs:
    """Return the runs that put tokens first_token .. first_token + num_tokens in their pages.

    `page_ids` are the request's pages in logical order, [pages] int32.
    """
    return Runs(*list_runs(page_ids, first_token, num_tokens, page_size))


def run_chunks(token_indptr: np.ndarray, max_tokens: int):
    """Yield (first, last) of groups of runs with at most `max_tokens` tokens, or one run."""
    first = 0
    while first < len(token_indptr) - 1:
        limit = token_indptr[first] + max_tokens
        last = int(np.searchsorted(token_indptr, limit, "right")) - 1
        last = max(first + 1, last)
        yield first, last
        first = last


def summary_shape(config: ModelConfig, num_pages: int) -> tuple[int, ...]:
    """Return the shape of the summaries of `num_pages` pages: [N, G, D] or [N, 2, G, D]."""
    arrays = Summary(config.summary).arrays
    head_shape = (config.num_kv_heads, config.head_dim)
    return (num_pages, *head_shape) if arrays == 1 else (num_pages, arrays, *head_shape)


def cache_bytes(config: ModelConfig, num_pages: int) -> int:
    """Return the bytes of K, V and summaries of `num_pages` pages."""
    return num_pages * (config.page_bytes + config.summary_bytes)


def storable_tokens(keys, values, shape: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Return keys and values as `as_storable` does, of one shape and dtype."""
    keys = as_storable("keys", keys, shape)
    values = as_storable("values", values, keys.shape)
    if values.dtype != keys.dtype:  # no message is made where none is needed
        raise ValueError(f"values: got {str(values.dtype)!r}, want dtype {keys.dtype}")
    return keys, values


def as_storable(name: str, array: np.ndarray, shape: tuple) -> np.ndarray:
    """Return tokens as a C-contiguous array of a storage dtype, or raise ValueError.

    `shape` may hold None where any size fits. float64 is rounded to float32.
    """
    array = np.asarray(array)
    if array.dtype == np.float32 and array.flags.c_contiguous and array.shape[1:] == shape[1:]:
        if shape[0] in (None, len(array)) and array.ndim == len(shape):
            return array
    wanted = tuple("tokens" if n is None else n for n in shape)
    fits = len(array.shape) == len(shape) and all(
        want is None or got == want for got, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name}: got shape {array.shape}, want {wanted}".replace("'", ""))
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    if array.dtype not in KV_DTYPES.values():
        raise ValueError(f"{name}: got dtype {array.dtype}, want a float32, float16 or bfloat16")
    return np.ascontiguousarray(array)
