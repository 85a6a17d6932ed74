"""Tile arithmetic of prompts: query rows lie across the lanes of a vector.

A lane is one query row (a token's head) and never meets another lane, so a row's sums have one
order, set by the positions of tokens alone, whatever rows stand beside it. A key or value is one
number for all lanes:

    scores[t, lanes] = sum_d keys[t, d] * queries[d, lanes]             queries packed column-wise
    sums[d, lanes]   = sums[d, lanes] * factor + sum_t values[t, d] * weights[t, lanes]

Four keys (or four columns of a value) are computed together, so that each packed vector is loaded
once for four multiply-adds. The same code is made for 64 lanes and, for few rows, for 16.
"""

from typing import NamedTuple

import numpy as np
from numba.extending import intrinsic

from numbadsd.kernels import shared
from numbadsd.kernels.cpu.jit import device
from numbadsd.kernels.cpu.memory import (
    CACHE_LINE_BYTES,
    load16,
    load64,
    load_word,
    prefetch,
    store16,
    store64,
)
from numbadsd.kernels.cpu.simd import at_least, fma, splat16, splat64, two_to, zero_below

TILE_TOKENS = 64  # a tile and the weights of 64 rows stay in the L1 cache at D = 64, L2 at 256
CHAIN = 16  # products that are added up one by one, before chains are: fewer roundings
LANES = 64  # rows whose sums are one packed matrix
_LOWEST = np.float32(np.finfo(np.float32).min)
_NEG_INF = np.float32(-np.inf)
_ZERO = np.float32(0.0)
_MINUS_ONE = np.float32(-1.0)


class Block(NamedTuple):
    """Packed query rows of a task and what is known of them; sub-block s is rows 64 s .. 64 s + 63.

    Column `lane` of a matrix belongs to row 64 s + lane.
    """

    queries: np.ndarray  # [S * D, 64], scaled
    sums: np.ndarray  # [S * D, 64]
    offsets: np.ndarray  # [S, 64] position of a row after the block's first
    maxima: np.ndarray  # [S, 64]
    denominators: np.ndarray  # [S, 64]
    factors: np.ndarray  # [S, 64] of the tile at hand: exp(maximum before - maximum after)


class Tile(NamedTuple):
    """Keys and values of neighbouring tokens, and the weights that 64 rows give them."""

    keys: np.ndarray  # [TILE_TOKENS, D]
    values: np.ndarray  # [TILE_TOKENS, D]
    weights: np.ndarray  # [TILE_TOKENS, 64]


@intrinsic
def _where_below(typingctx, x, low, kept, result):
    """Return `kept` in the lanes where x is below low, else `result`."""

    def codegen(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered("<", args[0], args[1]), args[2], args[3])

    return x(x, low, kept, result), codegen


def _make_dots(load, store, splat):
    """Return ``dots``: the scores of lanes from `column` on against a tile's keys."""

    @device
    def dots(queries, q_row, column, keys, tokens, scores):
        """Write scores[t, lanes], tokens rounded up to four."""
        for first in range(0, keys.shape[1], CHAIN):
            for t in range(0, tokens, 4):
                total_0 = splat(_ZERO)
                total_1 = splat(_ZERO)
                total_2 = splat(_ZERO)
                total_3 = splat(_ZERO)
                for d in range(first, first + CHAIN):
                    query = load(queries, q_row + d, column)
                    total_0 = fma(splat(load_word(keys, t, d)), query, total_0)
                    total_1 = fma(splat(load_word(keys, t + 1, d)), query, total_1)
                    total_2 = fma(splat(load_word(keys, t + 2, d)), query, total_2)
                    total_3 = fma(splat(load_word(keys, t + 3, d)), query, total_3)
                if first > 0:
                    total_0 = load(scores, t, column) + total_0
                    total_1 = load(scores, t + 1, column) + total_1
                    total_2 = load(scores, t + 2, column) + total_2
                    total_3 = load(scores, t + 3, column) + total_3
                store(scores, t, column, total_0)
                store(scores, t + 1, column, total_1)
                store(scores, t + 2, column, total_2)
                store(scores, t + 3, column, total_3)

    return dots


def _make_softmax(load, store, splat):
    """Return ``softmax``: scores become weights, the state of the lanes is brought up to date."""
    exp = device(shared.make_exp_nonpositive(splat, fma, two_to, at_least, zero_below))

    @device
    def softmax(block, s, column, scores, first, whole, tokens):
        """Weigh tokens of positions `first` + t, counted from the block's first row.

        The first `whole` tokens are seen by every lane, the others by those that come no earlier.
        """
        position = load(block.offsets, s, column) + splat(np.float32(-first))
        before = load(block.maxima, s, column)
        largest = before
        for t in range(whole):
            largest = max(load(scores, t, column), largest)
        for t in range(whole, tokens):
            score = _where_below(
                position, splat(np.float32(t)), splat(_NEG_INF), load(scores, t, column)
            )
            store(scores, t, column, score)
            largest = max(score, largest)
        # 0 where every score is -inf, as shared.softmax_shift
        shift = _where_below(largest, splat(_LOWEST), splat(_ZERO), largest)
        minus_shift = shift * splat(_MINUS_ONE)
        factor = exp(before + minus_shift)
        total = splat(_ZERO)
        for t in range(tokens):
            weight = exp(load(scores, t, column) + minus_shift)
            store(scores, t, column, weight)
            total = total + weight
        store(block.maxima, s, column, largest)
        store(block.factors, s, column, factor)
        denominator = load(block.denominators, s, column)
        store(block.denominators, s, column, fma(denominator, factor, total))

    return softmax


