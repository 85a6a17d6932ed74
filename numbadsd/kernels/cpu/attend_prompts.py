"""Causal attention of prompt chunks over their own pages, several prompts in one pass.

    out[i] = sum_{t <= p(i)} softmax_t(sm_scale q_i . k_t) v_t         p(i) position of token i

Chunk c owns queries [cu_seqlens[c], cu_seqlens[c + 1]), at positions first_positions[c], + 1, ...
A *row* is a token's query head; rows of a chunk and kv head are token after token, the heads of the
group side by side, and cut into blocks:

    rows of kv head g:   token 0: head g q .. g q + q - 1 | token 1: ... | ...       q = H / G
                         [ block 0: BLOCK_ROWS rows      ] [ block 1 ...

A block walks tiles of TILE_TOKENS tokens from position 0 on, with one running softmax for each row.
Where tiles lie depends on positions alone and rows do not mix, so an output has the same bits
whether a prompt is done at once or in chunks of any size, alone or packed, by any number of
threads. (Decode cuts and adds in another order: the last token's bits are not those of decode.)
"""

from typing import NamedTuple

import numpy as np
from numba import get_num_threads, prange

from numbadsd.kernels import shared
from numbadsd.kernels.cpu.busy import timed
from numbadsd.kernels.cpu.jit import device, kernel
from numbadsd.kernels.cpu.prompt_tiles import (
    LANES,
    TILE_TOKENS,
    Block,
    Tile,
    add_tile,
    aligned,
    widen_row,
)
from numbadsd.kernels.words import as_rows, check_array

BLOCK_ROWS = 2 * LANES  # that share a tile once it is copied
_NEG_INF = np.float32(-np.inf)
_ZERO = np.float32(0.0)
_row_of = device(shared.row_of)


class Chunks(NamedTuple):
    """Where the tokens and pages of each chunk are."""

    cu_seqlens: np.ndarray  # [C + 1] i32
    first_positions: np.ndarray  # [C] i64
    page_indptr: np.ndarray  # [C + 1] i32
    page_ids: np.ndarray  # [n] i32


class Shape(NamedTuple):
    """Integers that place heads and pages."""

    num_heads: int
    num_kv_heads: int
    page_size: int


