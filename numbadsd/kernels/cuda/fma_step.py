"""One step of a warp's attention: 16 tokens, a few heads, online softmax to base 2.

scores    quads of lanes, 8 tokens at a time: lane 4 g + t ends with tokens g and g + 8 of head t
weights   2^(score - maximum) to shared memory, once for each (token, head)
sums      lanes along head_dim, every token's V row times its weight
"""

import numpy as np

from numbadsd.kernels.cuda.attend_spec import TOKENS, softmax_shift
from numbadsd.kernels.cuda.ops import (
    cuda,
    device,
    ex2,
    float32,
    fma,
    fmax,
    load1,
    shfl_xor,
    store1,
    uint32,
)
from numbadsd.kernels.cuda.tiles import (
    CHUNK_WORDS,
    QUAD_ROWS,
    QUAD_SUMS,
    UNPACK,
    Row,
    make_dot_vector,
    make_load_vector,
    make_row_base,
    unroll,
)  # fmt: skip

LOADS = 8  # of 16 bytes that a lane starts before it uses the first
_NEG_INF = float32(-np.inf)
_ZERO = float32(0)


def make_fma_step(row: Row, page_size: int, warp_heads: int, is_shared: bool, is_last: bool):
    """Return ``fma_step``; `is_last` allows that the split ends within these tokens."""
    multiply_keys = _make_multiply_keys(row, page_size, warp_heads, is_shared, is_last)
    start_values, add_values = _make_values(row, page_size, warp_heads, is_shared, is_last)
    quad_sums, held = QUAD_SUMS[warp_heads], _value_words(row)

    @device
    def fma_step(
        keys, values, tile_rows, query, first_query, scratch, first_weight, first_state, acc,
        maximum, denominator, token, left, lane,
    ):  # fmt: skip
        """Add tokens [token, token + 16) to the lane's sums; return maximum and denominator.

        A lane keeps them for head lane % warp_heads; the denominator is a part of the lane's own.
        """
        group, t = lane // 4, lane % 4
        products = cuda.local.array(warp_heads, float32), cuda.local.array(warp_heads, float32)
        multiply_keys(keys, tile_rows, query, first_query, products, token, left, group, t)
        words = cuda.local.array(held, uint32)
        start_values(words, values, tile_rows, token, left, lane)  # they travel during the softmax
        low, high = quad_sums(products[0], t), quad_sums(products[1], t)
        if is_last:
            low = low if token + group < left else _NEG_INF
            high = high if token + group + QUAD_ROWS < left else _NEG_INF
        largest = fmax(low, high)
        largest = fmax(largest, shfl_xor(largest, uint32(4)))
        largest = fmax(largest, shfl_xor(largest, uint32(8)))
        largest = fmax(maximum, fmax(largest, shfl_xor(largest, uint32(16))))
        shift = softmax_shift(largest)
        correction = ex2(maximum - shift)
        low, high = ex2(low - shift), ex2(high - shift)
        if t < warp_heads:
            store1(scratch, first_weight + group * warp_heads + t, low)
            store1(scratch, first_weight + (group + QUAD_ROWS) * warp_heads + t, high)
            if group == 0:
                store1(scratch, first_state + t, correction)
        cuda.syncwarp()
        for h in range(warp_heads):
            factor = load1(scratch, first_state + h)
            for e in range(acc.shape[1]):
                acc[h, e] = acc[h, e] * factor
        add_values(words, values, tile_rows, scratch, first_weight, acc, token, left, lane)
        cuda.syncwarp()
        return largest, fma(denominator, correction, low + high)

    return fma_step


