"""Score pages by their summaries: an estimate of how much a query will attend to a page.

    mean          q . mean                      minmax       sum_d max(q_d low_d, q_d high_d)
    cuboid_mean   q . centre + |q| . radius     mean_std     q . mean + |q| . std

all times sm_scale. Heads that share a selection share a score: the sum over all heads (request, the
reference system's rule), the maximum over a group (kv_head), or each its own (query_head).
"""

import numpy as np
from numba import prange

from numbadsd.kernels import shared
from numbadsd.kernels.cpu.jit import device, kernel
from numbadsd.kernels.cpu.memory import load16, load_4x16, prefetch, store4
from numbadsd.kernels.cpu.simd import repeat_4x, splat16, splat64, sum_lanes, sum_rows
from numbadsd.kernels.words import as_rows, check_array

BOUNDS = {
    "mean": shared.MEAN_BOUND,
    "minmax": shared.MINMAX_BOUND,
    "cuboid_mean": shared.RADIUS_BOUND,
    "mean_std": shared.RADIUS_BOUND,
}
SHARES = {"request": 0, "kv_head": 1, "query_head": 2}
_REQUEST, _KV_HEAD = SHARES["request"], SHARES["kv_head"]
_MEAN, _MINMAX = shared.MEAN_BOUND, shared.MINMAX_BOUND
CHUNK_PAGES = 16  # pages of a task: enough work to hide its start, few enough to balance
CACHE_LINE_BYTES = 64

_mean_bound = device(shared.mean_bound)
_minmax_bound = device(shared.minmax_bound)
_radius_bound = device(shared.radius_bound)
_ZERO = np.float32(0.0)
_NEG_INF = np.float32(-np.inf)


def _make_page_scorer(add_bound, arrays):
    """Return the device function that scores one page for all heads, for one kind of bound."""

    @device
    def score_head(queries, q_row, summaries, row, second_row):
        """Return the unscaled score of one query head."""
        total = splat16(_ZERO)
        for d in range(0, queries.shape[1], 16):
            query, first = load16(queries, q_row, d), load16(summaries, row, d)
            total = add_bound(total, query, first, load16(summaries, second_row, d))
        return sum_lanes(total)

    @device
    def score_group_4(queries, q_row, summaries, row, second_row, out, head):
        """Write the unscaled scores of four query heads that read one kv head."""
        total = splat64(_ZERO)
        for d in range(0, queries.shape[1], 16):
            query, first = load_4x16(queries, q_row, d), repeat_4x(load16(summaries, row, d))
            total = add_bound(total, query, first, repeat_4x(load16(summaries, second_row, d)))
        store4(out, 0, head, sum_rows(total))

    @device
    def score_heads_4(queries, q_row, summaries, row, second_row, following, out, head):
        """Write the unscaled scores of four query heads with a kv head each."""
        line = CACHE_LINE_BYTES // summaries.itemsize
        total = splat64(_ZERO)
        for d in range(0, queries.shape[1], 16):
            if d % line == 0:
                for r in range(4):
                    prefetch(summaries, row + following + r, d)
                    if arrays == 2:
                        prefetch(summaries, second_row + following + r, d)
            query, first = load_4x16(queries, q_row, d), load_4x16(summaries, row, d)
            total = add_bound(total, query, first, load_4x16(summaries, second_row, d))
        store4(out, 0, head, sum_rows(total))

    @device
    def score_page(queries, q_row, num_heads, num_kv_heads, summaries, first_row, following, out):
        """Write out[0, h] for every head of one request; prefetch `following` rows further on."""
        second = num_kv_heads if arrays == 2 else 0
        group = num_heads // num_kv_heads
        head = 0
        if group == 1:
            while head + 4 <= num_heads:
                row = first_row + head
                score_heads_4(
                    queries, q_row + head, summaries, row, row + second, following, out, head
                )
                head += 4
        kv_head = head // group
        while kv_head < num_kv_heads:
            row = first_row + kv_head
            head = kv_head * group
            end = head + group
            line = CACHE_LINE_BYTES // summaries.itemsize
            for d in range(0, summaries.shape[1], line):
                prefetch(summaries, row + following, d)
                if arrays == 2:
                    prefetch(summaries, row + following + second, d)
            while head + 4 <= end:
                score_group_4(queries, q_row + head, summaries, row, row + second, out, head)
                head += 4
            while head < end:
                out[0, head] = score_head(queries, q_row + head, summaries, row, row + second)
                head += 1
            kv_head += 1

    return score_page


