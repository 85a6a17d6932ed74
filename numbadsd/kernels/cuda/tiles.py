"""How a warp reads rows of head_dim elements, and what it multiplies them by.

Dot products ("quads"): four lanes share a row, eight rows a warp. Lane 4 g + t reads 16 bytes of
row g in each chunk: a sum over a row takes two shuffles, and factors are the same for all rows.

    chunk c of row g:   | t = 0 | t = 1 | t = 2 | t = 3 |      16 bytes each, words 16 c + 4 t ..

Weighted sums ("columns"): lanes lie along the row, so that a sum over rows stays in a lane.
"""

from dataclasses import dataclass

from numbadsd.kernels.cuda.ops import (
    bf16_high,
    bf16_low,
    bits_to_f32,
    device,
    f16_high,
    f16_low,
    fma,
    int32,
    load1,
    load4,
    shfl_xor,
    stream4,
    uint32,
)  # fmt: skip

QUAD_ROWS = 8  # rows that a warp multiplies at once
CHUNK_WORDS = 16  # of a row, read by its four lanes
WORD_BYTES = 4


def unroll(body, times: int):
    """Return a device function that calls body(i, *arguments) for i in 0 .. times - 1.

    The compiler unrolls short bodies only; in a loop that it keeps, a lane's arrays would have to
    be in memory instead of registers.
    """
    if times == 1:

        @device
        def once(*arguments):
            body(0, *arguments)

        return once
    before, last = unroll(body, times - 1), times - 1

    @device
    def unrolled(*arguments):
        before(*arguments)
        body(last, *arguments)

    return unrolled


def in_turn(functions: list):
    """Return a device function that calls all of them with its arguments."""
    if len(functions) == 1:
        return functions[0]
    before, last = in_turn(functions[:-1]), functions[-1]

    @device
    def call_all(*arguments):
        before(*arguments)
        last(*arguments)

    return call_all


