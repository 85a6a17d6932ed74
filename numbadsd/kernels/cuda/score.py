"""Page scores on a device: how well the summary of a page matches the queries of each unit.

Every bound is linear in the summary's vectors (see `shared.first_factor`), so a page's score is a
dot product of its summary with factors that are made once a step:

    share = request     factors summed over the group, products summed over all kv heads
    kv_head             the largest of the group's scores
    query_head          each head's own score

A block takes a request's pages [8 n i, 8 n (i + 1)); warps take different kv heads of eight pages
at a time, four lanes a page (`tiles`: quads).
"""

from functools import cache

import numpy as np

from numbadsd.kernels import shared
from numbadsd.kernels.cuda.launch import (
    LOADS_IN_FLIGHT,
    DeviceArray,
    Kernel,
    check_array,
    check_stored,
)
from numbadsd.kernels.cuda.ops import cuda, device, float32, int64, quotient
from numbadsd.kernels.cuda.score_tiles import (
    NUM_WARPS,
    ScoreSpec,
    make_summed_pages,
    make_unit_pages,
)
from numbadsd.kernels.cuda.tiles import QUAD_ROWS, Row
from numbadsd.kernels.score_shape import KV_HEAD, REQUEST, ScoreShape, score_shape

NUM_THREADS = 32 * NUM_WARPS
FACTOR_THREADS = 128
_ZERO = float32(0)
_NEG_INF = float32(-np.inf)

_first_factor = device(shared.first_factor)
_second_factor = device(shared.second_factor)


@cache
def query_factors_kernel(bound: int, arrays: int, is_summed: bool) -> Kernel:
    """Return the kernel that makes factors [B, arrays, rows, D] of queries [B, H, D].

    Work      one block per (request, row): rows are query heads, or kv heads where `is_summed`
    Writes    every factor once
    """

    def query_factors(queries, factors, num_rows, group, head_dim):
        block = cuda.blockIdx.x
        request = quotient(block, num_rows)
        row = block - request * num_rows
        heads = group if is_summed else 1
        first = int64(block) * heads * head_dim  # rows x heads = H
        for d in range(cuda.threadIdx.x, head_dim, FACTOR_THREADS):
            one, two = _ZERO, _ZERO
            for h in range(heads):
                q = queries[first + h * head_dim + d]
                one += _first_factor(bound, q)
                two += _second_factor(bound, q)
            place = (int64(request) * arrays * num_rows + row) * head_dim + d
            factors[place] = one
            if arrays == 2:
                factors[place + int64(num_rows) * head_dim] = two

    return Kernel(
        name=f"query_factors-{bound}-{arrays}-{int(is_summed)}",
        function=query_factors,
        parameters=("f32[]", "f32[]", "i32", "i32", "i32"),
        num_threads=FACTOR_THREADS,
        max_registers=32,
        load_bytes=4,
    )


