"""Score pages by their summaries: an estimate of how much a query will attend to a page.

    mean          q . mean                      minmax       sum_d max(q_d low_d, q_d high_d)
    cuboid_mean   q . centre + |q| . radius     mean_std     q . mean + |q| . std

all times sm_scale. Heads that share a selection share a score: the sum over all heads (request, the
reference system's rule), the maximum over a group (kv_head), or each its own (query_head).

Every score is a dot product of *factors*, made once per query, with the vectors of the summary; for
a sum over all heads the factors of a group are added up first, so that a page costs one product per
kv head whatever the group.
"""

import numpy as np
from numba import prange

from numbadsd.kernels import shared
from numbadsd.kernels.cpu.jit import device, kernel
from numbadsd.kernels.cpu.memory import CACHE_LINE_BYTES, load16, load_rows_4x16, prefetch, store4
from numbadsd.kernels.cpu.simd import fma, repeat_4x, splat64, sum_rows
from numbadsd.kernels.score_shape import REQUEST, score_shape
from numbadsd.kernels.words import as_rows, check_array

CHUNK_PAGES = 16  # pages of a task: enough work to hide its start, few enough to balance

_first_factor = device(shared.first_factor)
_second_factor = device(shared.second_factor)
_ZERO = np.float32(0.0)
_NEG_INF = np.float32(-np.inf)


@kernel
def _query_factors_kernel(queries, bound, factors):
    """Write factors[b, a, f, :]: of query head f, or of the sum of a group of query heads.

    Work      one task per (request, f)
    """
    arrays, rows = factors.shape[1:3]
    group = queries.shape[1] // rows
    for task in prange(queries.shape[0] * rows):
        request, row = task // rows, task % rows
        for d in range(queries.shape[2]):
            first, second = _ZERO, _ZERO
            for head in range(row * group, (row + 1) * group):
                first += _first_factor(bound, queries[request, head, d])
                second += _second_factor(bound, queries[request, head, d])
            factors[request, 0, row, d] = first
            if arrays == 2:
                factors[request, 1, row, d] = second


@device
def _load_pages(summaries, rows, offset, d):
    """Load 16 dimensions of the same vector of four pages."""
    return load_rows_4x16(
        summaries, rows[0] + offset, rows[1] + offset, rows[2] + offset, rows[3] + offset, d
    )


