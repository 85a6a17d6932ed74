"""Float32 numbers as sums of halves, and rows as lanes share them, for products on tensor cores.

A product of halves is exact and is added in float32; what costs accuracy is to round a query or a
weight to a half. So it goes in as a sum: float16 keeps 11 bits, of two parts 22; bfloat16 keeps 8,
of three parts 24. Every part but the last is the largest half below the rest, so that all have one
sign and none is 0 (of float16, for numbers of 1 or more): infinite keys and values then give what
they give in float32.
"""

from collections.abc import Callable
from dataclasses import dataclass

from numbadsd.kernels.cuda.ops import (
    bits_to_f32,
    device,
    f32_to_bits,
    float32,
    fmax,
    int32,
    load1,
    mma_bf16,
    mma_f16,
    pack_bf16,
    pack_f16,
    shfl_xor,
    uint32,
)

STEP = 16  # d that a product adds
CHAIN = 4  # products that one sum goes through: each rounds it towards 0, plain sums do not
KEY_LANES = 4  # along a row whose products are added
_ZERO = float32(0)

# Weights are at most 1; the last part of a small one must not vanish among the float16 numbers.
WEIGHT_SCALE = float32(2.0**15)
WEIGHT_UNSCALE = float32(2.0**-15)


def _make_part(kept_bits: int):
    """Return ``part(x)``: the nearest number towards 0, not x itself, with so many bits."""
    mask = 0xFFFFFFFF << (24 - kept_bits) & 0xFFFFFFFF

    @device
    def part(x):
        bits = f32_to_bits(x)
        return bits_to_f32(uint32((bits - min(bits, uint32(1))) & uint32(mask)))

    return part


@dataclass(frozen=True)
class Halves:
    """How one stored type multiplies.

    Attributes
    ----------
    mma, pack, part : callable
        The product of a warp; two numbers to a word; see `_make_part` (x is not negative).
    num_parts : int
        Of a number.
    query_tiles : int
        Products of 16 rows for eight heads: two parts fit in one.
    is_scaled : bool
        Whether queries have to be brought into the range of the type.
    """

    mma: Callable
    pack: Callable
    part: Callable
    num_parts: int
    query_tiles: int
    is_scaled: bool


HALVES = {
    "float16": Halves(mma_f16, pack_f16, _make_part(11), 2, 1, True),
    "bfloat16": Halves(mma_bf16, pack_bf16, _make_part(8), 3, 2, False),
}


@dataclass(frozen=True)
class Piece:
    """Words of a row that its lanes read at once, `count` neighbours each."""

    row_word: int  # the first one's
    first: int  # of a lane's words
    count: int


def pieces(row_words: int, lanes: int, counts: tuple[int, ...]) -> list[Piece]:
    """Return how `lanes` lanes share a row, with as many neighbours each as fit."""
    parts, word = [], 0
    while word < row_words:
        count = next(n for n in counts if n * lanes <= row_words - word)
        parts.append(Piece(word, word // lanes, count))
        word += count * lanes
    return parts


def make_key_word(row_words: int):
    """Return ``key_word(i, t)``: which word of a row the word i of lane t of a quad is.

    Reads of 16 bytes, and of 8 where less is left: a lane's words 2 s and 2 s + 1 are neighbours.
    """
    whole = row_words // (4 * KEY_LANES) * 4  # a lane's words of reads of 16 bytes

    @device
    def key_word(i, t):
        if i < whole:
            return int32((i >> int32(2)) * (4 * KEY_LANES) + 4 * t + (i & int32(3)))
        return int32(whole * KEY_LANES + 2 * t + (i - whole))

    return key_word


def make_scale(head_dim: int, top_exponent: int):
    """Return ``scale(numbers, first, factor, lane)``: a power of 2 for a row, and its inverse.

    By it a warp brings the row's largest |number factor| below 2^(top_exponent + 1), and not under
    half of that.
    """
    turns = -(-head_dim // 32)

    @device
    def scale(numbers, first, factor, lane):
        largest = _ZERO
        for turn in range(turns):
            d = int32(lane + 32 * turn)
            if d < head_dim:
                x = load1(numbers, first + d) * factor
                largest = fmax(largest, fmax(x, -x))
        for bit in range(5):
            largest = fmax(largest, shfl_xor(largest, uint32(1 << bit)))
        exponent = int32(f32_to_bits(largest) >> uint32(23))
        biased = max(int32(1), min(int32(253), int32(top_exponent + 254 - exponent)))
        inverse = bits_to_f32(uint32(uint32(254 - biased) << uint32(23)))
        return bits_to_f32(uint32(uint32(biased) << uint32(23))), inverse

    return scale
