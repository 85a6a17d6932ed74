"""Factors of page scores as tensor cores multiply them: sums of halves (see `score_mma`).

What a head has for each vector of a summary, as words of two halves, for 16 d (a step) at a time:

    [product, step, t, 4]    first product: parts 1, 2    second product, bfloat16: part 3, 0

The four words are part 1 of the lane's word 2 step of a row, part 2 of it, part 1 of the word after
it, part 2 of that. Then comes the number that undoes the head's scale, as often as fits. No part of
a factor is 0 unless the factor is: an infinite summary gives what it gives in float32.
"""

from dataclasses import dataclass
from functools import cache

from numbadsd.kernels import shared
from numbadsd.kernels.cuda.launch import Kernel
from numbadsd.kernels.cuda.mma_parts import HALVES, make_key_word, make_scale
from numbadsd.kernels.cuda.ops import (
    bits_to_f32,
    cuda,
    device,
    f32_to_bits,
    float32,
    int32,
    int64,
    load1,
    store1,
    uint32,
)
from numbadsd.kernels.cuda.score_tiles import ScoreSpec

LANE_WORDS = 4  # of a lane for a step
_BANKS = 32  # a read of 16 bytes takes 16 words of two heads: they must lie 16 banks apart
# The largest |q| of a head is brought below 2^(this + 1); a part is at least the smallest half.
_TOP_EXPONENTS = {"float16": 14, "bfloat16": 0}
_SMALLEST = {"float16": float32(2.0**-24), "bfloat16": float32(2.0**-133)}
_ZERO, _ONE = float32(0), float32(1)

_first_factor = device(shared.first_factor)
_second_factor = device(shared.second_factor)


@dataclass(frozen=True)
class PartsLayout:
    """Where the words of a head are."""

    spec: ScoreSpec

    @property
    def products(self) -> int:
        """Products of 16 rows for eight heads: two parts fit in one."""
        return HALVES[self.spec.summary_dtype].query_tiles

    @property
    def array_words(self) -> int:
        """Words for a vector of a summary."""
        return self.spec.head_dim * self.products

    @property
    def inverse(self) -> int:
        """The word of the inverse scale."""
        return self.spec.arrays * self.array_words

    @property
    def head_words(self) -> int:
        """Words of a head."""
        return self.inverse + _BANKS - (self.inverse + _BANKS // 2) % _BANKS


def most_head_words(arrays: int, head_dim: int) -> int:
    """Return the words of a head, of whatever type summaries are."""
    return arrays * head_dim * max(h.query_tiles for h in HALVES.values()) + _BANKS


def _make_store_pair(layout: PartsLayout):
    """Return ``store_pair``: the parts of the factors of two neighbours."""
    halves, smallest = HALVES[layout.spec.summary_dtype], _SMALLEST[layout.spec.summary_dtype]
    part, pack, is_tripled = halves.part, halves.pack, halves.num_parts == 3
    second_product = layout.spec.head_dim

    @device
    def at_least(x, low):
        return low if x < low else x  # NaN stays NaN

    @device
    def signed(x, sign):
        return bits_to_f32(uint32(f32_to_bits(x) | sign))

    @device
    def split(x):
        """Three parts of x with its sign; of two, the last two have to be added."""
        sign = uint32(f32_to_bits(x) & uint32(0x80000000))
        rest = bits_to_f32(uint32(f32_to_bits(x) ^ sign))
        low = smallest if rest > _ZERO else _ZERO
        first = at_least(part(rest), low)
        rest = at_least(rest - first, low)
        second = rest
        if is_tripled:
            second = at_least(part(rest), low)
            rest = at_least(rest - second, low)
        return signed(first, sign), signed(second, sign), signed(rest, sign)

    @device
    def store_pair(factors, place, x, y):
        x1, x2, x3 = split(x)
        y1, y2, y3 = split(y)
        store1(factors, place, pack(x1, y1))
        store1(factors, place + 1, pack(x2, y2))
        if is_tripled:
            store1(factors, place + second_product, pack(x3, y3))
            store1(factors, place + (second_product + 1), uint32(0))

    return store_pair


@cache
def query_parts_kernel(bound: int, spec: ScoreSpec) -> Kernel:
    """Return the kernel that makes parts of factors [B, H, head_words] of queries [B, H, D].

    Work      one block per (request, query head)
    Block     one warp, a lane for the words of two d
    Writes    every word once
    """
    layout, head_dim, arrays = PartsLayout(spec), spec.head_dim, spec.arrays
    scale = make_scale(head_dim, _TOP_EXPONENTS[spec.summary_dtype])
    store_pair, key_word = _make_store_pair(layout), make_key_word(spec.row.words)
    head_words, array_words, inverse_word = layout.head_words, layout.array_words, layout.inverse
    turns, pairs, tail_words = -(-head_dim // 64), head_dim // 2, head_words - inverse_word

    def query_parts(queries, factors):
        lane, block = int32(cuda.threadIdx.x), int32(cuda.blockIdx.x)
        first, base = int64(block) * head_dim, int64(block) * head_words
        factor, inverse = scale(queries, first, _ONE, lane)
        for turn in range(turns):
            i = int32(lane + 32 * turn)
            if i < pairs:
                t, half = (i >> int32(1)) & int32(3), i & int32(1)  # i: [step, t, half]
                place = key_word(int32((i >> int32(3)) * 2 + half), t)
                x = load1(queries, first + int32(2 * place)) * factor
                y = load1(queries, first + int32(2 * place + 1)) * factor
                pair = base + int32(2 * i)
                store_pair(factors, pair, _first_factor(bound, x), _first_factor(bound, y))
                if arrays == 2:
                    x, y = _second_factor(bound, x), _second_factor(bound, y)
                    store_pair(factors, pair + array_words, x, y)
        if lane < tail_words:
            store1(factors, base + (inverse_word + lane), f32_to_bits(inverse))

    return Kernel(
        name=f"query_parts-{bound}-{spec.name}",
        function=query_parts,
        parameters=("f32[]", "u32[]"),
        num_threads=32,
        max_registers=64,
        load_bytes=4,
        low_occupancy="a warp a head: it never fills a device",
    )
