"""The kernel of `attend_prompts`: a block takes 32 query rows of a chunk and kv head.

Its two warps share tiles of 32 tokens, as float32 in shared memory: keys, then values in their
place. A warp keeps the sums of 16 rows in registers and skips what comes after its rows.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from numbadsd.kernels.cuda.launch import Kernel
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
    TOKEN_LANES,
    WARP_ROWS,
    WEIGHTS_STRIDE,
    column_lanes,
    make_add_values,
    make_multiply_keys,
    make_weigh,
    sums_shape,
    tile_stride,
)
from numbadsd.kernels.cuda.tiles import UNPACK, Row, unroll

NUM_WARPS = 2
NUM_THREADS = 32 * NUM_WARPS
BLOCK_ROWS = NUM_WARPS * WARP_ROWS
LOADS = 8  # of 16 bytes that a thread starts before it uses the first
_LOW_OCCUPANCY = "registers hold 32 rows of sums; 16 multiply-adds a load keep a warp busy"
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
        """The budget of a thread: with 128, 168 or 255, eight, six or four blocks fit."""
        return 128 if self.head_dim <= 64 else 168 if self.head_dim <= 128 else 255


def first_block(row: int, chunk: int) -> int:
    """Return where the blocks of a chunk start, given the rows of all chunks before it.

    Rounded down, and one for each chunk before: no chunk's blocks reach the next one's.
    """
    return row // BLOCK_ROWS + chunk


@device
def _chunk_of(cu_seqlens, num_chunks, group, index):
    """Return the chunk of a block: the last whose blocks start at or before it."""
    low, high = 0, num_chunks
    while high - low > 1:
        middle = (low + high) >> 1
        if quotient(cu_seqlens[middle] * group, BLOCK_ROWS) + middle <= index:
            low = middle
        else:
            high = middle
    return low


def _make_load_tile(spec: PromptSpec):
    """Return ``load_tile``: a block copies rows of K or V to a tile, zeros behind the last."""
    row, stride = Row(spec.head_dim, spec.kv_dtype), tile_stride(spec.head_dim)
    vectors, vector, unpack = row.words // 4, row.vector, UNPACK[spec.kv_dtype]
    count = TILE_TOKENS * vectors // NUM_THREADS
    batch = max(n for n in range(1, LOADS + 1) if count % n == 0)
    held = (batch, 4)

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
        for b in range(count // batch):
            first = thread + b * batch * NUM_THREADS
            load_batch(loaded, words, tile_rows, tokens, first)
            store_batch(loaded, tile, first)

    return load_tile


def _make_write_rows(spec: PromptSpec):
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
def _write_state(state, denominators, places, lse, rows, head_dim, first_row, t):
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


@cache
def attend_prompts_kernel(spec: PromptSpec) -> Kernel:
    """Return the kernel of causal attention over pages.

    Work      one block per (block of rows, kv head), the last rows first: theirs is the most work;
              a block index that no chunk needs does nothing
    Block     2 warps, 16 rows each
    Shared    a tile of 32 tokens, weights, places of rows and tokens
    Barriers  block-uniform: every block walks whole tiles
    Writes    outputs and lse, every element once; 0 and -inf where every score is -inf
    Bytes     reads 2 D e per token, kv head and block
    """
    head_dim, page_size, group = spec.head_dim, spec.page_size, spec.group
    load_tile, write_rows = _make_load_tile(spec), _make_write_rows(spec)
    multiply_keys = make_multiply_keys(head_dim)
    weigh_whole, weigh_last = make_weigh(False), make_weigh(True)
    add_whole, add_last = make_add_values(head_dim, False), make_add_values(head_dim, True)
    tile_size, sums_size = TILE_TOKENS * tile_stride(head_dim), sums_shape(head_dim)
    weights_size = NUM_WARPS * TILE_TOKENS * WEIGHTS_STRIDE
    scores_size = LANE_ROWS, TILE_TOKENS // TOKEN_LANES

    def attend_prompts(
        queries, cu_seqlens, first_positions, keys, values, page_indptr, page_ids, outputs, lse,
        num_chunks, num_kv_heads, num_blocks, scale,
    ):  # fmt: skip
        tile = cuda.shared.array(tile_size, float32, alignment=16)
        weights = cuda.shared.array(weights_size, float32, alignment=16)
        factors = cuda.shared.array(BLOCK_ROWS, float32)
        places = cuda.shared.array(BLOCK_ROWS, int64)
        offsets = cuda.shared.array(BLOCK_ROWS, int32)
        tile_rows = cuda.shared.array(TILE_TOKENS, int64)

        thread = int32(cuda.threadIdx.x)
        lane, warp = thread & 31, thread >> 5
        block = quotient(cuda.blockIdx.x, num_kv_heads)
        kv_head = int32(cuda.blockIdx.x) - block * num_kv_heads
        index = num_blocks - 1 - block
        chunk = _chunk_of(cu_seqlens, num_chunks, group, index)
        token = cu_seqlens[chunk]
        start_block = quotient(token * group, BLOCK_ROWS) + chunk
        first_row = (index - start_block) * BLOCK_ROWS
        rows = min(BLOCK_ROWS, (cu_seqlens[chunk + 1] - token) * group - first_row)
        if rows > 0:
            before = quotient(first_row, group)  # tokens of the chunk
            if thread < BLOCK_ROWS:
                row = first_row + min(thread, rows - 1)  # beyond the end: the last one again
                of_chunk = quotient(row, group)
                head = kv_head * group + row - of_chunk * group
                place = int64(token + of_chunk) * (num_kv_heads * group) + head
                places[thread], offsets[thread] = place * head_dim, of_chunk - before
            cuda.syncthreads()
            position = int32(first_positions[chunk]) + before
            end = position + offsets[BLOCK_ROWS - 1] + 1
            first_page = page_indptr[chunk]

            group_lane, t = lane // TOKEN_LANES, lane % TOKEN_LANES
            lane_row = warp * WARP_ROWS + group_lane * LANE_ROWS
            first_weight = warp * (TILE_TOKENS * WEIGHTS_STRIDE)
            state = cuda.local.array(LANE_ROWS, float32), cuda.local.array(LANE_ROWS, float32)
            bases, seen = cuda.local.array(LANE_ROWS, int64), cuda.local.array(LANE_ROWS, int32)
            scores = cuda.local.array(scores_size, float32)
            sums = cuda.local.array(sums_size, float32)
            for i in range(LANE_ROWS):
                state[0][i], state[1][i] = _NEG_INF, _ZERO
                bases[i] = places[lane_row + i]
            for r in range(sums.shape[0]):
                for e in range(sums.shape[1]):
                    sums[r, e] = _ZERO
            for start in range(0, end, TILE_TOKENS):
                cuda.syncthreads()
                tokens = min(TILE_TOKENS, end - start)
                if thread < tokens:
                    page = quotient(start + thread, page_size)
                    slot = start + thread - page * page_size
                    pool_page = int64(page_ids[first_page + page]) * num_kv_heads + kv_head
                    tile_rows[thread] = pool_page * page_size + slot
                cuda.syncthreads()
                load_tile(keys, tile_rows, tokens, tile, thread)
                cuda.syncthreads()
                is_whole = start + TILE_TOKENS <= position + offsets[warp * WARP_ROWS] + 1
                multiply_keys(queries, bases, tile, scores, t)
                for i in range(LANE_ROWS):
                    seen[i] = position + offsets[lane_row + i] + 1 - start
                if is_whole:
                    weigh_whole(
                        scores, seen, scale, state, weights, first_weight, factors,
                        warp * WARP_ROWS, group_lane, t,
                    )  # fmt: skip
                else:
                    weigh_last(
                        scores, seen, scale, state, weights, first_weight, factors,
                        warp * WARP_ROWS, group_lane, t,
                    )  # fmt: skip
                cuda.syncthreads()
                load_tile(values, tile_rows, tokens, tile, thread)
                cuda.syncthreads()
                if is_whole:
                    add_whole(
                        tile, weights, first_weight, factors, warp * WARP_ROWS, lane, sums,
                        TILE_TOKENS,
                    )  # fmt: skip
                else:
                    add_last(
                        tile, weights, first_weight, factors, warp * WARP_ROWS, lane, sums, tokens
                    )
            cuda.syncthreads()
            _write_state(state, factors, places, lse, rows, head_dim, lane_row, t)
            cuda.syncwarp()
            write_rows(sums, factors, places, outputs, rows, warp, lane)

    position_array = f"{spec.position}[]"
    return Kernel(
        name=f"attend_prompts-{head_dim}-{spec.kv_dtype}-{page_size}-{group}-{spec.position}",
        function=attend_prompts,
        parameters=(
            "f32[]", "i32[]", position_array, "u32[]", "u32[]", "i32[]", "i32[]", "f32[]", "f32[]",
            "i32", "i32", "i32", "f32",
        ),
        num_threads=NUM_THREADS,
        max_registers=spec.max_registers,
        load_bytes=16 * LOADS,
        low_occupancy=_LOW_OCCUPANCY,
    )  # fmt: skip
