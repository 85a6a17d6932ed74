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
from numbadsd.kernels.cuda.launch import DeviceArray, Kernel, check_array, check_stored
from numbadsd.kernels.cuda.ops import cuda, device, float32, int64, quotient
from numbadsd.kernels.cuda.score_summed import score_summed_kernel
from numbadsd.kernels.cuda.score_tiles import ScoreSpec
from numbadsd.kernels.cuda.score_units import score_units_kernel
from numbadsd.kernels.cuda.tiles import QUAD_ROWS
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
    kernel = score_summed_kernel if is_summed else score_units_kernel
    chunks = -(-stride // (spec.passes * QUAD_ROWS))
    stream.launch(
        kernel(spec), batch * chunks, workspace, summaries, page_indptr, page_ids,
        scores, stride, chunks, np.float32(sm_scale),
    )  # fmt: skip
