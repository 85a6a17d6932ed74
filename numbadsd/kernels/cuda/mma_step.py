"""One step of a warp's attention on tensor cores: 16 tokens, eight heads, softmax to base 2.

    products [head, token] = queries [16, d] x keys [d, token]        rows of a head: see `mma_way`
    sums [d, head]        += values [d, 16 tokens] x weights [16 tokens, head]

Operands go from memory to where the instruction wants them without any exchange: a sum over d may
take d in any order, so a lane reads 16 bytes of a row; products come out where weights go in. Only
values of two tokens are put side by side, one `prmt` a word.

Lane 4 g + t: keys of tokens g and g + 8; products of head g and tokens 2 t, 2 t + 1 (+ 8); values
of these tokens, of which the words with index g; sums of these words' d, for heads 2 t, 2 t + 1.
"""

import numpy as np

from numbadsd.kernels.cuda.attend_spec import TOKENS, softmax_shift
from numbadsd.kernels.cuda.mma_parts import (
    CHAIN,
    KEY_LANES,
    STEP,
    WEIGHT_SCALE,
    Halves,
    Piece,
    pieces,
)
from numbadsd.kernels.cuda.ops import (
    cuda,
    device,
    ex2,
    float32,
    fma,
    fmax,
    load1,
    load4,
    pack_high,
    pack_low,
    shfl_from,
    shfl_xor,
    stream4,
    uint32,
)
from numbadsd.kernels.cuda.tiles import Row, in_turn, make_row_base, unroll

VALUE_LANES = 8  # along a row
_NEG_INF = float32(-np.inf)
_ZERO = float32(0)


def key_pieces(row: Row) -> list[Piece]:
    """Return how the four lanes of a quad share a row of K: words 2 s, 2 s + 1 for 16 d each."""
    return pieces(row.words, KEY_LANES, (4, 2))


def value_pieces(row: Row) -> list[Piece]:
    """Return how eight lanes share a row of V."""
    return pieces(row.words, VALUE_LANES, (4, 2, 1))


