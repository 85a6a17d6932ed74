"""Tile arithmetic of attention: one kv head's [page_size, D] keys or values of one page.

A tile is contiguous memory. While it is computed, the tile that follows is prefetched line by line,
since hardware prefetchers stop at the 4 KiB boundaries that scattered pages keep hitting. Per query
head every sum has one order, whatever the number of heads or tokens computed together: blocks of
four heads exist only so that a key or value is loaded and widened once for the group.
"""

import numpy as np

from numbadsd.kernels import shared
from numbadsd.kernels.cpu.jit import device
from numbadsd.kernels.cpu.memory import (
    CACHE_LINE_BYTES,
    load16,
    load64,
    load_4x16,
    prefetch,
    store4,
    store16,
    store64,
)
from numbadsd.kernels.cpu.simd import (
    at_least,
    fma,
    max_lanes,
    repeat_4x,
    splat4,
    splat16,
    splat64,
    sum_lanes,
    sum_rows,
    two_to,
    zero_below,
)

_exp16 = device(shared.make_exp_nonpositive(splat16, fma, two_to, at_least, zero_below))
_shift = device(shared.softmax_shift)
_ZERO = np.float32(0.0)
_NEG_INF = np.float32(-np.inf)


@device
def _dot_one(queries, q_row, keys, k_row, sm_scale):
    """Return one scaled dot product; the same bits as the blocked ones below."""
    total = splat16(_ZERO)
    for d in range(0, keys.shape[1], 16):
        total = fma(load16(queries, q_row, d), load16(keys, k_row, d), total)
    return sum_lanes(total) * sm_scale


@device
def _dot_tile(queries, q_row, keys, k_row, next_row, tokens, sm_scale, scores, s_row, column):
    """Write scores[s_row, column + t] of one query head against the tile's tokens."""
    line = CACHE_LINE_BYTES // keys.itemsize
    scale = splat4(sm_scale)
    t = 0
    while t + 4 <= tokens:
        total = splat64(_ZERO)
        for d in range(0, keys.shape[1], 16):
            if d % line == 0:
                for r in range(4):
                    prefetch(keys, next_row + t + r, d)
            total = fma(repeat_4x(load16(queries, q_row, d)), load_4x16(keys, k_row + t, d), total)
        store4(scores, s_row, column + t, sum_rows(total) * scale)
        t += 4
    while t < tokens:
        scores[s_row, column + t] = _dot_one(queries, q_row, keys, k_row + t, sm_scale)
        t += 1


@device
def _dot_tile_4(queries, q_row, keys, k_row, next_row, tokens, sm_scale, scores, s_row, column):
    """Write the scores of four query heads: each key is loaded and widened once."""
    line = CACHE_LINE_BYTES // keys.itemsize
    scale = splat4(sm_scale)
    t = 0
    while t + 4 <= tokens:
        total_0 = splat64(_ZERO)
        total_1 = splat64(_ZERO)
        total_2 = splat64(_ZERO)
        total_3 = splat64(_ZERO)
        for d in range(0, keys.shape[1], 16):
            if d % line == 0:
                for r in range(4):
                    prefetch(keys, next_row + t + r, d)
            four_keys = load_4x16(keys, k_row + t, d)
            total_0 = fma(repeat_4x(load16(queries, q_row, d)), four_keys, total_0)
            total_1 = fma(repeat_4x(load16(queries, q_row + 1, d)), four_keys, total_1)
            total_2 = fma(repeat_4x(load16(queries, q_row + 2, d)), four_keys, total_2)
            total_3 = fma(repeat_4x(load16(queries, q_row + 3, d)), four_keys, total_3)
        store4(scores, s_row, column + t, sum_rows(total_0) * scale)
        store4(scores, s_row + 1, column + t, sum_rows(total_1) * scale)
        store4(scores, s_row + 2, column + t, sum_rows(total_2) * scale)
        store4(scores, s_row + 3, column + t, sum_rows(total_3) * scale)
        t += 4
    while t < tokens:
        for h in range(4):
            score = _dot_one(queries, q_row + h, keys, k_row + t, sm_scale)
            scores[s_row + h, column + t] = score
        t += 1


@device
def softmax_row(scores, s_row, tokens):
    """Turn a row of scores into exp(score - maximum); return the maximum and the sum."""
    padded = (tokens + 15) // 16 * 16
    for i in range(tokens, padded):
        scores[s_row, i] = _NEG_INF
    largest = splat16(_NEG_INF)
    for i in range(0, padded, 16):
        largest = max(load16(scores, s_row, i), largest)
    maximum = max_lanes(largest)
    minus_shift = splat16(-_shift(maximum))
    total = splat16(_ZERO)
    for i in range(0, padded, 16):
        weight = _exp16(load16(scores, s_row, i) + minus_shift)
        store16(scores, s_row, i, weight)
        total = total + weight
    return maximum, sum_lanes(total)


