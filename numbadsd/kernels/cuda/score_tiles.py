"""How a warp scores eight pages: products of summary rows and factors (see `score`)."""

from dataclasses import dataclass

from numbadsd.kernels.cuda.ops import cuda, device, uint32
from numbadsd.kernels.cuda.tiles import (
    CHUNK_WORDS,
    QUAD_ROWS,
    UNPACK,
    Row,
    make_dot_vector,
    make_load_vector,
    unroll,
)

NUM_WARPS = 4
NUM_THREADS = 32 * NUM_WARPS
SCORE_PARAMETERS = ("f32[]", "u32[]", "i32[]", "i32[]", "f32[]", "i32", "i32", "f32")
BLOCK_BYTES = 128 << 10  # of summaries: enough that a block's start costs little
MAX_PASSES = 8  # of eight pages in a block
MAX_LOADS = 8  # of 16 bytes that a lane starts before it uses the first


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
    def name(self) -> str:
        """The constants, but for the share, as a part of a file name."""
        return (
            f"{self.head_dim}-{self.summary_dtype}-{self.arrays}-{self.num_kv_heads}-{self.group}"
        )

    @property
    def row(self) -> Row:
        """A summary's vector of one kv head."""
        return Row(self.head_dim, self.summary_dtype)

    @property
    def load_bytes(self) -> int:
        """Bytes that a lane has in flight at once."""
        return 16 * min(MAX_LOADS, self.row.chunks)

    @property
    def head_warps(self) -> int:
        """Warps that take different kv heads of the same pages."""
        return min(NUM_WARPS, 1 << (self.num_kv_heads.bit_length() - 1))

    @property
    def passes(self) -> int:
        """Groups of eight pages that a block takes, a multiple of its page warps."""
        row_bytes = self.row.words * 4
        page_bytes = row_bytes * self.arrays * self.num_kv_heads
        wanted = min(MAX_PASSES, max(1, BLOCK_BYTES // (page_bytes * QUAD_ROWS)))
        page_warps = NUM_WARPS // self.head_warps
        return -(-wanted // page_warps) * page_warps


def make_row_scores(spec: ScoreSpec, heads: int, is_streamed: bool):
    """Return ``row_scores``: add products of one summary row and `heads` rows of factors."""
    row = spec.row
    load_vector = make_load_vector(row, row.chunk_words, not is_streamed)
    dot_vector, unpack = make_dot_vector(row), UNPACK[spec.summary_dtype]
    vector, head_dim, chunks = row.vector, row.head_dim, row.chunks
    is_whole = row.chunk_words == row.words
    batch = max(n for n in range(1, MAX_LOADS + 1) if chunks % n == 0)
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