@device
def _add_mean(total, query, first, second):
    return _mean_bound(total, query, first)


_score_page_mean = _make_page_scorer(_add_mean, 1)
_score_page_minmax = _make_page_scorer(_minmax_bound, 2)
_score_page_radius = _make_page_scorer(_radius_bound, 2)


@device
def _share_score(head_scores, share, num_units, unit, sm_scale):
    """Return one unit's score of a page from the scores of all heads."""
    width = head_scores.shape[1] // num_units
    result = _ZERO if share == _REQUEST else _NEG_INF
    for head in range(unit * width, (unit + 1) * width):
        score = head_scores[0, head]
        if share == _REQUEST:
            result += score
        elif not score <= result:  # a NaN wins, so that it is seen as such by the selection
            result = score
    return result * sm_scale


@kernel
def _score_pages_kernel(
    queries, summaries, page_indptr, page_ids, heads, bound, share, sm_scale, scores
):
    """Write scores[b, unit, position]; -inf beyond a request's pages.

    Work      one task per (request, chunk of pages)
    Writes    scores, every element once
    Bytes     reads 1 or 2 * G * D * itemsize per page, once for all heads
    """
    num_heads, num_kv_heads = heads
    batch, num_units, stride = scores.shape
    chunks = (stride + CHUNK_PAGES - 1) // CHUNK_PAGES
    page_rows = num_kv_heads if bound == _MEAN else 2 * num_kv_heads
    for task in prange(batch * chunks):
        request = task // chunks
        count = page_indptr[request + 1] - page_indptr[request]
        begin = (task % chunks) * CHUNK_PAGES
        head_scores = np.empty((1, num_heads), np.float32)
        for position in range(begin, min(begin + CHUNK_PAGES, stride)):
            if position >= count:
                for unit in range(num_units):
                    scores[request, unit, position] = _NEG_INF
                continue
            page = page_indptr[request] + position
            row = np.int64(page_ids[page]) * page_rows
            following = np.int64(page_ids[min(page + 1, page_ids.size - 1)]) * page_rows - row
            q_row = request * num_heads
            if bound == _MEAN:
                _score_page_mean(
                    queries, q_row, num_heads, num_kv_heads, summaries, row, following, head_scores
                )
            elif bound == _MINMAX:
                _score_page_minmax(
                    queries, q_row, num_heads, num_kv_heads, summaries, row, following, head_scores
                )
            else:
                _score_page_radius(
                    queries, q_row, num_heads, num_kv_heads, summaries, row, following, head_scores
                )
            for unit in range(num_units):
                score = _share_score(head_scores, share, num_units, unit, sm_scale)
                scores[request, unit, position] = score


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
    batch, num_heads, head_dim = queries.shape
    check_array("queries", queries, (batch, num_heads, head_dim), np.float32)
    shape = (None, None, head_dim) if summary == "mean" else (None, 2, None, head_dim)
    check_array("summaries", summaries, shape)
    num_kv_heads = summaries.shape[-2]
    num_units = {"request": 1, "kv_head": num_kv_heads, "query_head": num_heads}[share]
    check_array("scores", scores, (batch, num_units, None), np.float32)
    _score_pages_kernel(
        as_rows(queries), as_rows(summaries), page_indptr, page_ids, (num_heads, num_kv_heads),
        BOUNDS[summary], SHARES[share], np.float32(sm_scale), scores,
    )  # fmt: skip