def make_mma_step(row: Row, halves: Halves, page_size: int, is_shared: bool, is_last: bool):
    """Return ``mma_step``; `is_last` allows that the split ends within these tokens."""
    key_words, value_words = (2, row.words // KEY_LANES), (4, row.words // VALUE_LANES)
    load_keys = _make_load_keys(row, page_size, is_shared, is_last)
    load_values = _make_load_values(row, page_size, is_shared, is_last)
    multiply_keys = _make_multiply_keys(row, halves)
    add_values = _make_add_values(row, halves)
    num_scores = 4

    @device
    def mma_step(
        keys, values, tile_rows, fragments, first_fragment, scale, acc, maximum, denominator,
        token, left, lane,
    ):  # fmt: skip
        """Add tokens [token, token + 16) to the lane's sums; return maximum and denominator.

        A lane keeps them for head g; the denominator is a part of the lane's own.
        """
        g, t = lane // 4, lane % 4
        keys_here = cuda.local.array(key_words, uint32)
        load_keys(keys, tile_rows, keys_here, token, left, g, t)
        values_here = cuda.local.array(value_words, uint32)
        load_values(values, tile_rows, values_here, token, left, g, t)  # travel during the softmax
        scores = cuda.local.array(num_scores, float32)
        multiply_keys(fragments, first_fragment, keys_here, scores, lane)
        largest = maximum
        for i in range(num_scores):
            scores[i] = scores[i] * scale
            if is_last and token + (i // 2 * 8 + 2 * t + i % 2) >= left:
                scores[i] = _NEG_INF
            largest = fmax(largest, scores[i])
        largest = fmax(largest, shfl_xor(largest, uint32(1)))
        largest = fmax(largest, shfl_xor(largest, uint32(2)))
        shift = softmax_shift(largest)
        correction = ex2(maximum - shift)
        for i in range(num_scores):
            scores[i] = ex2(scores[i] - shift) * WEIGHT_SCALE
        mass = (scores[0] + scores[1]) + (scores[2] + scores[3])
        low = shfl_from(correction, uint32(8 * t))  # of heads 2 t and 2 t + 1
        high = shfl_from(correction, uint32(8 * t + 4))
        add_values(values_here, scores, acc, low, high)
        return largest, fma(denominator, correction, mass)

    return mma_step


# ---- K and V from memory


def make_load_row(parts: list[Piece], is_shared: bool):
    """Return ``load_row(array, base, lane, words, r)``: a lane's words of a row to words[r]."""
    load = load4 if is_shared else stream4

    def one(piece: Piece):
        row_word, first, count = piece.row_word, piece.first, piece.count

        @device
        def load_vector(array, base, lane, words, r):
            x = load(array, base + (row_word + 4 * lane))
            for w in range(4):
                words[r, first + w] = x[w]

        @device
        def load_words(array, base, lane, words, r):
            for w in range(count):
                words[r, first + w] = load1(array, base + (row_word + count * lane + w))

        return load_vector if count == 4 else load_words

    return in_turn([one(piece) for piece in parts])


def _make_load_keys(row: Row, page_size: int, is_shared: bool, is_last: bool):
    """Return ``load_keys``: a lane's part of the rows g and g + 8."""
    row_base = make_row_base(row, page_size, TOKENS)
    load_row = make_load_row(key_pieces(row), is_shared)

    @device
    def load(i, keys, tile_rows, words, token, left, g, t):
        place = g + 8 * i
        if is_last:  # rows beyond the end read the last one, and count for nothing
            place = min(place, left - 1 - token)
        load_row(keys, row_base(tile_rows, token, place), t, words, i)

    return unroll(load, 2)


def _make_load_values(row: Row, page_size: int, is_shared: bool, is_last: bool):
    """Return ``load_values``: a lane's part of the rows 2 t, 2 t + 1, 2 t + 8, 2 t + 9."""
    row_base = make_row_base(row, page_size, TOKENS)
    load_row = make_load_row(value_pieces(row), is_shared)
    count = row.words // VALUE_LANES

    @device
    def load(i, values, tile_rows, words, token, left, g, t):
        place = 2 * t + (i // 2 * 8 + i % 2)
        if not is_last or token + place < left:
            load_row(values, row_base(tile_rows, token, place), g, words, i)
        elif is_last:  # its weight is 0
            for w in range(count):
                words[i, w] = uint32(0)

    return unroll(load, 4)


# ---- products


def _make_multiply_keys(row: Row, halves: Halves):
    """Return ``multiply_keys``: products of head g with tokens 2 t, 2 t + 1, and these + 8."""
    mma, steps = halves.mma, row.head_dim // STEP
    num_sums, zeros = 8, (_ZERO, _ZERO, _ZERO, _ZERO)

    @device
    def multiply(i, fragments, first, words, sums, lane):
        a = load4(fragments, (first + i * 32 + lane) * 4)
        s = i % steps
        for n in range(2):
            c = zeros
            if s % CHAIN:
                c = sums[4 * n], sums[4 * n + 1], sums[4 * n + 2], sums[4 * n + 3]
            c = mma(
                a[0], a[1], a[2], a[3], words[n, 2 * s], words[n, 2 * s + 1],
                c[0], c[1], c[2], c[3],
            )  # fmt: skip
            for j in range(4):
                sums[4 * n + j] = c[j]

    @device
    def add_chain(i, fragments, first, words, sums, scores, lane):
        multiply(i, fragments, first, words, sums, lane)
        s = i % steps
        if s % CHAIN == CHAIN - 1 or s == steps - 1:
            for n in range(2):
                for j in range(2):
                    scores[2 * n + j] += sums[4 * n + j]
                    if i < steps:  # of the second product, rows g + 8 mean nothing
                        scores[2 * n + j] += sums[4 * n + j + 2]

    add_chains = unroll(add_chain, halves.query_tiles * steps)

    @device
    def multiply_keys(fragments, first, words, scores, lane):
        for i in range(4):
            scores[i] = _ZERO
        sums = cuda.local.array(num_sums, float32)
        add_chains(fragments, first, words, sums, scores, lane)

    return multiply_keys


def _make_add_values(row: Row, halves: Halves):
    """Return ``add_values``: sums of every d, corrected, plus those of these tokens."""
    mma, num_parts, part, pack = halves.mma, halves.num_parts, halves.part, halves.pack
    weights_shape, zeros = (num_parts, 2), (_ZERO, _ZERO, _ZERO, _ZERO)

    @device
    def split(i, weights, scores):
        """Part i of the weights, as words; what they lack of it stays in `scores`."""
        for n in range(2):
            low, high = part(scores[2 * n]), part(scores[2 * n + 1])
            weights[i, n] = pack(low, high)
            scores[2 * n] = scores[2 * n] - low
            scores[2 * n + 1] = scores[2 * n + 1] - high

    @device
    def split_last(weights, scores):
        for n in range(2):
            weights[num_parts - 1, n] = pack(scores[2 * n], scores[2 * n + 1])

    @device
    def add(i, words, weights, acc, low, high):
        a0, a1 = pack_low(words[0, i], words[1, i]), pack_high(words[0, i], words[1, i])
        a2, a3 = pack_low(words[2, i], words[3, i]), pack_high(words[2, i], words[3, i])
        c = zeros
        for p in range(num_parts):
            c = mma(a0, a1, a2, a3, weights[p, 0], weights[p, 1], c[0], c[1], c[2], c[3])
        acc[i, 0], acc[i, 1] = fma(acc[i, 0], low, c[0]), fma(acc[i, 1], high, c[1])
        acc[i, 2], acc[i, 3] = fma(acc[i, 2], low, c[2]), fma(acc[i, 3], high, c[3])

    split_parts = unroll(split, num_parts - 1)
    add_all = unroll(add, row.words // VALUE_LANES)

    @device
    def add_values(words, scores, acc, low, high):
        weights = cuda.local.array(weights_shape, uint32)
        split_parts(weights, scores)
        split_last(weights, scores)
        add_all(words, weights, acc, low, high)

    return add_values
