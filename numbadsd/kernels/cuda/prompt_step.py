"""One tile of a warp's attention to a prompt: 16 query rows, 32 tokens, online softmax to base 2.

scores    lane 8 g + t: rows 4 g .. 4 g + 3 against tokens t, t + 8, t + 16, t + 24
weights   2^(score - maximum) to shared memory, [token, row]; -1 where the row comes first
sums      lanes along head_dim, each with some of the rows: every token's weight times its V row

A row meets no other, and its sums have one order, set by the positions of tokens alone.
"""

import numpy as np

from numbadsd.kernels.cuda.attend_spec import softmax_shift
from numbadsd.kernels.cuda.ops import (
    cuda,
    device,
    ex2,
    float32,
    fma,
    fmax,
    load1,
    load4,
    mul_rn,
    shfl_xor,
    store1,
    uint32,
)
from numbadsd.kernels.cuda.tiles import unroll

TILE_TOKENS = 32
WARP_ROWS = 16
WEIGHTS_STRIDE = WARP_ROWS + 4  # words of a token's weights
WARP_WEIGHTS = TILE_TOKENS * WEIGHTS_STRIDE
LANE_ROWS = 4  # and as many tokens, of the scores
TOKEN_LANES = 8
CHAIN = 16  # products that are added up one by one, before chains are: fewer roundings
_SCORES = (LANE_ROWS, TILE_TOKENS // TOKEN_LANES)
_NEG_INF = float32(-np.inf)
_ZERO = float32(0)
_HIDDEN = float32(-1)  # no weight is negative


def tile_stride(head_dim: int) -> int:
    """Return the words from one token of a tile to the next: eight tokens meet all banks."""
    return head_dim + 4


def column_lanes(head_dim: int) -> int:
    """Return the lanes along a row of sums, a power of two; each has four columns or eight."""
    return max(8, min(32, 1 << (head_dim // 4 - 1).bit_length()))


def sums_shape(head_dim: int) -> tuple[int, int]:
    """Return the rows and columns of a lane's sums."""
    lanes = column_lanes(head_dim)
    return WARP_ROWS * lanes // 32, -(-head_dim // (4 * lanes)) * 4


@device
def _dot4(a, b, total):
    for w in range(4):
        total = fma(a[w], b[w], total)
    return total


@device
def _clear_row(i, numbers):
    for j in range(numbers.shape[1]):
        numbers[i, j] = _ZERO


@device
def _multiply_row(i, queries, places, d, k0, k1, k2, k3, chain):
    q = load4(queries, places[i] + d)
    chain[i, 0] = _dot4(q, k0, chain[i, 0])
    chain[i, 1] = _dot4(q, k1, chain[i, 1])
    chain[i, 2] = _dot4(q, k2, chain[i, 2])
    chain[i, 3] = _dot4(q, k3, chain[i, 3])


@device
def _add_row(i, chain, scores):
    for j in range(4):
        scores[i, j] = scores[i, j] + chain[i, j]


def make_multiply_keys(head_dim: int):
    """Return ``multiply_keys``: the scores of a lane's four rows and four tokens, not scaled."""
    clear, add = unroll(_clear_row, LANE_ROWS), unroll(_add_row, LANE_ROWS)
    multiply, stride = unroll(_multiply_row, LANE_ROWS), tile_stride(head_dim)

    @device
    def multiply_keys(queries, places, tile, scores, t):
        chain = cuda.local.array(_SCORES, float32)
        clear(scores)
        for first in range(0, head_dim, CHAIN):
            clear(chain)
            for d in range(first, first + CHAIN, 4):
                k0 = load4(tile, t * stride + d)
                k1 = load4(tile, (t + 8) * stride + d)
                k2 = load4(tile, (t + 16) * stride + d)
                k3 = load4(tile, (t + 24) * stride + d)
                multiply(queries, places, d, k0, k1, k2, k3, chain)
            add(chain, scores)

    return multiply_keys


def make_weigh():
    """Return ``weigh``: scores become weights; unless `is_whole`, rows may come before tokens."""
    weigh_whole, weigh_last = (
        unroll(_make_weigh_row(is_last), LANE_ROWS) for is_last in (False, True)
    )

    @device
    def weigh(is_whole, scores, seen, scale, state, weights, factors, warp, group, t):
        place = warp * WARP_WEIGHTS + t * WEIGHTS_STRIDE + group * LANE_ROWS
        row = warp * WARP_ROWS + group * LANE_ROWS
        if is_whole:
            weigh_whole(scores, seen, scale, state, weights, place, factors, row, t)
        else:
            weigh_last(scores, seen, scale, state, weights, place, factors, row, t)

    return weigh


def _make_weigh_row(is_last: bool):
    """Return the part of ``weigh`` of one row of a lane."""

    @device
    def weigh_row(i, scores, seen, scale, state, weights, place, factors, row, t):
        maxima, denominators = state
        a, b = mul_rn(scores[i, 0], scale), mul_rn(scores[i, 1], scale)
        c, d = mul_rn(scores[i, 2], scale), mul_rn(scores[i, 3], scale)
        if is_last:
            a = a if t < seen[i] else _NEG_INF
            b = b if t + 8 < seen[i] else _NEG_INF
            c = c if t + 16 < seen[i] else _NEG_INF
            d = d if t + 24 < seen[i] else _NEG_INF
        largest = fmax(fmax(a, b), fmax(c, d))
        largest = fmax(largest, shfl_xor(largest, uint32(1)))
        largest = fmax(largest, shfl_xor(largest, uint32(2)))
        largest = fmax(maxima[i], fmax(largest, shfl_xor(largest, uint32(4))))
        shift = softmax_shift(largest)
        factor = ex2(maxima[i] - shift)
        a, b, c, d = ex2(a - shift), ex2(b - shift), ex2(c - shift), ex2(d - shift)
        maxima[i] = largest
        denominators[i] = fma(denominators[i], factor, (a + b) + (c + d))
        if is_last:
            a = a if t < seen[i] else _HIDDEN
            b = b if t + 8 < seen[i] else _HIDDEN
            c = c if t + 16 < seen[i] else _HIDDEN
            d = d if t + 24 < seen[i] else _HIDDEN
        store1(weights, place + i, a)
        store1(weights, place + i + 8 * WEIGHTS_STRIDE, b)
        store1(weights, place + i + 16 * WEIGHTS_STRIDE, c)
        store1(weights, place + i + 24 * WEIGHTS_STRIDE, d)
        if t == 0:
            store1(factors, row + i, factor)

    return weigh_row


def make_add_values(head_dim: int):
    """Return ``add_values``: sums = sums * factor + weights times the V rows of `tokens`."""
    rows, columns = sums_shape(head_dim)
    lanes, stride = column_lanes(head_dim), tile_stride(head_dim)
    add_whole, add_last = (_make_add_token(head_dim, is_last) for is_last in (False, True))

    @device
    def scale_row(r, factors, first_factor, sums):
        factor = load1(factors, first_factor + r)
        for e in range(columns):
            sums[r, e] = sums[r, e] * factor

    scale_rows = unroll(scale_row, rows)

    @device
    def add_values(is_whole, tile, weights, factors, sums, tokens, warp, lane):
        row, column_lane = lane // lanes * rows, lane % lanes
        place = warp * WARP_WEIGHTS + row
        scale_rows(factors, warp * WARP_ROWS + row, sums)
        if is_whole:
            for token in range(TILE_TOKENS):
                add_whole(
                    tile, token * stride, column_lane, weights, place + token * WEIGHTS_STRIDE, sums
                )
        else:
            for token in range(tokens):
                add_last(
                    tile, token * stride, column_lane, weights, place + token * WEIGHTS_STRIDE, sums
                )

    return add_values


def _make_add_token(head_dim: int, is_last: bool):
    """Return a function that adds a token's V row to a lane's sums."""
    rows, columns = sums_shape(head_dim)
    lanes, vectors = column_lanes(head_dim), head_dim // 4

    @device
    def add_row(r, weight, value, e, sums):
        for w in range(4):
            total = fma(weight, value[w], sums[r, e + w])
            sums[r, e + w] = sums[r, e + w] if is_last and weight < _ZERO else total

    @device
    def add_rows(quad, weights, place, value, e, sums):
        four = load4(weights, place + 4 * quad)
        add_row(4 * quad, four[0], value, e, sums)
        add_row(4 * quad + 1, four[1], value, e, sums)
        add_row(4 * quad + 2, four[2], value, e, sums)
        add_row(4 * quad + 3, four[3], value, e, sums)

    @device
    def add_vector(v, tile, base, lane, weights, place, sums):
        column = lane + v * lanes
        column = column if column < vectors else 0  # beyond the row: a sum that nobody reads
        add_quads(weights, place, load4(tile, base + column * 4), 4 * v, sums)

    add_quads = unroll(add_rows, rows // 4)
    return unroll(add_vector, columns // 4)
