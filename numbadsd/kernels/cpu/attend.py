"""Attention over page lists: softmax within a split, splits merged by log-sum-exp.

    out = sum_t softmax_t(sm_scale q . k_t) v_t      lse = log sum_t exp(sm_scale q . k_t)

One kernel serves dense and sparse decode: a *row* is one selection unit of one request with its own
page list, so dense decode is one row per request that lists every page. A row is cut into splits of
a fixed number of pages; a task is one split for a block of kv heads. It reads its K tiles, then its
V tiles, each once for the whole group of query heads.

    row r = (request b, unit u)      pages of row r:  [ split 0 | split 1 | ... ]
    partial results of split s, head h of the row:    slot s * row_heads + h

Where a row is cut depends on its own length alone and every sum has a written order, so an output
has the same bits alone, in any batch, with any number of threads, and whether dense or sparse
decode listed its pages.
"""

from typing import NamedTuple

import numpy as np
from numba import get_num_threads, prange

from numbadsd.kernels import shared
from numbadsd.kernels.cpu.busy import timed
from numbadsd.kernels.cpu.jit import device, kernel
from numbadsd.kernels.cpu.simd import fma
from numbadsd.kernels.cpu.tiles import dot_group, prefetch_tile, softmax_row, weigh_group
from numbadsd.kernels.words import as_rows, check_array

SPLIT_TOKENS = 128  # K and V tiles, scores and sums of a split stay in the L2 cache
TASKS_PER_THREAD = 4  # enough tasks that an uneven last round costs little


@device
def _as_float32(number):
    return np.float32(number)


_exp = device(
    shared.make_exp_nonpositive(
        _as_float32,
        fma,
        device(shared.two_to),
        device(shared.at_least),
        device(shared.zero_below),
    )  # fmt: skip
)
_shift = device(shared.softmax_shift)
_row_of = device(shared.row_of)
_NEG_INF = np.float32(-np.inf)
_ZERO = np.float32(0.0)


class Geometry(NamedTuple):
    """Integers that place heads and pages."""

    num_units: int  # rows of a request, S
    row_heads: int  # query heads of a row, H / S
    row_kv_heads: int  # kv heads of a row: G where S = 1, else 1
    pool_kv_heads: int  # kv heads of a page in the pool: G, or row_kv_heads after a gather
    group_size: int  # query heads of a kv head, H / G
    page_size: int
    split_pages: int


class RowTable(NamedTuple):
    """Page lists of the rows, CSR, int32."""

    page_indptr: np.ndarray  # [R + 1]
    page_ids: np.ndarray  # [n]
    last_page_tokens: np.ndarray  # [R]
    split_indptr: np.ndarray  # [R + 1]


@device
def _page_tokens(table, geometry, row, page):
    """Return the tokens of the page at index `page` of page_ids, which row `row` owns."""
    is_last = page + 1 == table.page_indptr[row + 1]
    return table.last_page_tokens[row] if is_last else geometry.page_size


@device
def _tile_row(table, geometry, page, kv_head):
    """Return the first row, in the pool seen as rows of D, of a page's tile."""
    head = kv_head if kv_head < geometry.pool_kv_heads else 0  # 0: a row's own copy
    return (np.int64(table.page_ids[page]) * geometry.pool_kv_heads + head) * geometry.page_size


@device
def _next_tile_row(table, geometry, page, last_page, kv_head, last_kv_head, first_kv_head):
    """Return the tile that is read after (page, kv_head): the next head's, or the next page's."""
    if kv_head < last_kv_head:
        return _tile_row(table, geometry, page, kv_head + 1)
    return _tile_row(table, geometry, min(page + 1, last_page), first_kv_head)


