"""Scores of kv heads or of query heads: several lists of pages a request (see `score`).

A warp takes a kv head, and of its query heads up to four at a time: their factors go to shared
memory once, for all pages of the block.
"""

from functools import cache

import numpy as np

from numbadsd.kernels.cuda.launch import LOADS_IN_FLIGHT, Kernel
from numbadsd.kernels.cuda.ops import (
    cuda,
    device,
    float32,
    int64,
    load1,
    load4,
    quotient,
    shfl_xor,
    store1,
    uint32,
)
from numbadsd.kernels.cuda.score_tiles import (
    NUM_THREADS,
    NUM_WARPS,
    SCORE_PARAMETERS,
    ScoreSpec,
    make_row_scores,
)
from numbadsd.kernels.cuda.tiles import QUAD_ROWS, QUAD_SUMS
from numbadsd.kernels.score_shape import KV_HEAD

_ZERO = float32(0)
_NEG_INF = float32(-np.inf)


@device
def _larger(a, b):
    """Return the larger number; NaN if any is NaN."""
    return b if b > a or b != b else a


def _make_keep_factors(spec: ScoreSpec, heads: int):
    """Return ``keep_factors``: a warp copies the factors of `heads` neighbours."""
    arrays, size = spec.arrays, heads * spec.head_dim
    array_stride = spec.num_kv_heads * spec.group * spec.head_dim

    @device
    def keep_factors(factors, first, kept, first_kept, lane):
        for a in range(arrays):
            for i in range(4 * lane, size, 128):
                numbers = load4(factors, first + a * array_stride + i)
                for j in range(4):
                    store1(kept, first_kept + a * size + i + j, numbers[j])

    return keep_factors


def _make_score_page(spec: ScoreSpec, heads: int, is_streamed: bool):
    """Return ``score_page``: the score of a page for head t % heads of the kept ones."""
    row_scores, quad_sums = make_row_scores(spec, heads, is_streamed), QUAD_SUMS[heads]
    arrays, kv_heads, words = spec.arrays, spec.num_kv_heads, spec.row.words
    size = heads * spec.head_dim

    @device
    def score_page(summaries, page, kv_head, kept, first_kept, t):
        sums = cuda.local.array(heads, float32)
        for h in range(heads):
            sums[h] = _ZERO
        for a in range(arrays):
            base = ((page * arrays + a) * kv_heads + kv_head) * words
            row_scores(summaries, base, kept, first_kept + a * size, sums, t)
        return quad_sums(sums, t)

    return score_page


@cache
def score_units_kernel(spec: ScoreSpec) -> Kernel:
    """Return the kernel of page scores of several units.

    Work      one block per (request, 8 n pages)
    Block     4 warps, over kv heads first, then over pages
    Shared    factors of a warp's heads; the largest score so far of each page
    Writes    scores[request, unit, position], every element once; -inf beyond a request's pages
    Bytes     reads arrays G D e per page, once
    """
    heads = 4 if spec.group >= 4 else 2 if spec.group >= 2 else 1
    blocks, last_head = -(-spec.group // heads), spec.group - heads
    keep_factors = _make_keep_factors(spec, heads)
    score_page = _make_score_page(spec, heads, blocks == 1)
    passes, head_warps, kv_heads = spec.passes, spec.head_warps, spec.num_kv_heads
    page_warps, block_pages = NUM_WARPS // head_warps, passes * QUAD_ROWS
    group_size, head_dim, is_largest = spec.group, spec.head_dim, spec.share == KV_HEAD
    units = kv_heads if is_largest else kv_heads * group_size
    request_factors = spec.arrays * kv_heads * group_size * head_dim
    warp_factors = spec.arrays * heads * head_dim
    kept_size, best_size = NUM_WARPS * warp_factors, NUM_WARPS * block_pages

    def score_units(factors, summaries, page_indptr, page_ids, scores, stride, chunks, scale):
        kept = cuda.shared.array(kept_size, float32, alignment=16)
        best = cuda.shared.array(best_size, float32)
        thread, block = cuda.threadIdx.x, cuda.blockIdx.x
        request = quotient(block, chunks)
        begin = (block - request * chunks) * block_pages
        first_page = page_indptr[request]
        count = page_indptr[request + 1] - first_page
        lane, warp = thread & 31, thread >> 5
        row, t = lane >> 2, lane & 3
        head_warp, page_warp = warp % head_warps, warp // head_warps
        first_score = int64(request) * units * stride
        for kv_head in range(head_warp, kv_heads, head_warps):
            for part in range(blocks):  # a short last one scores some heads once more
                head = kv_head * group_size + min(part * heads, last_head)
                first = int64(request) * request_factors + head * head_dim
                keep_factors(factors, first, kept, warp * warp_factors, lane)
                cuda.syncwarp()
                for p in range(page_warp, passes, page_warps):
                    position = begin + p * QUAD_ROWS + row
                    if begin + p * QUAD_ROWS < count:
                        page = int64(page_ids[first_page + min(position, count - 1)])
                        score = score_page(summaries, page, kv_head, kept, warp * warp_factors, t)
                        if is_largest:
                            score = _larger(score, shfl_xor(score, uint32(1)))
                            score = _larger(score, shfl_xor(score, uint32(2)))
                            place = warp * block_pages + p * QUAD_ROWS + row
                            if part > 0:
                                score = _larger(load1(best, place), score)
                            if part < blocks - 1:
                                if t == 0:
                                    store1(best, place, score)
                            elif position < count and t == 0:
                                scores[first_score + int64(kv_head) * stride + position] = (
                                    score * scale
                                )
                        elif position < count and t < heads:
                            scores[first_score + int64(head + t) * stride + position] = (
                                score * scale
                            )
                cuda.syncwarp()
        for i in range(thread, units * block_pages, NUM_THREADS):
            position = begin + i % block_pages
            if position < stride and position >= count:
                scores[first_score + int64(i // block_pages) * stride + position] = _NEG_INF

    return Kernel(
        name=f"score_units-{spec.name}-{spec.share}",
        function=score_units,
        parameters=SCORE_PARAMETERS,
        num_threads=NUM_THREADS,
        max_registers=144 if spec.row.words > 128 else 128,
        load_bytes=spec.load_bytes,
        low_occupancy=LOADS_IN_FLIGHT,
    )
