"""The kernel of `attend_prompts`: a block takes 32 query rows of a chunk and kv head.

Its two warps share tiles of 32 tokens, as float32 in shared memory: keys, then values in their
place. A warp keeps the sums of 16 rows in registers.
"""

from functools import cache

import numpy as np

from numbadsd.kernels.cuda.launch import Kernel
from numbadsd.kernels.cuda.ops import cuda, float32, int32, int64, quotient
from numbadsd.kernels.cuda.prompt_step import (
    LANE_ROWS,
    TILE_TOKENS,
    TOKEN_LANES,
    WARP_ROWS,
    WARP_WEIGHTS,
    make_add_values,
    make_multiply_keys,
    make_weigh,
    sums_shape,
    tile_stride,
)
from numbadsd.kernels.cuda.prompt_tiles import (
    BLOCK_ROWS,
    NUM_THREADS,
    NUM_WARPS,
    PromptSpec,
    block_of_row,
    chunk_of,
    make_load_tile,
    make_write_rows,
    place_rows,
    place_tokens,
    write_state,
)

_LOW_OCCUPANCY = "registers hold the sums of 16 rows a warp: a load feeds 8 multiply-adds or more"
_NEG_INF = float32(-np.inf)
_ZERO = float32(0)


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
    load_tile, write_rows = make_load_tile(spec), make_write_rows(spec)
    multiply_keys, weigh = make_multiply_keys(head_dim), make_weigh()
    add_values = make_add_values(head_dim)
    tile_size, sums_size = TILE_TOKENS * tile_stride(head_dim), sums_shape(head_dim)
    weights_size = NUM_WARPS * WARP_WEIGHTS
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
        chunk = chunk_of(cu_seqlens, num_chunks, group, index)
        token, first_page = cu_seqlens[chunk], page_indptr[chunk]
        first_row = (index - block_of_row(token * group, chunk)) * BLOCK_ROWS
        rows = min(BLOCK_ROWS, (cu_seqlens[chunk + 1] - token) * group - first_row)
        if rows > 0:
            place_rows(
                thread, rows, first_row, token, kv_head, num_kv_heads, group, head_dim, places,
                offsets,
            )  # fmt: skip
            cuda.syncthreads()
            position = int32(first_positions[chunk]) + quotient(first_row, group)
            end = position + offsets[BLOCK_ROWS - 1] + 1
            group_lane, t = lane // TOKEN_LANES, lane % TOKEN_LANES
            lane_row = warp * WARP_ROWS + group_lane * LANE_ROWS
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
                tokens = min(TILE_TOKENS, end - start)
                place_tokens(
                    thread, tokens, start, page_ids, first_page, num_kv_heads, kv_head, page_size,
                    tile_rows,
                )  # fmt: skip
                cuda.syncthreads()  # and nobody reads the values of the tile before
                load_tile(keys, tile_rows, tokens, tile, thread)
                cuda.syncthreads()
                is_whole = start + TILE_TOKENS <= position + offsets[warp * WARP_ROWS] + 1
                for i in range(LANE_ROWS):
                    seen[i] = position + offsets[lane_row + i] + 1 - start
                multiply_keys(queries, bases, tile, scores, t)
                weigh(is_whole, scores, seen, scale, state, weights, factors, warp, group_lane, t)
                cuda.syncthreads()
                load_tile(values, tile_rows, tokens, tile, thread)
                cuda.syncthreads()
                add_values(is_whole, tile, weights, factors, sums, tokens, warp, lane)
            cuda.syncwarp()
            write_state(state, factors, places, lse, rows, head_dim, lane_row, t)
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
        load_bytes=16 * spec.loads,
        low_occupancy=_LOW_OCCUPANCY,
    )  # fmt: skip
