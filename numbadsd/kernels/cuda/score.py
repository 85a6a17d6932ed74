"""Page scores on a device: how well the summary of a page matches the queries of each unit.

Every bound is linear in the summary's vectors (see `shared.first_factor`), so a page's score is a
dot product of its summary with factors that are made once a step:

    share = request     factors summed over the group, products summed over all kv heads
    kv_head             the largest of the group's scores
    query_head          each head's own score

A block takes a request's pages [8 n i, 8 n (i + 1)); warps take different kv heads of eight pages
at a time, four lanes a page (`tiles`: quads).
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from numbadsd.kernels import shared
from numbadsd.kernels.cuda.launch import DeviceArray, Kernel, check_array
from numbadsd.kernels.cuda.ops import (
    cuda,
    device,
    float32,
    int64,
    quotient,
    shfl_xor,
    uint32,
)  # fmt: skip
from numbadsd.kernels.cuda.tiles import (
    CHUNK_WORDS,
    QUAD_ROWS,
    QUAD_SUMS,
    UNPACK,
    Row,
    make_dot_vector,
    make_load_vector,
    quad_sum,
    unroll,
)  # fmt: skip
from numbadsd.kernels.score_shape import KV_HEAD, REQUEST, ScoreShape, score_shape

NUM_WARPS = 4
NUM_THREADS = 32 * NUM_WARPS
BLOCK_BYTES = 128 << 10  # of summaries: enough that a block's start costs little
MAX_PASSES = 8  # of eight pages in a block
FACTOR_THREADS = 128
_ZERO = float32(0)
_NEG_INF = float32(-np.inf)
_NAN = float32(np.nan)

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


@dataclass(frozen=True)
class ScoreSpec:
    """Compile-time constants of the score kernel."""

    head_dim: int
    summary_dtype: str
    arrays: int
    num_kv_heads: int
    group: int
    share: int  # a code of score_shape

    @property
    def head_warps(self) -> int:
        """Warps that take different kv heads of the same pages."""
        return min(NUM_WARPS, 1 << (self.num_kv_heads.bit_length() - 1))

    @property
    def passes(self) -> int:
        """Groups of eight pages that a block takes, a multiple of its page warps."""
        row_bytes = Row(self.head_dim, self.summary_dtype).words * 4
        page_bytes = row_bytes * self.arrays * self.num_kv_heads
        wanted = min(MAX_PASSES, max(1, BLOCK_BYTES // (page_bytes * QUAD_ROWS)))
        page_warps = NUM_WARPS // self.head_warps
        return -(-wanted // page_warps) * page_warps


def _make_row_scores(spec: ScoreSpec, heads: int, is_streamed: bool):
    """Return ``row_scores``: add products of one summary row and `heads` rows of factors."""
    row = Row(spec.head_dim, spec.summary_dtype)
    load_vector = make_load_vector(row, row.chunks * CHUNK_WORDS, not is_streamed)
    dot_vector, unpack = make_dot_vector(row), UNPACK[spec.summary_dtype]
    vector, head_dim, chunks = row.vector, row.head_dim, row.chunks
    batch = max(n for n in range(1, 9) if chunks % n == 0)
    held = (batch, 4)

    @device
    def load(i, words, summaries, base, offset):
        x = load_vector(summaries, base, offset + i * CHUNK_WORDS)
        for w in range(4):
            words[i, w] = x[w]

    @device
    def multiply(i, words, factors, first, column, sums):
        x = unpack((words[i, 0], words[i, 1], words[i, 2], words[i, 3]))
        d = column + i * (4 * vector)
        if d < head_dim:
            for h in range(heads):
                sums[h] = dot_vector(x, factors, first + h * head_dim + d, sums[h])

    load_batch, multiply_batch = unroll(load, batch), unroll(multiply, batch)

    @device
    def row_scores(summaries, base, factors, first, sums, t):
        words = cuda.local.array(held, uint32)
        for b in range(chunks // batch):
            chunk = b * batch
            load_batch(words, summaries, base, chunk * CHUNK_WORDS + t * 4)
            multiply_batch(words, factors, first, (chunk * 4 + t) * vector, sums)

    return row_scores


def _make_summed_pages(spec: ScoreSpec):
    """Return ``score_page``: a page's score summed over the kv heads of a warp."""
    row_scores = _make_row_scores(spec, 1, True)
    arrays, kv_heads, head_warps = spec.arrays, spec.num_kv_heads, spec.head_warps
    head_dim, words = spec.head_dim, Row(spec.head_dim, spec.summary_dtype).words

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


def _make_unit_pages(spec: ScoreSpec):
    """Return ``score_page``: write the scores of a page for the units of a warp's kv heads."""
    heads = 4 if spec.group >= 4 else 2 if spec.group >= 2 else 1
    blocks = -(-spec.group // heads)
    row_scores, quad_sums = _make_row_scores(spec, heads, blocks == 1), QUAD_SUMS[heads]
    arrays, kv_heads, head_warps = spec.arrays, spec.num_kv_heads, spec.head_warps
    head_dim, words = spec.head_dim, Row(spec.head_dim, spec.summary_dtype).words
    group, is_largest = spec.group, spec.share == KV_HEAD
    num_heads = group * kv_heads
    last_head = group - heads  # a short last block scores some heads once more

    @device
    def score_page(
        summaries, factors, first_factor, page, head_warp, t, scores, first_score, stride,
        is_page, scale,
    ):  # fmt: skip
        sums = cuda.local.array(heads, float32)
        for kv_head in range(head_warp, kv_heads, head_warps):
            best, is_nan = _NEG_INF, False
            for block in range(blocks):
                head = kv_head * group + min(block * heads, last_head)
                for h in range(heads):
                    sums[h] = _ZERO
                for a in range(arrays):
                    base = ((page * arrays + a) * kv_heads + kv_head) * words
                    row_scores(
                        summaries, base, factors, first_factor + (a * num_heads + head) * head_dim,
                        sums, t,
                    )  # fmt: skip
                score = quad_sums(sums, t)
                is_nan = is_nan or score != score
                best = score if score > best else best
                if not is_largest and is_page and t < heads:
                    scores[first_score + int64(head + t) * stride] = score * scale
            if is_largest:
                best = _NAN if is_nan else best
                for other in range(2):
                    theirs = shfl_xor(best, uint32(1 + other))
                    best = theirs if theirs > best or theirs != theirs else best
                if is_page and t == 0:
                    scores[first_score + int64(kv_head) * stride] = best * scale

    return score_page


@cache
def score_pages_kernel(spec: ScoreSpec) -> Kernel:
    """Return the kernel of page scores.

    Work      one block per (request, 8 n pages)
    Block     4 warps, over kv heads first, then over pages
    Writes    scores[request, unit, position], every element once; -inf beyond a request's pages
    Bytes     reads arrays G D e per page, once; factors through the L1 cache
    """
    is_summed = spec.share == REQUEST
    score_page = _make_summed_pages(spec) if is_summed else _make_unit_pages(spec)
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
        max_registers=96,
        load_bytes=16 * min(8, Row(head_dim, spec.summary_dtype).chunks),
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
    check_array("summaries", summaries, (*summaries.shape[:-1], head_dim))
    check_array("page_indptr", page_indptr, (batch + 1,), np.int32)
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