@kernel
def _attend_splits_kernel(
    queries, keys, values, table, geometry, block_kv_heads, sm_scale, sums, softmax
):
    """Write the partial results of every split.

    Work      one task per (split, block of kv heads)
    Writes    sums[slot, :] = sum of exp(score - maximum) * v, softmax[slot] = (maximum,
              sum of exp(score - maximum)), slot = split * row_heads + head, each once
    Bytes     reads 2 * D * itemsize per token and kv head, once
    """
    blocks = (geometry.row_kv_heads + block_kv_heads - 1) // block_kv_heads
    tile_heads = geometry.row_heads // geometry.row_kv_heads
    split_tokens = geometry.split_pages * geometry.page_size
    for task in prange(table.split_indptr[-1] * blocks):
        split = task // blocks
        first = (task % blocks) * block_kv_heads
        count = min(block_kv_heads, geometry.row_kv_heads - first)
        row = _row_of(table.split_indptr, split)
        unit_head = (row % geometry.num_units) * geometry.row_heads
        q_row = (row // geometry.num_units) * geometry.num_units * geometry.row_heads
        q_row += unit_head + first * tile_heads
        kv_first = unit_head // geometry.group_size + first
        kv_last = kv_first + count - 1
        slot = np.int64(split) * geometry.row_heads + first * tile_heads
        begin = table.page_indptr[row]
        begin += (split - table.split_indptr[row]) * geometry.split_pages
        end = min(begin + geometry.split_pages, table.page_indptr[row + 1])

        scores = np.empty((count * tile_heads, (split_tokens + 31) // 16 * 16), np.float32)
        tokens = 0
        for page in range(begin, end):
            page_tokens = _page_tokens(table, geometry, row, page)
            for i in range(count):
                here = _tile_row(table, geometry, page, kv_first + i)
                after = _next_tile_row(
                    table, geometry, page, end - 1, kv_first + i, kv_last, kv_first
                )
                heads = i * tile_heads
                dot_group(
                    queries, q_row + heads, tile_heads, keys, here, after, page_tokens,
                    sm_scale, scores, heads, tokens,
                )  # fmt: skip
            tokens += page_tokens

        prefetch_tile(values, _tile_row(table, geometry, begin, kv_first), geometry.page_size)
        for head in range(count * tile_heads):
            maximum, denominator = softmax_row(scores, head, tokens)
            softmax[slot + head, 0] = maximum
            softmax[slot + head, 1] = denominator
            sums[slot + head, :] = _ZERO

        tokens = 0
        for page in range(begin, end):
            page_tokens = _page_tokens(table, geometry, row, page)
            for i in range(count):
                here = _tile_row(table, geometry, page, kv_first + i)
                after = _next_tile_row(
                    table, geometry, page, end - 1, kv_first + i, kv_last, kv_first
                )
                heads = i * tile_heads
                weigh_group(
                    sums, slot + heads, tile_heads, scores, heads, tokens,
                    values, here, after, page_tokens,
                )  # fmt: skip
            tokens += page_tokens


@kernel
def _merge_splits_kernel(split_indptr, row_heads, sums, softmax, outputs, lse):
    """Merge the splits of every (row, head): weights exp(maximum_s - maximum), in split order.

    Work      one task per (row, query head)
    Writes    outputs[row * row_heads + head, :], lse[...], every element once
    """
    for task in prange(outputs.shape[0]):
        row, head = task // row_heads, task % row_heads
        first, last = split_indptr[row], split_indptr[row + 1]
        maximum = _NEG_INF
        for split in range(first, last):
            maximum = max(maximum, softmax[np.int64(split) * row_heads + head, 0])
        shift = _shift(maximum)
        denominator = _ZERO
        outputs[task, :] = _ZERO
        for split in range(first, last):
            slot = np.int64(split) * row_heads + head
            weight = _exp(softmax[slot, 0] - shift)
            denominator += weight * softmax[slot, 1]
            for d in range(outputs.shape[1]):
                outputs[task, d] += weight * sums[slot, d]
        # 0 where nothing was attended or every score is -inf; NaN stays NaN
        if denominator == _ZERO:
            outputs[task, :] = _ZERO
            lse[task] = _NEG_INF
        else:
            lse[task] = maximum + np.log(denominator)
            for d in range(outputs.shape[1]):
                outputs[task, d] /= denominator


@device
def _split_rows(page_indptr, split_pages):
    """Return where each row's splits start: a cut depends on the row's own length alone."""
    split_indptr = np.zeros(page_indptr.size, np.int32)
    for row in range(page_indptr.size - 1):
        pages = page_indptr[row + 1] - page_indptr[row]
        split_indptr[row + 1] = split_indptr[row] + (pages + split_pages - 1) // split_pages
    return split_indptr


@device
def _block_kv_heads(row_kv_heads, num_splits, num_threads):
    """Return the kv heads of a task: all, for long streams, unless threads would have none.

    The result never depends on it: heads do not mix.
    """
    wanted_tasks = TASKS_PER_THREAD * num_threads
    blocks = (wanted_tasks + num_splits - 1) // max(1, num_splits)
    return max(1, row_kv_heads // max(1, blocks))


@kernel(parallel=False)
def attend_kernel(queries, keys, values, pages, geometry, num_threads, sm_scale, outputs, lse):
    """Cut rows, attend, merge: one call, since each costs tens of microseconds with cold caches."""
    geometry = Geometry(*geometry)
    page_indptr, page_ids, last_page_tokens = pages
    split_indptr = _split_rows(page_indptr, geometry.split_pages)
    table = RowTable(page_indptr, page_ids, last_page_tokens, split_indptr)
    slots = np.int64(split_indptr[-1]) * geometry.row_heads
    sums = np.empty((slots, outputs.shape[1]), np.float32)
    softmax = np.empty((slots, 2), np.float32)
    block = _block_kv_heads(geometry.row_kv_heads, np.int64(split_indptr[-1]), num_threads)
    _attend_splits_kernel(queries, keys, values, table, geometry, block, sm_scale, sums, softmax)
    _merge_splits_kernel(split_indptr, geometry.row_heads, sums, softmax, outputs, lse)


def make_geometry(keys: np.ndarray, num_heads: int, num_kv_heads: int, num_units: int) -> Geometry:
    """Return where heads and pages lie in a pool [N, G, T, D] read by S units a request."""
    page_size = keys.shape[2]
    return Geometry(
        num_units=num_units,
        row_heads=num_heads // num_units,
        row_kv_heads=num_kv_heads if num_units == 1 else 1,
        pool_kv_heads=keys.shape[1],
        group_size=num_heads // num_kv_heads,
        page_size=page_size,
        split_pages=max(1, SPLIT_TOKENS // page_size),
    )


_attend = timed(attend_kernel)


def attend_pages(
    queries: np.ndarray,  # [B, H, D] f32
    keys: np.ndarray,  # [N, G, T, D], or [N, row_kv_heads, T, D] after a gather
    values: np.ndarray,  # as keys
    page_indptr: np.ndarray,  # [B * S + 1] i32, rows (request, unit)
    page_ids: np.ndarray,  # [n] i32
    last_page_tokens: np.ndarray,  # [B * S] i32
    num_kv_heads: int,  # G
    sm_scale: float,
    outputs: np.ndarray,  # [B, H, D] f32
    lse: np.ndarray,  # [B, H] f32
) -> None:
    """Attend each row's heads to the tokens of its pages; rows without pages give 0 and -inf.

    S is read from the length of `page_indptr`: 1 (dense, or one selection a request), G or H.
    """
    check_array("queries", queries, (None, None, None), np.float32)
    batch, num_heads, head_dim = queries.shape
    check_array("keys", keys, (None, None, None, head_dim))
    check_array("values", values, keys.shape, keys.dtype)
    check_array("outputs", outputs, queries.shape, np.float32)
    check_array("lse", lse, (batch, num_heads), np.float32)
    check_array("last_page_tokens", last_page_tokens, (len(page_indptr) - 1,), np.int32)
    if batch == 0:
        return
    num_units, rest = divmod(last_page_tokens.size, batch)
    if rest or num_units not in (1, num_kv_heads, num_heads):
        rows = f"{last_page_tokens.size} rows for {batch} requests"
        raise ValueError(f"page_indptr: got {rows}, want 1, {num_kv_heads} or {num_heads} each")
    _attend(
        as_rows(queries), as_rows(keys), as_rows(values),
        (page_indptr, page_ids, last_page_tokens),
        tuple(make_geometry(keys, num_heads, num_kv_heads, num_units)), get_num_threads(),
        np.float32(sm_scale), outputs.reshape(-1, head_dim), lse.reshape(-1),
    )  # fmt: skip