def _make_weigh(load, store, splat):
    """Return ``weigh``: sums of the lanes after a tile's values."""

    @device
    def weigh(block, s, column, values, weights, first, whole, tokens):
        """Add weighted values, none that comes after a lane's position, even where it is NaN."""
        columns = values.shape[1]
        position = load(block.offsets, s, column) + splat(np.float32(-first))
        factor = load(block.factors, s, column)
        for d in range(0, columns, 4):
            total_0 = splat(_ZERO)
            total_1 = splat(_ZERO)
            total_2 = splat(_ZERO)
            total_3 = splat(_ZERO)
            for t in range(whole):
                weight = load(weights, t, column)
                total_0 = fma(splat(load_word(values, t, d)), weight, total_0)
                total_1 = fma(splat(load_word(values, t, d + 1)), weight, total_1)
                total_2 = fma(splat(load_word(values, t, d + 2)), weight, total_2)
                total_3 = fma(splat(load_word(values, t, d + 3)), weight, total_3)
            for t in range(whole, tokens):
                weight = load(weights, t, column)
                here = splat(np.float32(t))
                more_0 = fma(splat(load_word(values, t, d)), weight, total_0)
                more_1 = fma(splat(load_word(values, t, d + 1)), weight, total_1)
                more_2 = fma(splat(load_word(values, t, d + 2)), weight, total_2)
                more_3 = fma(splat(load_word(values, t, d + 3)), weight, total_3)
                total_0 = _where_below(position, here, total_0, more_0)
                total_1 = _where_below(position, here, total_1, more_1)
                total_2 = _where_below(position, here, total_2, more_2)
                total_3 = _where_below(position, here, total_3, more_3)
            row = s * columns + d
            store(block.sums, row, column, fma(load(block.sums, row, column), factor, total_0))
            row += 1
            store(block.sums, row, column, fma(load(block.sums, row, column), factor, total_1))
            row += 1
            store(block.sums, row, column, fma(load(block.sums, row, column), factor, total_2))
            row += 1
            store(block.sums, row, column, fma(load(block.sums, row, column), factor, total_3))

    return weigh


def _make_step(load, store, splat):
    """Return ``step``: what a tile adds to the lanes from `column` on of sub-block s."""
    dots, softmax = _make_dots(load, store, splat), _make_softmax(load, store, splat)
    weigh = _make_weigh(load, store, splat)

    @device
    def step(block, s, column, tile, first, whole, tokens):
        q_row = s * tile.keys.shape[1]
        dots(block.queries, q_row, column, tile.keys, tokens, tile.weights)
        softmax(block, s, column, tile.weights, first, whole, tokens)
        weigh(block, s, column, tile.values, tile.weights, first, whole, tokens)

    return step


_step_16 = _make_step(load16, store16, splat16)
_step_64 = _make_step(load64, store64, splat64)


@device
def add_tile(block, s, rows, tile, first):
    """Attend the first `rows` rows of sub-block s to a tile.

    `first` is the position of the tile's first token, counted from the block's first row.
    """
    whole = max(0, min(TILE_TOKENS, np.int64(block.offsets[s, 0]) - first + 1))
    tokens = min(TILE_TOKENS, np.int64(block.offsets[s, rows - 1]) - first + 1)
    if tokens <= 0:
        return
    if rows > LANES // 2:
        _step_64(block, s, 0, tile, first, whole, tokens)
    else:
        for column in range(0, rows, 16):
            _step_16(block, s, column, tile, first, whole, tokens)


@device
def aligned(rows, columns):
    """Return an empty float32 matrix that starts a cache line: no vector lies across two."""
    numbers = np.empty(rows * columns + CACHE_LINE_BYTES // 4, np.float32)
    skip = (-numbers.ctypes.data % CACHE_LINE_BYTES) // 4
    return numbers[skip : skip + rows * columns].reshape(rows, columns)


@device
def widen_row(words, row, next_row, tile, t):
    """Copy a token's row into a tile as float32; ask for the row that is copied a tile later."""
    line = CACHE_LINE_BYTES // words.itemsize
    for d in range(0, words.shape[1], 16):
        if d % line == 0:
            prefetch(words, next_row, d)
        store16(tile, t, d, load16(words, row, d))