@device
def _weigh_tile(sums, a_row, weights, w_row, column, values, v_row, next_row, tokens):
    """Add weights[w_row, column + t] * values[v_row + t] to sums[a_row], token after token."""
    line = CACHE_LINE_BYTES // values.itemsize
    t = 0
    while t + 4 <= tokens:
        weight_0 = splat16(weights[w_row, column + t])
        weight_1 = splat16(weights[w_row, column + t + 1])
        weight_2 = splat16(weights[w_row, column + t + 2])
        weight_3 = splat16(weights[w_row, column + t + 3])
        for d in range(0, values.shape[1], 16):
            if d % line == 0:
                for r in range(4):
                    prefetch(values, next_row + t + r, d)
            total = load16(sums, a_row, d)
            total = fma(weight_0, load16(values, v_row + t, d), total)
            total = fma(weight_1, load16(values, v_row + t + 1, d), total)
            total = fma(weight_2, load16(values, v_row + t + 2, d), total)
            total = fma(weight_3, load16(values, v_row + t + 3, d), total)
            store16(sums, a_row, d, total)
        t += 4
    while t < tokens:
        weight = splat16(weights[w_row, column + t])
        for d in range(0, values.shape[1], 16):
            value = load16(values, v_row + t, d)
            store16(sums, a_row, d, fma(weight, value, load16(sums, a_row, d)))
        t += 1


@device
def _weigh_tile_4(sums, a_row, weights, w_row, column, values, v_row, next_row, tokens):
    """Do as `_weigh_tile` for four query heads: each value is loaded and widened once."""
    line = CACHE_LINE_BYTES // values.itemsize
    d = 0
    while d + 64 <= values.shape[1]:
        total_0 = load64(sums, a_row, d)
        total_1 = load64(sums, a_row + 1, d)
        total_2 = load64(sums, a_row + 2, d)
        total_3 = load64(sums, a_row + 3, d)
        for t in range(tokens):
            for ahead in range(0, 64, line):
                prefetch(values, next_row + t, d + ahead)
            value = load64(values, v_row + t, d)
            total_0 = fma(splat64(weights[w_row, column + t]), value, total_0)
            total_1 = fma(splat64(weights[w_row + 1, column + t]), value, total_1)
            total_2 = fma(splat64(weights[w_row + 2, column + t]), value, total_2)
            total_3 = fma(splat64(weights[w_row + 3, column + t]), value, total_3)
        store64(sums, a_row, d, total_0)
        store64(sums, a_row + 1, d, total_1)
        store64(sums, a_row + 2, d, total_2)
        store64(sums, a_row + 3, d, total_3)
        d += 64
    while d < values.shape[1]:
        for h in range(4):
            total = load16(sums, a_row + h, d)
            for t in range(tokens):
                weight = splat16(weights[w_row + h, column + t])
                total = fma(weight, load16(values, v_row + t, d), total)
            store16(sums, a_row + h, d, total)
        d += 16


@device
def dot_group(
    queries, q_row, heads, keys, k_row, next_row, tokens, sm_scale, scores, s_row, column
):
    """Write scores[s_row + h, column + t] of a group of query heads against a tile's keys."""
    h = 0
    while h + 4 <= heads:
        _dot_tile_4(
            queries, q_row + h, keys, k_row, next_row, tokens, sm_scale, scores, s_row + h, column
        )
        h += 4
    while h < heads:
        _dot_tile(
            queries, q_row + h, keys, k_row, next_row, tokens, sm_scale, scores, s_row + h, column
        )
        h += 1


@device
def weigh_group(sums, a_row, heads, weights, w_row, column, values, v_row, next_row, tokens):
    """Add the weighted values of a tile to sums[a_row + h] of a group of query heads."""
    h = 0
    while h + 4 <= heads:
        _weigh_tile_4(sums, a_row + h, weights, w_row + h, column, values, v_row, next_row, tokens)
        h += 4
    while h < heads:
        _weigh_tile(sums, a_row + h, weights, w_row + h, column, values, v_row, next_row, tokens)
        h += 1


@device
def prefetch_tile(rows, first_row, tokens):
    """Ask for a whole tile."""
    line = CACHE_LINE_BYTES // rows.itemsize
    for t in range(tokens):
        for d in range(0, rows.shape[1], line):
            prefetch(rows, first_row + t, d)
