"""Page scores on a device: how well the summary of a page matches the queries of each unit.

Every bound is linear in the summary's vectors (see `shared.first_factor`), so a page's score is a
dot product of its summary with factors that are made once a step:

    share = request     factors summed over the group, products summed over all kv heads
    kv_head             the largest of the group's scores
    query_head          each head's own score

A block takes a request's pages [8 n i, 8 n (i + 1)); warps take different kv heads of 8 or 16 pages
at a time, four lanes a page (`tiles`: quads). Tensor cores multiply halves, where a list is not
for the whole request; multiply-add instructions what is left.
"""

from functools import cache

import numpy as np

from numbadsd.kernels import shared
from numbadsd.kernels.cuda.launch import DeviceArray, Kernel, check_array, check_stored
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
from numbadsd.kernels.cuda.score_parts import most_head_words, query_parts_kernel
from numbadsd.kernels.cuda.score_summed import score_summed_kernel
from numbadsd.kernels.cuda.score_tiles import ScoreSpec
from numbadsd.kernels.cuda.score_units import score_units_kernel
from numbadsd.kernels.score_shape import REQUEST, ScoreShape, score_shape

FACTOR_THREADS = 128
_ZERO = float32(0)

_first_factor = device(shared.first_factor)
_second_factor = device(shared.second_factor)


@cache
def query_factors_kernel(bound: int, arrays: int, is_summed: bool) -> Kernel:
    """Return the kernel that makes factors [B, arrays, rows, D] of queries [B, H, D].

    Work      one block per (request, row): rows are query heads, or kv heads where `is_summed`
    Writes    every factor once
    """

    def query_factors(queries, factors, num_rows, group, head_dim):
        block = int32(cuda.blockIdx.x)
        request = quotient(block, num_rows)
        row = int32(block - request * num_rows)
        heads = group if is_summed else int32(1)
        first = int64(block) * int32(heads * head_dim)  # rows x heads = H
        base = (int64(request) * arrays * num_rows + row) * head_dim
        d = int32(cuda.threadIdx.x)
        while d < head_dim:
            one, two = _ZERO, _ZERO
            for h in range(heads):
                q = load1(queries, first + int32(h * head_dim + d))
                one += _first_factor(bound, q)
                two += _second_factor(bound, q)
            store1(factors, base + d, one)
            if arrays == 2:
                store1(factors, base + int32(num_rows * head_dim + d), two)
            d = int32(d + FACTOR_THREADS)

    return Kernel(
        name=f"query_factors-{bound}-{arrays}-{int(is_summed)}",
        function=query_factors,
        parameters=("f32[]", "f32[]", "i32", "i32", "i32"),
        num_threads=FACTOR_THREADS,
        max_registers=32,
        load_bytes=4,
    )


def factors_size(batch: int, shape: ScoreShape, head_dim: int) -> int:
    """Return the float32 numbers of workspace that scoring a batch needs."""
    if shape.share == REQUEST:
        return batch * shape.arrays * shape.factor_rows * head_dim
    return batch * shape.factor_rows * most_head_words(shape.arrays, head_dim)


def make_score_kernels(spec: ScoreSpec, bound: int) -> tuple[Kernel, Kernel]:
    """Return the kernel that makes factors, and the one that scores pages with them."""
    if spec.is_mma:
        return query_parts_kernel(bound, spec), score_units_kernel(spec)
    is_summed = spec.share == REQUEST
    scores = score_summed_kernel(spec) if is_summed else score_units_kernel(spec)
    return query_factors_kernel(bound, spec.arrays, is_summed), scores


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
    spec = ScoreSpec(
        head_dim, str(summaries.dtype), shape.arrays, shape.num_kv_heads, group, shape.share
    )
    make_factors, score = make_score_kernels(spec, shape.bound)
    sizes = () if spec.is_mma else (shape.factor_rows, group, head_dim)
    stream.launch(make_factors, batch * shape.factor_rows, queries, workspace, *sizes)
    chunks = -(-stride // spec.block_pages)
    stream.launch(
        score, batch * chunks, workspace, summaries, page_indptr, page_ids, scores, stride,
        chunks, np.float32(sm_scale),
    )  # fmt: skip
