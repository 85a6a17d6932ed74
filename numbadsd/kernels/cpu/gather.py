"""From selected positions to pages: the row table that attention reads, and the explicit copy.

`select_rows` turns logical positions into a page list per (request, unit); the fused path attends
to these pages where they are. `gather_pages` copies them into a compact pool first, as the
reference system's CPU path does; attention over the copy gives the same bits.
"""

import numpy as np
from numba import prange

from numbadsd.kernels import shared
from numbadsd.kernels.cpu.jit import device, kernel
from numbadsd.kernels.words import as_words, check_array

_row_of = device(shared.row_of)


@kernel(parallel=False)
def select_rows_kernel(
    selected, page_indptr, page_ids, last_page_tokens, page_size, row_indptr, row_ids, row_last
):
    """Write every row's pages and the tokens of its last page.

    Work      one thread: 4 bytes a page, less than the start of a parallel region
    Writes    row_indptr, row_last, row_ids[: row_indptr[-1]]
    """
    batch, units, k = selected.shape
    row_indptr[0] = 0
    end = 0
    for request in range(batch):
        first = page_indptr[request]
        last_position = page_indptr[request + 1] - first - 1
        for unit in range(units):
            tokens = 0
            for i in range(k):
                position = selected[request, unit, i]
                if position < 0:
                    break
                row_ids[end] = page_ids[first + position]
                tokens = last_page_tokens[request] if position == last_position else page_size
                end += 1
            row_indptr[request * units + unit + 1] = end
            row_last[request * units + unit] = tokens


def select_rows(
    selected: np.ndarray,  # [B, S, K] i32, ascending, -1 at the tail
    page_indptr: np.ndarray,  # [B + 1] i32
    page_ids: np.ndarray,  # [n] i32
    last_page_tokens: np.ndarray,  # [B] i32
    page_size: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (page_indptr [B * S + 1], page_ids, last_page_tokens [B * S]) of the selected pages.

    Positions ascend, so that a partial page, which only a request's tail is, comes last.
    """
    check_array("selected", selected, (len(last_page_tokens), None, None), np.int32)
    rows = selected.shape[0] * selected.shape[1]
    row_indptr = np.empty(rows + 1, np.int32)
    row_ids = np.empty(selected.size, np.int32)
    row_last = np.empty(rows, np.int32)
    select_rows_kernel(
        selected, page_indptr, page_ids, last_page_tokens, page_size, row_indptr, row_ids, row_last
    )
    return row_indptr, row_ids[: row_indptr[-1]], row_last


@kernel
def _gather_pages_kernel(keys, values, row_indptr, page_ids, units, kv_heads, keys_out, values_out):
    """Copy the tiles that each row reads.

    Work      one task per (page of a row, kv head of the row)
    Writes    keys_out, values_out, every element once
    Bytes     reads and writes 2 * T * D * itemsize per tile
    """
    row_kv_heads = keys_out.shape[1]
    for task in prange(page_ids.size * row_kv_heads):
        index, head = task // row_kv_heads, task % row_kv_heads
        kv_head = (_row_of(row_indptr, index) % units) * kv_heads // units + head
        keys_out[index, head] = keys[page_ids[index], kv_head]
        values_out[index, head] = values[page_ids[index], kv_head]


def gather_pages(
    keys: np.ndarray,  # [N, G, T, D]
    values: np.ndarray,  # [N, G, T, D]
    row_indptr: np.ndarray,  # [B * S + 1] i32
    page_ids: np.ndarray,  # [n] i32
    num_units: int,  # S
    keys_out: np.ndarray,  # [n, row_kv_heads, T, D]
    values_out: np.ndarray,  # [n, row_kv_heads, T, D]
) -> None:
    """Copy the selected tiles of each row into a compact pool: page i is page_ids[i]."""
    kv_heads, page_size, head_dim = keys.shape[1:]
    row_kv_heads = kv_heads if num_units == 1 else 1
    check_array("values", values, keys.shape, keys.dtype)
    shape = (page_ids.size, row_kv_heads, page_size, head_dim)
    check_array("keys_out", keys_out, shape, keys.dtype)
    check_array("values_out", values_out, shape, keys.dtype)
    _gather_pages_kernel(
        as_words(keys), as_words(values), row_indptr, page_ids, num_units, kv_heads,
        as_words(keys_out), as_words(values_out),
    )  # fmt: skip