def _make_multiply_keys(row: Row, page_size: int, warp_heads: int, is_shared: bool, is_last: bool):
    """Return ``multiply_keys``: a lane's parts of the products of tokens g and g + 8, each head."""
    row_base = make_row_base(row, page_size, TOKENS)
    load_vector = make_load_vector(row, row.chunk_words, is_shared)
    dot_vector, unpack = make_dot_vector(row), UNPACK[row.kv_dtype]
    vector, head_dim, is_whole = row.vector, row.head_dim, row.chunk_words == row.words
    batch = _largest_divisor(row.chunks, LOADS // 2)
    batches, held = row.chunks // batch, (2 * batch, 4)

    @device
    def load(i, words, keys, low_base, high_base, offset):
        a = load_vector(keys, low_base, offset + i * CHUNK_WORDS)
        b = load_vector(keys, high_base, offset + i * CHUNK_WORDS)
        for w in range(4):
            words[2 * i, w], words[2 * i + 1, w] = a[w], b[w]

    @device
    def multiply(i, words, query, first_query, column, low, high):
        a = unpack((words[2 * i, 0], words[2 * i, 1], words[2 * i, 2], words[2 * i, 3]))
        j = 2 * i + 1
        b = unpack((words[j, 0], words[j, 1], words[j, 2], words[j, 3]))
        d = column + i * (4 * vector)
        if is_whole or d < head_dim:
            for h in range(warp_heads):
                low[h] = dot_vector(a, query, first_query + h * head_dim + d, low[h])
                high[h] = dot_vector(b, query, first_query + h * head_dim + d, high[h])

    load_batch, multiply_batch = unroll(load, batch), unroll(multiply, batch)

    @device
    def multiply_keys(keys, tile_rows, query, first_query, products, token, left, group, t):
        low_row, high_row = group, group + QUAD_ROWS
        if is_last:  # rows beyond the end read the last one, and count for nothing
            low_row, high_row = min(low_row, left - 1 - token), min(high_row, left - 1 - token)
        low_base = row_base(tile_rows, token, low_row)
        high_base = row_base(tile_rows, token, high_row)
        low, high = products
        words = cuda.local.array(held, uint32)
        for h in range(warp_heads):
            low[h], high[h] = _ZERO, _ZERO
        for b in range(batches):
            chunk = b * batch
            load_batch(words, keys, low_base, high_base, chunk * CHUNK_WORDS + t * 4)
            multiply_batch(words, query, first_query, (chunk * 4 + t) * vector, low, high)

    return multiply_keys


def _value_batch(row: Row) -> int:
    """Return the V rows that a lane starts to read at once."""
    steps = TOKENS // (32 // row.lanes)
    return _largest_divisor(steps, LOADS // row.vectors_per_lane)


def _value_words(row: Row) -> tuple[int, int]:
    """Return the shape of the words that such a batch brings."""
    return _value_batch(row) * row.vectors_per_lane, 4


def _make_values(row: Row, page_size: int, warp_heads: int, is_shared: bool, is_last: bool):
    """Return ``start_values`` (read the first batch) and ``add_values``.

    They do acc[h, :] += weight of each token times its V row.
    """
    row_base = make_row_base(row, page_size, TOKENS)
    load_vector = make_load_vector(row, row.column_words, is_shared)
    unpack, vector, lanes = UNPACK[row.kv_dtype], row.vector, row.lanes
    rows_at_once, per_lane = 32 // lanes, row.vectors_per_lane
    batch = _value_batch(row)
    batches = TOKENS // rows_at_once // batch

    @device
    def load(i, words, values, tile_rows, token, left, first, column):
        place = first + i * rows_at_once
        if not is_last or token + place < left:
            base = row_base(tile_rows, token, place)
            for v in range(per_lane):
                x = load_vector(values, base, column + v * (4 * lanes))
                for w in range(4):
                    words[i * per_lane + v, w] = x[w]
        elif is_last:  # its weight is 0
            for v in range(per_lane):
                for w in range(4):
                    words[i * per_lane + v, w] = uint32(0)

    @device
    def add(i, words, weights, first_weight, first, acc):
        for v in range(per_lane):
            j = i * per_lane + v
            x = unpack((words[j, 0], words[j, 1], words[j, 2], words[j, 3]))
            for h in range(warp_heads):
                place = first_weight + (first + i * rows_at_once) * warp_heads + h
                weight = load1(weights, place)
                for e in range(vector):
                    acc[h, v * vector + e] = fma(weight, x[e], acc[h, v * vector + e])

    load_batch, add_batch = unroll(load, batch), unroll(add, batch)

    @device
    def start_values(words, values, tile_rows, token, left, lane):
        load_batch(words, values, tile_rows, token, left, lane // lanes, lane % lanes * 4)

    @device
    def add_values(words, values, tile_rows, weights, first_weight, acc, token, left, lane):
        add_batch(words, weights, first_weight, lane // lanes, acc)
        for b in range(1, batches):
            first = b * (batch * rows_at_once) + lane // lanes
            load_batch(words, values, tile_rows, token, left, first, lane % lanes * 4)
            add_batch(words, weights, first_weight, first, acc)

    return start_values, add_values


def _largest_divisor(number: int, limit: int) -> int:
    """Return the largest divisor of `number` that is at most `limit`."""
    return max(n for n in range(1, limit + 1) if number % n == 0)