@dataclass(frozen=True)
class Row:
    """A row of `head_dim` elements as a warp reads it."""

    head_dim: int
    kv_dtype: str

    @property
    def vector(self) -> int:
        """Elements of 16 bytes."""
        return 4 if self.kv_dtype == "float32" else 8

    @property
    def words(self) -> int:
        """32-bit words of a row."""
        return self.head_dim * 4 // self.vector

    @property
    def chunks(self) -> int:
        """Reads of a quad; the last one reaches beyond some rows."""
        return -(-self.words // CHUNK_WORDS)

    @property
    def chunk_words(self) -> int:
        """Words that the chunks of a quad reach, the row's or more."""
        return self.chunks * CHUNK_WORDS

    @property
    def column_words(self) -> int:
        """Words that the lanes of a column order reach, the row's or more."""
        return self.lanes * self.vectors_per_lane * 4

    @property
    def lanes(self) -> int:
        """Lanes along a row in column order, a power of two."""
        vectors = self.words // 4
        return min(32, 1 << (vectors - 1).bit_length())

    @property
    def vectors_per_lane(self) -> int:
        """Vectors of each of these lanes."""
        return -(-self.words // 4 // self.lanes)


@device
def _unpack_f32(words):
    return (
        bits_to_f32(words[0]),
        bits_to_f32(words[1]),
        bits_to_f32(words[2]),
        bits_to_f32(words[3]),
    )


@device
def _unpack_f16(words):
    return (
        f16_low(words[0]), f16_high(words[0]), f16_low(words[1]), f16_high(words[1]),
        f16_low(words[2]), f16_high(words[2]), f16_low(words[3]), f16_high(words[3]),
    )  # fmt: skip


@device
def _unpack_bf16(words):
    return (
        bf16_low(words[0]), bf16_high(words[0]), bf16_low(words[1]), bf16_high(words[1]),
        bf16_low(words[2]), bf16_high(words[2]), bf16_low(words[3]), bf16_high(words[3]),
    )  # fmt: skip


UNPACK = {"float32": _unpack_f32, "float16": _unpack_f16, "bfloat16": _unpack_bf16}


def make_load_vector(row: Row, reach_words: int, is_shared: bool):
    """Return ``load_vector(words, base, offset)``: 16 bytes at base + offset within a row.

    `offset` is below `reach_words`; beyond the row it gives zeros. `is_shared` keeps what other
    warps of the block read too in the L1 cache.
    """
    load = load4 if is_shared else stream4
    row_words = row.words

    @device
    def load_within(words, base, offset):
        zero = uint32(0)
        loaded = (zero, zero, zero, zero)
        if offset < row_words:
            loaded = load(words, base + offset)
        return loaded

    @device
    def load_whole(words, base, offset):
        return load(words, base + offset)

    return load_whole if reach_words == row_words else load_within


def make_row_base(row: Row, page_size: int, step_tokens: int):
    """Return ``row_base(tile_rows, first, token)``: the first word of a token's row.

    Where pages hold whole steps of `step_tokens`, one look at the page list serves a step, which
    starts at `first`.
    """
    row_words = row.words

    @device
    def divide(place):
        page = uint32(uint32(place) // uint32(page_size))
        return int32(page), int32(uint32(place) - page * uint32(page_size))

    @device
    def one_page(tile_rows, first, token):
        page, slot = divide(first)
        return (load1(tile_rows, page) + (slot + token)) * row_words

    @device
    def any_page(tile_rows, first, token):
        page, slot = divide(first + token)
        return (load1(tile_rows, page) + slot) * row_words

    return one_page if page_size % step_tokens == 0 else any_page


def make_dot_vector(row: Row):
    """Return ``dot_vector(elements, factors, base, total)``: total + elements . factors[base:]."""
    vector = row.vector

    @device
    def dot_vector(elements, factors, base, total):
        for quarter in range(vector // 4):
            f = load4(factors, base + 4 * quarter)
            for lane in range(4):
                total = fma(elements[4 * quarter + lane], f[lane], total)
        return total

    return dot_vector


@device
def quad_sum(x):
    """Return the sum over the four lanes of a quad; every lane has it."""
    x = x + shfl_xor(x, uint32(1))
    return x + shfl_xor(x, uint32(2))


@device
def _quad_sum_1(sums, t):
    return quad_sum(sums[0])


@device
def _quad_sum_2(sums, t):
    odd = t & 1 != 0
    keep = sums[1] if odd else sums[0]
    give = sums[0] if odd else sums[1]
    x = keep + shfl_xor(give, uint32(1))
    return x + shfl_xor(x, uint32(2))


@device
def _quad_sum_4(sums, t):
    odd = t & 1 != 0
    keep0 = sums[1] if odd else sums[0]
    keep1 = sums[3] if odd else sums[2]
    give0 = sums[0] if odd else sums[1]
    give1 = sums[2] if odd else sums[3]
    a = keep0 + shfl_xor(give0, uint32(1))
    b = keep1 + shfl_xor(give1, uint32(1))
    high = t & 2 != 0
    keep = b if high else a
    give = a if high else b
    return keep + shfl_xor(give, uint32(2))


# quad_sums[n](sums, t): the sums of n numbers over a quad; lane t has the one of number t % n. All
# are (lane 0 + 1) + (lane 2 + 3), so that a number has the same bits beside any others.
QUAD_SUMS = {1: _quad_sum_1, 2: _quad_sum_2, 4: _quad_sum_4}


@device
def rows_sum(x):
    """Return the sum over the eight rows of a warp, for each t."""
    x = x + shfl_xor(x, uint32(4))
    x = x + shfl_xor(x, uint32(8))
    return x + shfl_xor(x, uint32(16))


def heads_of_warp(heads: int) -> int:
    """Return the heads that a warp multiplies a row with: 1, 2 or 4."""
    return 1 if heads == 1 else 2 if heads == 2 else 4