@cache
def score_pages_kernel(spec: ScoreSpec) -> Kernel:
    """Return the kernel of page scores.

    Work      one block per (request, 8 n pages)
    Block     4 warps, over kv heads first, then over pages
    Writes    scores[request, unit, position], every element once; -inf beyond a request's pages
    Bytes     reads arrays G D e per page, once; factors through the L1 cache
    """
    is_summed = spec.share == REQUEST
    score_page = make_summed_pages(spec) if is_summed else make_unit_pages(spec)
    passes, head_warps, arrays = spec.passes, spec.head_warps, spec.arrays
    page_warps, block_pages = NUM_WARPS // head_warps, spec.passes * QUAD_ROWS
    kv_heads, head_dim = spec.num_kv_heads, spec.head_dim
    factor_rows = kv_heads if is_summed else kv_heads * spec.group
    units = 1 if is_summed else kv_heads if spec.share == KV_HEAD else factor_rows
    parts_size = head_warps * block_pages

    def score_pages(factors, summaries, page_indptr, page_ids, scores, stride, chunks, scale):
        parts = cuda.shared.array(parts_size, float32)
        thread, block = cuda.threadIdx.x, cuda.blockIdx.x
        request = quotient(block, chunks)
        begin = (block - request * chunks) * block_pages
        first_page = page_indptr[request]
        count = page_indptr[request + 1] - first_page
        lane, warp = thread % 32, thread // 32
        group, t = lane // 4, lane % 4
        head_warp, page_warp = warp % head_warps, warp // head_warps
        first_factor = int64(request) * (arrays * factor_rows * head_dim)
        for p in range(page_warp, passes, page_warps):
            if begin + p * QUAD_ROWS < count:
                position = begin + p * QUAD_ROWS + group
                page = int64(page_ids[first_page + min(position, count - 1)])
                if is_summed:
                    score = score_page(summaries, factors, first_factor, page, head_warp, t)
                    if t == 0:
                        parts[head_warp * block_pages + p * QUAD_ROWS + group] = score
                else:
                    score_page(
                        summaries, factors, first_factor, page, head_warp, t, scores,
                        int64(request) * units * stride + position, stride, position < count, scale,
                    )  # fmt: skip
        if is_summed:
            cuda.syncthreads()
        for i in range(thread, units * block_pages, NUM_THREADS):
            position = begin + i % block_pages
            place = (int64(request) * units + i // block_pages) * stride + position
            if position < stride and position >= count:
                scores[place] = _NEG_INF
            elif is_summed and position < count:
                total = _ZERO
                for other in range(head_warps):
                    total += parts[other * block_pages + i]
                scores[place] = total * scale

    return Kernel(
        name=(
            f"score_pages-{head_dim}-{spec.summary_dtype}-{arrays}-{kv_heads}-{spec.group}"
            f"-{spec.share}"
        ),
        function=score_pages,
        parameters=(
            "f32[]", "u32[]", "i32[]", "i32[]", "f32[]", "i32", "i32", "f32",
        ),
        num_threads=NUM_THREADS,
        max_registers=96 if is_summed else 168,
        load_bytes=16 * min(8, Row(head_dim, spec.summary_dtype).chunks),
        low_occupancy=LOADS_IN_FLIGHT,
    )  # fmt: skip


def factors_size(batch: int, shape: ScoreShape, head_dim: int) -> int:
    """Return the float32 numbers of workspace that scoring a batch needs."""
    return batch * shape.arrays * shape.factor_rows * head_dim


def score_pages(
    queries: DeviceArray,  # [B, H, D] f32
    summaries: DeviceArray,  # [N, G, D] for mean, else [N, 2, G, D]
    page_indptr: DeviceArray,  # [B + 1] i32
    page_ids: DeviceArray,  # [n] i32
    summary: str,
    share: str,
    sm_scale: float,
    scores: DeviceArray,  # [B, S, P] f32, P >= the pages of any request
    *,
    stream,
    workspace: DeviceArray,  # f32, see factors_size
) -> None:
    """Write the score of every page for every selection unit; -inf beyond a request's pages."""
    check_array("queries", queries, (None, None, None), np.float32)
    batch, num_heads, head_dim = queries.shape
    shape = score_shape(summary, share, summaries.shape, num_heads)
    check_stored("summaries", summaries, (*summaries.shape[:-1], head_dim))
    check_array("page_indptr", page_indptr, (batch + 1,), np.int32)
    check_array("page_ids", page_ids, (None,), np.int32)
    check_array("scores", scores, (batch, shape.num_units, scores.shape[-1]), np.float32)
    if workspace.size < factors_size(batch, shape, head_dim):
        raise ValueError(
            f"workspace: got {workspace.size} numbers, want {factors_size(batch, shape, head_dim)}"
        )
    stride, group = scores.shape[2], num_heads // shape.num_kv_heads
    if batch == 0 or stride == 0:
        return
    is_summed = shape.share == REQUEST
    stream.launch(
        query_factors_kernel(shape.bound, shape.arrays, is_summed), batch * shape.factor_rows,
        queries, workspace, shape.factor_rows, group, head_dim,
    )  # fmt: skip
    spec = ScoreSpec(
        head_dim, str(summaries.dtype), shape.arrays, shape.num_kv_heads, group, shape.share
    )
    chunks = -(-stride // (spec.passes * QUAD_ROWS))
    stream.launch(
        score_pages_kernel(spec), batch * chunks, workspace, summaries, page_indptr, page_ids,
        scores, stride, chunks, np.float32(sm_scale),
    )  # fmt: skip
