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
from numbadsd.kernels.cpu.memory import load16, load_4x16, prefetch, store4
from numbadsd.kernels.cpu.simd import fma, repeat_4x, splat16, splat64, sum_lanes, sum_rows
from numbadsd.kernels.words import as_rows, check_array

BOUNDS = {
    "mean": shared.MEAN_BOUND,
    "minmax": shared.MINMAX_BOUND,
    "cuboid_mean": shared.RADIUS_BOUND,
    "mean_std": shared.RADIUS_BOUND,
}
SHARES = {"request": 0, "kv_head": 1, "query_head": 2}
_REQUEST = SHARES["request"]
CHUNK_PAGES = 16  # pages of a task: enough work to hide its start, few enough to balance
CACHE_LINE_BYTES = 64

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
def _prefetch_rows(summaries, row, rows, d):
    """Ask for a cache line of each of some rows, once per line."""
    if d % (CACHE_LINE_BYTES // summaries.itemsize) == 0:
        for r in range(rows):
            prefetch(summaries, row + r, d)


@device
def _score_heads_4(factors, f_row, f_rows, summaries, row, kv_heads, arrays, ahead, out, column):
    """Write the scores of four heads with a kv head each."""
    total = splat64(_ZERO)
    for _ in range(arrays):
        for d in range(0, factors.shape[1], 16):
            _prefetch_rows(summaries, row + ahead, 4, d)
            total = fma(load_4x16(factors, f_row, d), load_4x16(summaries, row, d), total)
        f_row += f_rows
        row += kv_heads
    store4(out, 0, column, sum_rows(total))


@device
def _score_group_4(factors, f_row, f_rows, summaries, row, kv_heads, arrays, ahead, out, column):
    """Write the scores of four heads that share a kv head."""
    total = splat64(_ZERO)
    for _ in range(arrays):
        for d in range(0, factors.shape[1], 16):
            _prefetch_rows(summaries, row + ahead, 1, d)
            key = repeat_4x(load16(summaries, row, d))
            total = fma(load_4x16(factors, f_row, d), key, total)
        f_row += f_rows
        row += kv_heads
    store4(out, 0, column, sum_rows(total))


@device
def _score_head(factors, f_row, f_rows, summaries, row, kv_heads, arrays, ahead):
    """Return the score of one head."""
    total = splat16(_ZERO)
    for _ in range(arrays):
        for d in range(0, factors.shape[1], 16):
            _prefetch_rows(summaries, row + ahead, 1, d)
            total = fma(load16(factors, f_row, d), load16(summaries, row, d), total)
        f_row += f_rows
        row += kv_heads
    return sum_lanes(total)


@device
def _score_page(factors, f_row, f_rows, summaries, row, kv_heads, arrays, ahead, out):
    """Write out[0, f] for every factor row of a request; prefetch `ahead` rows further on."""
    group = f_rows // kv_heads
    kv_head, head = 0, 0
    while group == 1 and head + 4 <= f_rows:
        f, r = f_row + head, row + head
        _score_heads_4(factors, f, f_rows, summaries, r, kv_heads, arrays, ahead, out, head)
        head += 4
        kv_head = head
    while kv_head < kv_heads:
        r = row + kv_head
        end = head + group
        while head + 4 <= end:
            f = f_row + head
            _score_group_4(factors, f, f_rows, summaries, r, kv_heads, arrays, ahead, out, head)
            head += 4
        while head < end:
            f = f_row + head
            score = _score_head(factors, f, f_rows, summaries, r, kv_heads, arrays, ahead)
            out[0, head] = score
            head += 1
        kv_head += 1


@device
def _share_score(head_scores, share, num_units, unit):
    """Return one unit's score of a page from the scores of its heads."""
    width = head_scores.shape[1] // num_units
    result = _ZERO if share == _REQUEST else _NEG_INF
    for head in range(unit * width, (unit + 1) * width):
        score = head_scores[0, head]
        if share == _REQUEST:
            result += score
        elif result == result and not score <= result:  # once NaN, it stays NaN
            result = score
    return result


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
        head_scores = np.empty((1, f_rows), np.float32)
        for position in range(begin, min(end, count)):
            row = np.int64(page_ids[first + position]) * arrays * kv_heads
            next_page = page_ids[min(first + position + 1, page_ids.size - 1)]
            ahead = np.int64(next_page) * arrays * kv_heads - row
            _score_page(
                factors, request * arrays * f_rows, f_rows, summaries, row, kv_heads, arrays,
                ahead, head_scores,
            )  # fmt: skip
            for unit in range(num_units):
                score = _share_score(head_scores, share, num_units, unit)
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
    if summary not in BOUNDS:
        raise ValueError(f"summary: got {summary!r}, want one of {', '.join(BOUNDS)}")
    if share not in SHARES:
        raise ValueError(f"share: got {share!r}, want one of {', '.join(SHARES)}")
    check_array("queries", queries, (None, None, None), np.float32)
    batch, num_heads, head_dim = queries.shape
    num_pages, num_kv_heads = summaries.shape[0], summaries.shape[-2]
    arrays = () if summary == "mean" else (2,)
    check_array("summaries", summaries, (num_pages, *arrays, num_kv_heads, head_dim))
    num_units = {"request": 1, "kv_head": num_kv_heads, "query_head": num_heads}[share]
    check_array("scores", scores, (batch, num_units, scores.shape[-1]), np.float32)
    arrays = 1 if summary == "mean" else 2
    f_rows = num_kv_heads if share == "request" else num_heads
    score_kernel(
        queries, BOUNDS[summary], (arrays, f_rows, num_kv_heads), as_rows(summaries),
        page_indptr, page_ids, SHARES[share], np.float32(sm_scale), scores,
    )  # fmt: skip
