"""What a block of the prompt kernel reads and writes: its place, tiles of K or V, its results."""

from dataclasses import dataclass

import numpy as np

from numbadsd.kernels.cuda.ops import (
    cuda,
    device,
    float32,
    int32,
    int64,
    lg2,
    load4,
    quotient,
    shfl_xor,
    store1,
    uint32,
)
from numbadsd.kernels.cuda.prompt_step import (
    LANE_ROWS,
    TILE_TOKENS,
    WARP_ROWS,
    column_lanes,
    sums_shape,
    tile_stride,
)
from numbadsd.kernels.cuda.tiles import UNPACK, Row, unroll

NUM_WARPS = 2
NUM_THREADS = 32 * NUM_WARPS
BLOCK_ROWS = NUM_WARPS * WARP_ROWS
MAX_LOADS = 8  # of 16 bytes that a thread starts before it uses the first
_NEG_INF = float32(-np.inf)
_ZERO = float32(0)
_LN_2 = np.float32(np.log(2))


@dataclass(frozen=True)
class PromptSpec:
    """Compile-time constants of the prompt kernel."""

    head_dim: int
    kv_dtype: str
    page_size: int
    group: int  # query heads of a kv head
    position: str = "i32"  # type of first positions

    @property
    def max_registers(self) -> int:
        """The budget of a thread: with 144, 168 or 255, seven, six or four blocks fit."""
        return 144 if self.head_dim <= 64 else 168 if self.head_dim <= 128 else 255

    @property
    def loads(self) -> int:
        """Loads of 16 bytes that a thread has in flight."""
        each = TILE_TOKENS * Row(self.head_dim, self.kv_dtype).words // 4 // NUM_THREADS
        return max(n for n in range(1, MAX_LOADS + 1) if each % n == 0)


def first_block(row: int, chunk: int) -> int:
    """Return where the blocks of a chunk start, given the rows of all chunks before it.

    Rounded down, and one for each chunk before: no chunk's blocks reach the next one's.
    """
    return row // BLOCK_ROWS + chunk


block_of_row = device(first_block)


@device
def chunk_of(cu_seqlens, num_chunks, group, index):
    """Return the chunk of a block: the last whose blocks start at or before it."""
    low, high = 0, num_chunks
    while high - low > 1:
        middle = (low + high) >> 1
        if block_of_row(cu_seqlens[middle] * group, middle) <= index:
            low = middle
        else:
            high = middle
    return low


def make_load_tile(spec: PromptSpec):
    """Return ``load_tile``: a block copies rows of K or V to a tile, zeros behind the last."""
    row, stride = Row(spec.head_dim, spec.kv_dtype), tile_stride(spec.head_dim)
    vectors, vector, unpack = row.words // 4, row.vector, UNPACK[spec.kv_dtype]
    batch, held = spec.loads, (spec.loads, 4)
    batches = TILE_TOKENS * vectors // NUM_THREADS // batch

    @device
    def load(i, loaded, words, tile_rows, tokens, first):
        item = int32(first + i * NUM_THREADS)
        token = quotient(item, vectors)
        zero = uint32(0)
        x = (zero, zero, zero, zero)
        if token < tokens:
            x = load4(words, (tile_rows[token] * vectors + (item - token * vectors)) * 4)
        for w in range(4):
            loaded[i, w] = x[w]

    @device
    def store(i, loaded, tile, first):
        item = int32(first + i * NUM_THREADS)
        token = quotient(item, vectors)
        place = token * stride + (item - token * vectors) * vector
        x = unpack((loaded[i, 0], loaded[i, 1], loaded[i, 2], loaded[i, 3]))
        for e in range(vector):
            store1(tile, place + e, x[e])

    load_batch, store_batch = unroll(load, batch), unroll(store, batch)

    @device
    def load_tile(words, tile_rows, tokens, tile, thread):
        loaded = cuda.local.array(held, uint32)
        for b in range(batches):
            first = thread + b * batch * NUM_THREADS
            load_batch(loaded, words, tile_rows, tokens, first)
            store_batch(loaded, tile, first)

    return load_tile


def make_write_rows(spec: PromptSpec):
    """Return ``write_rows``: a warp's sums over their denominators to outputs."""
    head_dim, lanes = spec.head_dim, column_lanes(spec.head_dim)
    lane_rows, columns = sums_shape(head_dim)

    @device
    def write_row(r, sums, denominators, row, places, outputs, rows, column_lane):
        if row + r < rows:
            denominator = denominators[row + r]
            for e in range(columns):
                d = (e // 4 * lanes + column_lane) * 4 + e % 4
                if d < head_dim:
                    attended = denominator != _ZERO  # NaN stays NaN
                    outputs[places[row + r] + d] = sums[r, e] / denominator if attended else _ZERO

    write_each = unroll(write_row, lane_rows)

    @device
    def write_rows(sums, denominators, places, outputs, rows, warp, lane):
        row = warp * WARP_ROWS + lane // lanes * lane_rows
        write_each(sums, denominators, row, places, outputs, rows, lane % lanes)

    return write_rows


@device
def write_state(state, denominators, places, lse, rows, head_dim, first_row, t):
    """Write a lane's four rows of lse; leave their denominators to the warp."""
    maxima, parts = state
    for i in range(LANE_ROWS):
        total = parts[i]
        total = total + shfl_xor(total, uint32(1))
        total = total + shfl_xor(total, uint32(2))
        total = total + shfl_xor(total, uint32(4))
        if t == 0:
            denominators[first_row + i] = total
            if first_row + i < rows:
                attended = total != _ZERO
                number = (maxima[i] + lg2(total)) * _LN_2 if attended else _NEG_INF
                lse[places[first_row + i] // head_dim] = number


@device
def place_rows(
    thread, rows, first_row, token, kv_head, num_kv_heads, group, head_dim, places, offsets
):
    """Write where each row's query starts, and its token's distance from the first row's."""
    if thread < BLOCK_ROWS:
        row = first_row + min(thread, rows - 1)  # beyond the end: the last one again
        of_chunk = quotient(row, group)
        head = kv_head * group + row - of_chunk * group
        places[thread] = (int64(token + of_chunk) * (num_kv_heads * group) + head) * head_dim
        offsets[thread] = of_chunk - quotient(first_row, group)


@device
def place_tokens(
    thread, tokens, start, page_ids, first_page, num_kv_heads, kv_head, page_size, tile_rows
):
    """Write which row of the pool each token of a tile is."""
    if thread < tokens:
        page = quotient(start + thread, page_size)
        slot = start + thread - page * page_size
        pool_page = int64(page_ids[first_page + page]) * num_kv_heads + kv_head
        tile_rows[thread] = pool_page * page_size + slot
