"""How a warp scores eight pages: products of summary rows and factors (see `score`)."""

from dataclasses import dataclass

import numpy as np

from numbadsd.kernels.cuda.ops import cuda, device, float32, int64, shfl_xor, uint32
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
)
from numbadsd.kernels.score_shape import KV_HEAD

NUM_WARPS = 4
BLOCK_BYTES = 128 << 10  # of summaries: enough that a block's start costs little
MAX_PASSES = 8  # of eight pages in a block
_ZERO = float32(0)
_NEG_INF = float32(-np.inf)
_NAN = float32(np.nan)


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
    load_vector = make_load_vector(row, row.chunk_words, not is_streamed)
    dot_vector, unpack = make_dot_vector(row), UNPACK[spec.summary_dtype]
    vector, head_dim, chunks = row.vector, row.head_dim, row.chunks
    is_whole = row.chunk_words == row.words
    most = 4 if heads == 4 else 8  # factors of four heads take the registers of the other loads
    batch = max(n for n in range(1, most + 1) if chunks % n == 0)
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
        if is_whole or d < head_dim:
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


def make_summed_pages(spec: ScoreSpec):
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


def make_unit_pages(spec: ScoreSpec):
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
