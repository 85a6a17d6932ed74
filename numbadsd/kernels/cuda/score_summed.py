"""Scores summed over all heads: one list of pages a request (see `score`)."""

from functools import cache

import numpy as np

from numbadsd.kernels.cuda.launch import LOADS_IN_FLIGHT, Kernel
from numbadsd.kernels.cuda.ops import (
    cuda,
    device,
    float32,
    int32,
    int64,
    load1,
    quotient,
    store1,
)
from numbadsd.kernels.cuda.score_tiles import (
    NUM_THREADS,
    NUM_WARPS,
    SCORE_PARAMETERS,
    ScoreSpec,
    make_row_scores,
    row_loads,
)
from numbadsd.kernels.cuda.tiles import QUAD_ROWS, quad_sum

_ROWS = 1  # of a quad
_ZERO = float32(0)
_NEG_INF = float32(-np.inf)


def _make_score_page(spec: ScoreSpec):
    """Return ``score_page``: a page's score summed over the kv heads of a warp."""
    row_scores = make_row_scores(spec, 1, _ROWS, True)
    arrays, kv_heads, head_warps = spec.arrays, spec.num_kv_heads, spec.head_warps
    head_dim, words, turns = spec.head_dim, spec.row.words, -(-spec.num_kv_heads // spec.head_warps)
    page_words, sums_shape, num_rows = arrays * kv_heads * words, (_ROWS, 1), _ROWS

    @device
    def score_page(summaries, factors, first_factor, page, head_warp, t):
        sums = cuda.local.array(sums_shape, float32)
        bases = cuda.local.array(num_rows, int64)
        sums[0, 0] = _ZERO
        for turn in range(turns):
            head = int32(head_warp + turn * head_warps)
            if head < kv_heads:
                for a in range(arrays):
                    vector = int32(a * kv_heads + head)
                    bases[0] = int64(page) * page_words + int32(vector * words)
                    first = first_factor + int32(vector * head_dim)
                    row_scores(summaries, bases, factors, first, sums, t)
        return quad_sum(sums[0, 0])

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
    block_pages, head_warps = spec.block_pages, spec.head_warps
    page_warps = NUM_WARPS // head_warps
    passes, turns = block_pages // QUAD_ROWS // page_warps, -(-block_pages // NUM_THREADS)
    request_factors = spec.arrays * spec.num_kv_heads * spec.head_dim
    parts_size = head_warps * block_pages

    def score_summed(factors, summaries, page_indptr, page_ids, scores, stride, chunks, scale):
        parts = cuda.shared.array(parts_size, float32)
        thread, block = int32(cuda.threadIdx.x), int32(cuda.blockIdx.x)
        request = quotient(block, chunks)
        begin = int32((block - request * chunks) * block_pages)
        first_page = load1(page_indptr, request)
        count = int32(load1(page_indptr, request + 1) - first_page)
        lane, warp = thread & int32(31), thread >> int32(5)
        group, t = lane >> int32(2), lane & int32(3)
        head_warp, page_warp = int32(warp % head_warps), int32(warp // head_warps)
        first_factor = int64(request) * request_factors
        for turn in range(passes):
            here = int32((page_warp + turn * page_warps) * QUAD_ROWS)
            if begin + here < count:
                place = int32(here + group)
                page = load1(page_ids, int32(first_page + min(begin + place, count - 1)))
                score = score_page(summaries, factors, first_factor, page, head_warp, t)
                if t == 0:
                    store1(parts, int32(head_warp * block_pages + place), score)
        cuda.syncthreads()
        for turn in range(turns):
            i = int32(thread + turn * NUM_THREADS)
            if i < block_pages and begin + i < stride:
                score = _NEG_INF
                if begin + i < count:
                    total = _ZERO
                    for other in range(head_warps):
                        total += load1(parts, int32(other * block_pages + i))
                    score = total * scale
                store1(scores, int64(request) * stride + int32(begin + i), score)

    return Kernel(
        name=f"score_summed-{spec.name}",
        function=score_summed,
        parameters=("f32[]", *SCORE_PARAMETERS),
        num_threads=NUM_THREADS,
        max_registers=96,
        load_bytes=16 * row_loads(spec, _ROWS),
        low_occupancy=LOADS_IN_FLIGHT,
    )
