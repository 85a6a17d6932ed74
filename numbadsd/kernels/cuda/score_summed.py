"""Scores summed over all heads: one list of pages a request (see `score`)."""

from functools import cache

import numpy as np

from numbadsd.kernels.cuda.launch import LOADS_IN_FLIGHT, Kernel
from numbadsd.kernels.cuda.ops import cuda, device, float32, int64, quotient
from numbadsd.kernels.cuda.score_tiles import (
    NUM_THREADS,
    NUM_WARPS,
    SCORE_PARAMETERS,
    ScoreSpec,
    make_row_scores,
)
from numbadsd.kernels.cuda.tiles import QUAD_ROWS, quad_sum

_ZERO = float32(0)
_NEG_INF = float32(-np.inf)


def _make_score_page(spec: ScoreSpec):
    """Return ``score_page``: a page's score summed over the kv heads of a warp."""
    row_scores = make_row_scores(spec, 1, True)
    arrays, kv_heads, head_warps = spec.arrays, spec.num_kv_heads, spec.head_warps
    head_dim, words = spec.head_dim, spec.row.words

    @device
    def score_page(summaries, factors, first_factor, page, head_warp, t):
        sums = cuda.local.array(1, float32)
        sums[0] = _ZERO
        for head in range(head_warp, kv_heads, head_warps):
            for a in range(arrays):
                base = ((page * arrays + a) * kv_heads + head) * words
                row_scores(
                    summaries, base, factors, first_factor + (a * kv_heads + head) * head_dim,
                    sums, t,
                )  # fmt: skip
        return quad_sum(sums[0])

    return score_page


@cache
def score_summed_kernel(spec: ScoreSpec) -> Kernel:
    """Return the kernel of page scores that are summed over heads.

    Work      one block per (request, 8 n pages)
    Block     4 warps, over kv heads first, then over pages
    Shared    each warp's part of each score
    Writes    scores[request, 0, position], every element once; -inf beyond a request's pages
    Bytes     reads arrays G D e per page, once; factors through the L1 cache
    """
    score_page = _make_score_page(spec)
    passes, head_warps = spec.passes, spec.head_warps
    page_warps, block_pages = NUM_WARPS // head_warps, passes * QUAD_ROWS
    request_factors = spec.arrays * spec.num_kv_heads * spec.head_dim
    parts_size = head_warps * block_pages

    def score_summed(factors, summaries, page_indptr, page_ids, scores, stride, chunks, scale):
        parts = cuda.shared.array(parts_size, float32)
        thread, block = cuda.threadIdx.x, cuda.blockIdx.x
        request = quotient(block, chunks)
        begin = (block - request * chunks) * block_pages
        first_page = page_indptr[request]
        count = page_indptr[request + 1] - first_page
        lane, warp = thread & 31, thread >> 5
        group, t = lane >> 2, lane & 3
        head_warp, page_warp = warp % head_warps, warp // head_warps
        for p in range(page_warp, passes, page_warps):
            if begin + p * QUAD_ROWS < count:
                place = p * QUAD_ROWS + group
                page = int64(page_ids[first_page + min(begin + place, count - 1)])
                score = score_page(
                    summaries, factors, int64(request) * request_factors, page, head_warp, t
                )
                if t == 0:
                    parts[head_warp * block_pages + place] = score
        cuda.syncthreads()
        for i in range(thread, block_pages, NUM_THREADS):
            position = begin + i
            total = _ZERO
            if position < count:
                for other in range(head_warps):
                    total += parts[other * block_pages + i]
            if position < stride:
                score = total * scale if position < count else _NEG_INF
                scores[int64(request) * stride + position] = score

    return Kernel(
        name=f"score_summed-{spec.name}",
        function=score_summed,
        parameters=SCORE_PARAMETERS,
        num_threads=NUM_THREADS,
        max_registers=96,
        load_bytes=spec.load_bytes,
        low_occupancy=LOADS_IN_FLIGHT,
    )