@device
def _prefetch_pages(summaries, rows, offset, d):
    """Ask for the same vector of four pages, once per cache line."""
    if d % (CACHE_LINE_BYTES // summaries.itemsize) == 0:
        for page in range(4):
            prefetch(summaries, rows[page] + offset, d)


@device
def _score_head(factors, f_row, f_rows, summaries, rows, following, kv_head, shape, out, head):
    """Write out[head, :]: one head's scores of four pages."""
    arrays, kv_heads = shape
    total = splat64(_ZERO)
    for array in range(arrays):
        f, offset = f_row + array * f_rows + head, array * kv_heads + kv_head
        for d in range(0, factors.shape[1], 16):
            _prefetch_pages(summaries, following, offset, d)
            pages = _load_pages(summaries, rows, offset, d)
            total = fma(repeat_4x(load16(factors, f, d)), pages, total)
    store4(out, head, 0, sum_rows(total))


@device
def _score_head_4(factors, f_row, f_rows, summaries, rows, following, kv_head, shape, out, head):
    """Do as `_score_head` for four heads of a kv head: each summary is loaded and widened once."""
    arrays, kv_heads = shape
    total_0 = splat64(_ZERO)
    total_1 = splat64(_ZERO)
    total_2 = splat64(_ZERO)
    total_3 = splat64(_ZERO)
    for array in range(arrays):
        f, offset = f_row + array * f_rows + head, array * kv_heads + kv_head
        for d in range(0, factors.shape[1], 16):
            _prefetch_pages(summaries, following, offset, d)
            pages = _load_pages(summaries, rows, offset, d)
            total_0 = fma(repeat_4x(load16(factors, f, d)), pages, total_0)
            total_1 = fma(repeat_4x(load16(factors, f + 1, d)), pages, total_1)
            total_2 = fma(repeat_4x(load16(factors, f + 2, d)), pages, total_2)
            total_3 = fma(repeat_4x(load16(factors, f + 3, d)), pages, total_3)
    store4(out, head, 0, sum_rows(total_0))
    store4(out, head + 1, 0, sum_rows(total_1))
    store4(out, head + 2, 0, sum_rows(total_2))
    store4(out, head + 3, 0, sum_rows(total_3))


@device
def _score_pages(factors, f_row, f_rows, summaries, rows, following, shape, out):
    """Write out[f, :] of every factor row of a request against four pages; prefetch the next."""
    kv_heads = shape[1]
    group = f_rows // kv_heads
    head = 0
    for kv_head in range(kv_heads):
        end = head + group
        while head + 4 <= end:
            _score_head_4(
                factors, f_row, f_rows, summaries, rows, following, kv_head, shape, out, head
            )
            head += 4
        while head < end:
            _score_head(
                factors, f_row, f_rows, summaries, rows, following, kv_head, shape, out, head
            )
            head += 1


@device
def _page_row(page_ids, index, page_rows):
    """Return the first summary row of a page; the last page stands in for those after it."""
    return np.int64(page_ids[min(index, page_ids.size - 1)]) * page_rows


@device
def _four_rows(page_ids, index, page_rows):
    return (
        _page_row(page_ids, index, page_rows),
        _page_row(page_ids, index + 1, page_rows),
        _page_row(page_ids, index + 2, page_rows),
        _page_row(page_ids, index + 3, page_rows),
    )


@device
def _share_score(head_scores, column, share, num_units, unit):
    """Return one unit's score of a page from the scores of its heads; NaN if any is NaN."""
    width = head_scores.shape[0] // num_units
    total, largest, nan = _ZERO, _NEG_INF, False
    for head in range(unit * width, (unit + 1) * width):
        score = head_scores[head, column]
        total += score
        largest = score if score > largest else largest
        nan |= score != score
    if share == REQUEST:
        return total
    return np.float32(np.nan) if nan else largest


@kernel
def _score_pages_kernel(factors, shape, summaries, page_indptr, page_ids, share, sm_scale, scores):
    """Write scores[b, unit, position]; -inf beyond a request's pages.

    Work      one task per (request, chunk of pages)
    Writes    scores, every element once
    Bytes     reads arrays * G * D * itemsize per page, once for all heads
    """
    arrays, f_rows, kv_heads = shape
    batch, num_units, stride = scores.shape
    chunks = (stride + CHUNK_PAGES - 1) // CHUNK_PAGES
    for task in prange(batch * chunks):
        request = task // chunks
        first = page_indptr[request]
        count = page_indptr[request + 1] - first
        begin = (task % chunks) * CHUNK_PAGES
        end = min(begin + CHUNK_PAGES, stride)
        head_scores = np.empty((f_rows, 4), np.float32)
        for block in range(begin, min(end, count), 4):
            rows = _four_rows(page_ids, first + block, arrays * kv_heads)
            following = _four_rows(page_ids, first + block + 4, arrays * kv_heads)
            _score_pages(
                factors, request * arrays * f_rows, f_rows, summaries, rows, following,
                (arrays, kv_heads), head_scores,
            )  # fmt: skip
            for position in range(block, min(block + 4, end, count)):
                for unit in range(num_units):
                    score = _share_score(head_scores, position - block, share, num_units, unit)
                    scores[request, unit, position] = score * sm_scale
        for position in range(max(begin, count), end):
            for unit in range(num_units):
                scores[request, unit, position] = _NEG_INF


@kernel(parallel=False)
def score_kernel(queries, bound, shape, summaries, page_indptr, page_ids, share, sm_scale, scores):
    """Make factors, score pages: one call, since each costs tens of microseconds when cold."""
    arrays, f_rows, kv_heads = shape
    factors = np.empty((queries.shape[0], arrays, f_rows, queries.shape[2]), np.float32)
    _query_factors_kernel(queries, bound, factors)
    rows = factors.reshape((factors.size // queries.shape[2], queries.shape[2]))
    _score_pages_kernel(rows, shape, summaries, page_indptr, page_ids, share, sm_scale, scores)


def score_pages(
    queries: np.ndarray,  # [B, H, D] f32
    summaries: np.ndarray,  # [N, G, D] for mean, else [N, 2, G, D]
    page_indptr: np.ndarray,  # [B + 1] i32
    page_ids: np.ndarray,  # [n] i32
    summary: str,
    share: str,
    sm_scale: float,
    scores: np.ndarray,  # [B, S, P] f32, P >= the pages of any request
) -> None:
    """Write the score of every page for every selection unit; -inf beyond a request's pages."""
    check_array("queries", queries, (None, None, None), np.float32)
    batch, num_heads, head_dim = queries.shape
    shape = score_shape(summary, share, summaries.shape, num_heads)
    check_array("summaries", summaries, (*summaries.shape[:-1], head_dim))
    check_array("scores", scores, (batch, shape.num_units, scores.shape[-1]), np.float32)
    score_kernel(
        queries, shape.bound, (shape.arrays, shape.factor_rows, shape.num_kv_heads),
        as_rows(summaries), page_indptr, page_ids, shape.share, np.float32(sm_scale), scores,
    )  # fmt: skip
