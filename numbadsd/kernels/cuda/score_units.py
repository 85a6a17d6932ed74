"""Scores of kv heads or of query heads: several lists of pages a request (see `score`).

A warp takes a kv head, and of its query heads as many at a time as its way multiplies.
"""

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
    uint32,
)
from numbadsd.kernels.cuda.score_fma import make_fma_way
from numbadsd.kernels.cuda.score_mma import make_mma_way
from numbadsd.kernels.cuda.score_tiles import (
    NUM_THREADS,
    NUM_WARPS,
    SCORE_PARAMETERS,
    ScoreSpec,
    ScoreWay,
    larger,
)
from numbadsd.kernels.cuda.tiles import QUAD_ROWS
from numbadsd.kernels.score_shape import KV_HEAD

_NEG_INF = float32(-np.inf)


def _make_store_largest(spec: ScoreSpec, way: ScoreWay):
    """Return ``store_scores`` of a kv head: a page's largest score, once all heads are seen."""
    parts, kv_heads, largest = -(-spec.group // way.heads), spec.num_kv_heads, way.largest

    @device
    def store_scores(
        scores, lane_scores, best, first_best, request, stride, kv_head, part, first, left, scale,
        lane,
    ):  # fmt: skip
        score, page = largest(lane_scores, lane)
        if page < left:
            if part > 0:
                score = larger(load1(best, int32(first_best + page)), score)
            if part < parts - 1:
                store1(best, int32(first_best + page), score)
            else:
                row = int64(int32(request * kv_heads + kv_head)) * stride
                store1(scores, row + int32(first + page), score * scale)

    return store_scores


def _make_store_each(spec: ScoreSpec, way: ScoreWay):
    """Return ``store_scores`` of query heads; a short last part stores some once more."""
    heads, num_scores, last_head = way.heads, way.lane_scores, spec.group - way.heads
    num_heads, group, place = spec.num_kv_heads * spec.group, spec.group, way.place

    @device
    def store_scores(
        scores, lane_scores, best, first_best, request, stride, kv_head, part, first, left, scale,
        lane,
    ):  # fmt: skip
        first_head = int32(
            request * num_heads + kv_head * group + min(int32(part * heads), int32(last_head))
        )
        for i in range(num_scores):
            head, page = place(i, lane)
            if head < heads and page < left:
                row = int64(int32(first_head + head)) * stride
                store1(scores, row + int32(first + page), lane_scores[i] * scale)

    return store_scores


def _make_fill(units: int, block_pages: int):
    """Return ``fill``: -inf beyond a request's pages, for all units."""
    turns = -(-units * block_pages // NUM_THREADS)

    @device
    def fill(scores, request, stride, begin, here, thread):
        for turn in range(turns):
            i = uint32(thread + turn * NUM_THREADS)
            if i >= units * block_pages:
                break
            unit, page = int32(i // uint32(block_pages)), int32(i % uint32(block_pages))
            if begin + page < stride and page >= here:
                row = int64(int32(request * units + unit)) * stride
                store1(scores, row + int32(begin + page), _NEG_INF)

    return fill


@cache
def score_units_kernel(spec: ScoreSpec) -> Kernel:
    """Return the kernel of page scores of several units.

    Work      one block per (request, 16 n pages)
    Block     4 warps, over kv heads first, then over pages
    Shared    what a warp keeps of its heads; the largest score so far of each page
    Writes    scores[request, unit, position], every element once; -inf beyond a request's pages
    Bytes     reads arrays G D e per page, once
    """
    way = make_mma_way(spec) if spec.is_mma else make_fma_way(spec)
    kv_heads, group, heads = spec.num_kv_heads, spec.group, way.heads
    is_largest = spec.share == KV_HEAD
    store_scores = (_make_store_largest if is_largest else _make_store_each)(spec, way)
    keep, score_rows, parts, last_head = way.keep, way.score_rows, -(-group // heads), group - heads
    head_words, request_words, kept_size = way.head_words, way.request_words, way.kept_size
    head_warps, block_pages, pass_pages = spec.head_warps, spec.block_pages, spec.pass_pages
    page_warps, items = NUM_WARPS // head_warps, -(-kv_heads // head_warps) * parts
    page_words, row_words = spec.arrays * kv_heads * spec.row.words, spec.row.words
    all_kept, best_size = NUM_WARPS * kept_size, NUM_WARPS * block_pages
    fill = _make_fill(kv_heads if is_largest else kv_heads * group, block_pages)
    kept_type, num_scores, stride_pages = way.kept_type, way.lane_scores, page_warps * pass_pages

    def score_units(factors, summaries, page_indptr, page_ids, scores, stride, chunks, scale):
        kept = cuda.shared.array(all_kept, kept_type, alignment=16)
        best = cuda.shared.array(best_size, float32)
        thread, block = int32(cuda.threadIdx.x), int32(cuda.blockIdx.x)
        request = quotient(block, chunks)
        begin = int32((block - request * chunks) * block_pages)
        first_page = int32(load1(page_indptr, request) + begin)
        count = int32(load1(page_indptr, request + 1) - first_page)  # from there on
        here = min(count, int32(block_pages))
        lane, warp = thread & int32(31), thread >> int32(5)
        g, first_kept = lane >> int32(2), int32(warp * kept_size)
        lane_scores = cuda.local.array(num_scores, float32)
        item = int32(0)
        while item < items:
            turn = quotient(item, parts)
            part, kv_head = int32(item - turn * parts), int32(warp % head_warps + turn * head_warps)
            item = int32(item + 1)
            if kv_head < kv_heads and here > 0:
                # a short last part scores some heads once more
                head = int32(kv_head * group + min(int32(part * heads), int32(last_head)))
                first = int64(request) * request_words + int32(head * head_words)
                keep(factors, first, kept, first_kept, lane)
                cuda.syncwarp()
                page = int32(warp // head_warps * pass_pages)
                while page < here:
                    left = int32(here - page)
                    low_place = int32(page + min(g, int32(left - 1)))
                    high_place = int32(page + min(int32(g + QUAD_ROWS), int32(left - 1)))
                    low = load1(page_ids, int32(first_page + low_place))
                    high = load1(page_ids, int32(first_page + high_place))
                    offset = int32(kv_head * row_words)
                    score_rows(
                        kept, first_kept, summaries, int64(low) * page_words + offset,
                        int64(high) * page_words + offset, lane_scores, lane,
                    )  # fmt: skip
                    store_scores(
                        scores, lane_scores, best, int32(warp * block_pages + page), request,
                        stride, kv_head, part, int32(begin + page), left, scale, lane,
                    )  # fmt: skip
                    page = int32(page + stride_pages)
                cuda.syncwarp()
        if here < block_pages:
            fill(scores, request, stride, begin, here, thread)

    return Kernel(
        name=f"score_units-{spec.name}-{spec.share}",
        function=score_units,
        parameters=(way.factors, *SCORE_PARAMETERS),
        num_threads=NUM_THREADS,
        max_registers=way.max_registers,
        load_bytes=way.load_bytes,
        low_occupancy=LOADS_IN_FLIGHT,
    )