@device
def _query_row(shape, token, kv_head, row):
    """Return the row, in queries seen as rows of D, of a chunk's row; `token` is its first."""
    group = shape.num_heads // shape.num_kv_heads
    return np.int64(token + row // group) * shape.num_heads + kv_head * group + row % group


@device
def _page_row(chunks, shape, first_page, kv_head, position):
    """Return the row, in a pool seen as rows of D, of a token of a chunk's request."""
    page = np.int64(chunks.page_ids[first_page + position // shape.page_size])
    return (page * shape.num_kv_heads + kv_head) * shape.page_size + position % shape.page_size


@device
def _pack_block(queries, shape, token, kv_head, first_row, rows, sm_scale):
    """Return a block that has seen no token; lanes beyond the last row repeat it."""
    columns, group = queries.shape[1], shape.num_heads // shape.num_kv_heads
    parts = (rows + LANES - 1) // LANES
    packed, sums = aligned(parts * columns, LANES), aligned(parts * columns, LANES)
    offsets, maxima = aligned(parts, LANES), aligned(parts, LANES)
    denominators, factors = aligned(parts, LANES), aligned(parts, LANES)
    sums[:] = _ZERO
    maxima[:] = _NEG_INF
    denominators[:] = _ZERO
    for lane in range(parts * LANES):
        row = first_row + min(lane, rows - 1)
        query = _query_row(shape, token, kv_head, row)
        s, column = lane // LANES, lane % LANES
        offsets[s, column] = np.float32(row // group - first_row // group)
        for d in range(columns):
            packed[s * columns + d, column] = queries[query, d] * sm_scale
    return Block(packed, sums, offsets, maxima, denominators, factors)


@device
def _unpack_block(block, shape, token, kv_head, first_row, rows, outputs, lse):
    """Write what a block found; 0 and -inf where every score is -inf, NaN stays NaN."""
    columns = outputs.shape[1]
    for lane in range(rows):
        query = _query_row(shape, token, kv_head, first_row + lane)
        s, column = lane // LANES, lane % LANES
        denominator = block.denominators[s, column]
        if denominator == _ZERO:
            outputs[query, :] = _ZERO
            lse[query] = _NEG_INF
        else:
            lse[query] = block.maxima[s, column] + np.log(denominator)
            for d in range(columns):
                outputs[query, d] = block.sums[s * columns + d, column] / denominator


@device
def _fill_tile(keys, values, chunks, shape, first_page, kv_head, start, end, tile):
    """Copy the tokens of positions [start, end) that a tile holds, page after page."""
    tokens, t = min(TILE_TOKENS, end - start), 0
    while t < tokens:
        row = _page_row(chunks, shape, first_page, kv_head, start + t)
        later = min(start + t + TILE_TOKENS, end - 1)
        next_row = _page_row(chunks, shape, first_page, kv_head, later)
        count = min(tokens - t, shape.page_size - (start + t) % shape.page_size)
        for i in range(count):
            widen_row(keys, row + i, next_row + i, tile.keys, t + i)
            widen_row(values, row + i, next_row + i, tile.values, t + i)
        t += count
    for t in range(tokens, (tokens + 3) // 4 * 4):  # keys are multiplied by fours
        tile.keys[t, :] = _ZERO


@device
def _attend_block(
    queries, keys, values, chunks, shape, block_indptr, sm_scale, outputs, lse, index, kv_head
):
    """Attend the rows of one block and kv head to all tokens up to their own."""
    chunk = _row_of(block_indptr, index)
    token = chunks.cu_seqlens[chunk]
    group = shape.num_heads // shape.num_kv_heads
    first_row = np.int64(index - block_indptr[chunk]) * BLOCK_ROWS
    chunk_rows = np.int64(chunks.cu_seqlens[chunk + 1] - token) * group
    rows = min(BLOCK_ROWS, chunk_rows - first_row)
    position = chunks.first_positions[chunk] + first_row // group
    end = chunks.first_positions[chunk] + (first_row + rows - 1) // group + 1
    block = _pack_block(queries, shape, token, kv_head, first_row, rows, sm_scale)
    columns = queries.shape[1]
    tile = Tile(
        aligned(TILE_TOKENS, columns), aligned(TILE_TOKENS, columns), aligned(TILE_TOKENS, LANES)
    )
    first_page = np.int64(chunks.page_indptr[chunk])
    for start in range(0, end, TILE_TOKENS):
        _fill_tile(keys, values, chunks, shape, first_page, kv_head, start, end, tile)
        for s in range((rows + LANES - 1) // LANES):
            add_tile(block, s, min(LANES, rows - s * LANES), tile, start - position)
    _unpack_block(block, shape, token, kv_head, first_row, rows, outputs, lse)


@kernel
def _attend_blocks_kernel(
    queries, keys, values, chunks, shape, block_indptr, num_workers, sm_scale, outputs, lse
):
    """Attend every row of every chunk.

    Work      one task per (kv head, block), so that a head's pages stay in a cache; later blocks
              of a prompt are longer: workers take neighbours in turns, each round in other order
    Writes    outputs[token, head, :], lse[token, head], every element once
    Bytes     reads 2 * D * itemsize per token, kv head and block
    """
    num_blocks = np.int64(block_indptr[-1])
    tasks = num_blocks * shape.num_kv_heads
    for i in prange(num_workers):
        worker = np.int64(i)  # unsigned, it would make floating-point indices
        for start in range(0, tasks, num_workers):
            is_even = start // num_workers % 2 == 0
            task = start + (worker if is_even else num_workers - 1 - worker)
            if task < tasks:
                _attend_block(
                    queries, keys, values, chunks, shape, block_indptr, sm_scale, outputs, lse,
                    task % num_blocks, task // num_blocks,
                )  # fmt: skip


def _block_indptr(cu_seqlens: np.ndarray, group: int) -> np.ndarray:
    """Return where each chunk's blocks start."""
    rows = np.diff(cu_seqlens.astype(np.int64)) * group
    return np.concatenate([[0], np.cumsum(-(-rows // BLOCK_ROWS))]).astype(np.int64)


def _check_chunks(chunks: Chunks, num_tokens: int, page_size: int) -> None:
    """Raise ValueError unless chunks are the tokens, in order, and their pages hold them."""
    lengths = np.diff(chunks.cu_seqlens)
    bounds = int(chunks.cu_seqlens[0]), int(chunks.cu_seqlens[-1])
    if bounds != (0, num_tokens) or np.any(lengths < 0):
        raise ValueError(f"cu_seqlens: got {chunks.cu_seqlens}, want 0 rising to {num_tokens}")
    if np.any(chunks.first_positions < 0):
        raise ValueError(f"first_positions: got {chunks.first_positions}, want none below 0")
    pages = np.diff(chunks.page_indptr)
    needed = np.where(lengths > 0, -(-(chunks.first_positions + lengths) // page_size), 0)
    if np.any(pages < needed):
        chunk = int(np.argmax(pages < needed))
        got = f"{pages[chunk]} pages for chunk {chunk}"
        raise ValueError(f"page_indptr: got {got}, want at least {needed[chunk]}")


_attend_blocks = timed(_attend_blocks_kernel)


def attend_prompts(
    queries: np.ndarray,  # [n, H, D] f32, chunk after chunk
    cu_seqlens: np.ndarray,  # [C + 1] i32
    first_positions: np.ndarray,  # [C] i32 or i64
    keys: np.ndarray,  # [N, G, T, D]
    values: np.ndarray,  # as keys
    page_indptr: np.ndarray,  # [C + 1] i32
    page_ids: np.ndarray,  # [m] i32; a request's pages hold the chunk's own tokens too
    num_kv_heads: int,  # G
    sm_scale: float,
    outputs: np.ndarray,  # [n, H, D] f32
    lse: np.ndarray,  # [n, H] f32
) -> None:
    """Attend each token's heads to the tokens of its request up to its own position."""
    check_array("queries", queries, (None, None, None), np.float32)
    num_tokens, num_heads, head_dim = queries.shape
    if num_heads % num_kv_heads:
        raise ValueError(f"queries: got {num_heads} heads, want a multiple of {num_kv_heads}")
    check_array("keys", keys, (None, num_kv_heads, None, head_dim))
    check_array("values", values, keys.shape, keys.dtype)
    check_array("outputs", outputs, queries.shape, np.float32)
    check_array("lse", lse, (num_tokens, num_heads), np.float32)
    check_array("cu_seqlens", cu_seqlens, (None,), np.int32)
    check_array("first_positions", first_positions, (len(cu_seqlens) - 1,))
    if first_positions.dtype not in (np.int32, np.int64):
        raise ValueError(f"first_positions: got dtype {first_positions.dtype}, want int32 or int64")
    check_array("page_indptr", page_indptr, cu_seqlens.shape, np.int32)
    check_array("page_ids", page_ids, (None,), np.int32)
    chunks = Chunks(cu_seqlens, first_positions.astype(np.int64), page_indptr, page_ids)
    shape = Shape(num_heads, num_kv_heads, keys.shape[2])
    _check_chunks(chunks, num_tokens, shape.page_size)
    if num_tokens == 0:
        return
    _attend_blocks(
        as_rows(queries), as_rows(keys), as_rows(values), chunks, shape,
        _block_indptr(cu_seqlens, num_heads // num_kv_heads), get_num_threads(),
        np.float32(sm_scale), outputs.reshape(-1, head_dim), lse.reshape(-1),
    )  # fmt: skip
