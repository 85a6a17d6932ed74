"""What kernels of page scores share: constants, and multiply-add products (see `score`)."""

from collections.abc import Callable
from dataclasses import dataclass

from numbadsd.kernels.cuda.ops import cuda, device, float32, fma, load4, uint32
from numbadsd.kernels.cuda.tiles import (
    CHUNK_WORDS,
    QUAD_ROWS,
    UNPACK,
    Row,
    make_load_vector,
    unroll,
)
from numbadsd.kernels.score_shape import REQUEST

NUM_WARPS = 4
NUM_THREADS = 32 * NUM_WARPS
SCORE_PARAMETERS = ("u32[]", "i32[]", "i32[]", "f32[]", "i32", "i32", "f32")  # after factors
BLOCK_BYTES = 128 << 10  # of summaries: enough that a block's start costs little
MAX_BLOCK_PAGES = 64
MAX_LOADS = 8  # of 16 bytes that a lane starts before it uses the first
_MMA_MAX_HEAD_DIM = 128  # beyond it, two rows of each quad do not fit in registers
NO_PAGE = 1 << 30  # of a pass: beyond all


@device
def larger(a, b):
    """Return the larger number; NaN if any is NaN."""
    return b if b > a or b != b else a


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
    def is_mma(self) -> bool:
        """Tell whether tensor cores multiply."""
        return (
            self.share != REQUEST
            and self.summary_dtype != "float32"
            and self.head_dim <= _MMA_MAX_HEAD_DIM
        )

    @property
    def head_warps(self) -> int:
        """Warps that take different kv heads of the same pages."""
        return min(NUM_WARPS, 1 << (self.num_kv_heads.bit_length() - 1))

    @property
    def pass_pages(self) -> int:
        """Pages that a warp scores at once; where there are several lists, two rows a quad."""
        return QUAD_ROWS if self.share == REQUEST else 2 * QUAD_ROWS

    @property
    def block_pages(self) -> int:
        """Pages that a block takes: as many passes for each of its page warps."""
        page_bytes = self.row.words * 4 * self.arrays * self.num_kv_heads
        wanted = min(MAX_BLOCK_PAGES, BLOCK_BYTES // page_bytes)
        pass_pages = self.pass_pages * (NUM_WARPS // self.head_warps)
        return max(1, wanted // pass_pages) * pass_pages


@dataclass(frozen=True)
class ScoreWay:
    """How a warp scores 16 pages for a few heads of a kv head.

    Attributes
    ----------
    heads : int
        Query heads that it takes at once.
    lane_scores : int
        Scores that a lane ends with.
    head_words, request_words : int
        From a head's factors to the next one's, from a request's to the next one's.
    kept_type, kept_size
        What a warp keeps in shared memory: type and number of elements.
    keep : callable
        (factors, first, kept, first_kept, lane): put there what all pages need.
    score_rows : callable
        (kept, first_kept, summaries, low, high, scores, lane): write the lane's
        scores; the summaries of its quad's pages g, g + 8 start at the words `low`, `high`.
    place : callable
        (i, lane): head and page of score i; heads beyond the way's repeat one of them.
    largest : callable
        (scores, lane): the largest score of any head for a page, and the page; or NO_PAGE.
    factors : str
        The kernel's parameter.
    max_registers, load_bytes : int
        As of a `Kernel`.
    """

    heads: int
    lane_scores: int
    head_words: int
    request_words: int
    kept_type: object
    kept_size: int
    keep: Callable
    score_rows: Callable
    place: Callable
    largest: Callable
    factors: str
    max_registers: int
    load_bytes: int


def row_loads(spec: ScoreSpec, rows: int) -> int:
    """Return the loads of 16 bytes that a lane starts at once, for some rows of each quad."""
    return rows * _batch(spec.row.chunks, rows)


def _batch(chunks: int, rows: int) -> int:
    """Return the chunks of each row that are read at once: as few batches as can be, alike."""
    batches = -(-chunks * rows // MAX_LOADS)
    return -(-chunks // batches)


def _make_multiply(row: Row, heads: int, rows: int):
    """Return ``multiply``: add products of chunk i of a batch, factors read once for all rows."""
    unpack, vector, head_dim = UNPACK[row.kv_dtype], row.vector, row.head_dim
    is_whole, unpacked = row.chunk_words == row.words, (rows, vector)

    @device
    def multiply(i, words, factors, first, column, sums):
        elements = cuda.local.array(unpacked, float32)
        for r in range(rows):
            j = rows * i + r
            x = unpack((words[j, 0], words[j, 1], words[j, 2], words[j, 3]))
            for e in range(vector):
                elements[r, e] = x[e]
        d = column + i * (4 * vector)
        if is_whole or d < head_dim:
            for h in range(heads):
                for quarter in range(vector // 4):
                    f = load4(factors, first + (h * head_dim + d + 4 * quarter))
                    for r in range(rows):
                        for e in range(4):
                            sums[r, h] = fma(elements[r, 4 * quarter + e], f[e], sums[r, h])

    return multiply


def make_row_scores(spec: ScoreSpec, heads: int, rows: int, is_streamed: bool):
    """Return ``row_scores``: add products of 1 or 2 rows of a quad and `heads` rows of factors."""
    row = spec.row
    load_vector = make_load_vector(row, row.chunk_words, not is_streamed)
    multiply, vector = _make_multiply(row, heads, rows), row.vector
    batch = _batch(row.chunks, rows)
    whole, rest, held = row.chunks // batch, row.chunks % batch, (batch * rows, 4)

    @device
    def load(i, words, summaries, bases, offset):
        for r in range(rows):
            x = load_vector(summaries, bases[r], offset + i * CHUNK_WORDS)
            for w in range(4):
                words[rows * i + r, w] = x[w]

    def make_add(size: int):
        load_batch, multiply_batch = unroll(load, size), unroll(multiply, size)

        @device
        def add(chunk, words, summaries, bases, factors, first, sums, t):
            load_batch(words, summaries, bases, chunk * CHUNK_WORDS + t * 4)
            multiply_batch(words, factors, first, (chunk * 4 + t) * vector, sums)

        return add

    add_whole, add_rest = make_add(batch), make_add(max(1, rest))

    @device
    def row_scores(summaries, bases, factors, first, sums, t):
        words = cuda.local.array(held, uint32)
        for b in range(whole):
            add_whole(b * batch, words, summaries, bases, factors, first, sums, t)
        if rest > 0:
            add_rest(whole * batch, words, summaries, bases, factors, first, sums, t)

    return row_scores
