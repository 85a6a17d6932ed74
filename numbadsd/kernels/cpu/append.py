"""Write tokens into pages and renew the summaries of the pages that were written.

A *run* is the part of an append that lands in one page. A summary is always computed from the
stored keys of the whole page, in token order, so that it equals a rebuild bit for bit whatever the
sequence of appends was; a page is at most page_size rows, which the append has just brought into
cache.
"""

import numpy as np
from numba import prange

from numbadsd.kernels.cpu.busy import timed
from numbadsd.kernels.cpu.jit import device, kernel
from numbadsd.kernels.cpu.memory import load_word, store_word
from numbadsd.kernels.words import as_rows, check_array

SUMMARIES = {"mean": 0, "minmax": 1, "cuboid_mean": 2, "mean_std": 3}
_MEAN, _MINMAX, _CUBOID_MEAN = 0, 1, 2
_ZERO, _HALF = np.float32(0.0), np.float32(0.5)


@device
def _mean_of(keys, first_row, tokens, out):
    """Write the mean of rows [first_row, first_row + tokens) into out."""
    out[:] = _ZERO
    for t in range(tokens):
        for d in range(out.size):
            out[d] += load_word(keys, first_row + t, d)
    for d in range(out.size):
        out[d] /= np.float32(tokens)


@device
def _range_of(keys, first_row, tokens, low, high):
    """Write the elementwise minimum and maximum of the rows; a NaN key makes both NaN."""
    for d in range(low.size):
        low[d] = load_word(keys, first_row, d)
        high[d] = low[d]
    for t in range(1, tokens):
        for d in range(low.size):
            key = load_word(keys, first_row + t, d)
            low[d] = low[d] if low[d] < key or low[d] != low[d] else key
            high[d] = high[d] if high[d] > key or high[d] != high[d] else key


@device
def _spread_of(keys, first_row, tokens, centre, squared, out):
    """Write the mean of |key - centre|, or the root of the mean square, into out."""
    out[:] = _ZERO
    for t in range(tokens):
        for d in range(out.size):
            distance = load_word(keys, first_row + t, d) - centre[d]
            out[d] += distance * distance if squared else abs(distance)
    for d in range(out.size):
        out[d] /= np.float32(tokens)
    if squared:
        for d in range(out.size):
            out[d] = np.sqrt(out[d])


@device
def _store_row(rows, row, numbers):
    for d in range(numbers.size):
        store_word(rows, row, d, numbers[d])


@device
def _summarise_tile(kind, keys, first_row, tokens, summaries, row, second_row):
    """Compute one kv head's summary of one page from its stored keys."""
    first = np.empty(keys.shape[1], np.float32)
    if kind == _MEAN:
        _mean_of(keys, first_row, tokens, first)
        _store_row(summaries, row, first)
        return
    second = np.empty(keys.shape[1], np.float32)
    if kind == _MINMAX or kind == _CUBOID_MEAN:
        _range_of(keys, first_row, tokens, first, second)
        if kind == _CUBOID_MEAN:
            for d in range(first.size):
                first[d] = (first[d] + second[d]) * _HALF
            _spread_of(keys, first_row, tokens, first, False, second)
    else:
        _mean_of(keys, first_row, tokens, first)
        _spread_of(keys, first_row, tokens, first, True, second)
    _store_row(summaries, row, first)
    _store_row(summaries, second_row, second)


@kernel
def _append_runs_kernel(new_keys, new_values, runs, keys, values, shape, kind, summaries):
    """Store every run and renew its page's summary.

    Work      one task per (run, kv head)
    Writes    the slots of the runs in keys and values, the summaries of their pages
    Bytes     reads and writes 2 * D * itemsize per token, reads a page's keys once per run
    """
    page_ids, first_slots, token_indptr = runs
    kv_heads, page_size = shape
    page_rows = kv_heads if kind == _MEAN else 2 * kv_heads
    for task in prange(page_ids.size * kv_heads):
        run, head = task // kv_heads, task % kv_heads
        first_row = (np.int64(page_ids[run]) * kv_heads + head) * page_size
        row = first_row + first_slots[run]
        for token in range(token_indptr[run], token_indptr[run + 1]):
            for d in range(keys.shape[1]):
                store_word(keys, row, d, load_word(new_keys, token * kv_heads + head, d))
                store_word(values, row, d, load_word(new_values, token * kv_heads + head, d))
            row += 1
        summary_row = np.int64(page_ids[run]) * page_rows + head
        _summarise_tile(
            kind, keys, first_row, row - first_row, summaries, summary_row, summary_row + kv_heads
        )


@kernel
def _summarise_pages_kernel(keys, page_ids, page_tokens, shape, kind, summaries):
    """Write summaries[i] from the stored keys of page page_ids[i].

    Work      one task per (page, kv head)
    """
    kv_heads, page_size = shape
    page_rows = kv_heads if kind == _MEAN else 2 * kv_heads
    for task in prange(page_ids.size * kv_heads):
        index, head = task // kv_heads, task % kv_heads
        first_row = (np.int64(page_ids[index]) * kv_heads + head) * page_size
        row = np.int64(index) * page_rows + head
        _summarise_tile(kind, keys, first_row, page_tokens[index], summaries, row, row + kv_heads)


_append_runs = timed(_append_runs_kernel)


def append_runs(
    new_keys: np.ndarray,  # [tokens, G, D] any storage dtype
    new_values: np.ndarray,  # [tokens, G, D] as new_keys
    page_ids: np.ndarray,  # [R] i32, distinct
    first_slots: np.ndarray,  # [R] i32, the slot of a run's first token
    token_indptr: np.ndarray,  # [R + 1] i64: run r stores tokens [r] .. [r + 1]
    keys: np.ndarray,  # [N, G, T, D]
    values: np.ndarray,  # [N, G, T, D]
    summary: str,
    summaries: np.ndarray,  # [N, G, D] for mean, else [N, 2, G, D]
) -> None:
    """Store tokens in the slots of their pages and renew the summaries of these pages."""
    kv_heads, page_size, head_dim = keys.shape[1:]
    check_array("new_keys", new_keys, (len(new_keys), kv_heads, head_dim))
    check_array("new_values", new_values, new_keys.shape, new_keys.dtype)
    _append_runs(
        as_rows(new_keys), as_rows(new_values), (page_ids, first_slots, token_indptr),
        as_rows(keys), as_rows(values), (kv_heads, page_size), SUMMARIES[summary],
        as_rows(summaries),
    )  # fmt: skip


def summarise_pages(
    keys: np.ndarray,  # [N, G, T, D]
    page_ids: np.ndarray,  # [n] i32
    page_tokens: np.ndarray,  # [n] i32, at least 1
    summary: str,
    summaries: np.ndarray,  # [n, G, D] for mean, else [n, 2, G, D]
) -> None:
    """Rebuild the summaries of pages from their stored keys."""
    _summarise_pages_kernel(
        as_rows(keys), page_ids, page_tokens, keys.shape[1:3], SUMMARIES[summary],
        as_rows(summaries),
    )  # fmt: skip
