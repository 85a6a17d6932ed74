"""Partial attention: one block takes one split of one head tile (see `attend`).

A warp takes up to four heads and 16 tokens at a time:

    warp w: heads 4 (w % head_warps) ..      tokens 16 (w // head_warps), + 16 token_warps, ...

Warps that share tokens read them through the L1 cache, so that K and V cross memory once for the
group.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from numbadsd.kernels import shared
from numbadsd.kernels.cuda.launch import LOADS_IN_FLIGHT, Kernel
from numbadsd.kernels.cuda.ops import (
    cuda,
    device,
    ex2,
    float32,
    int32,
    int64,
    quotient,
    shfl_xor,
    uint32,
)
from numbadsd.kernels.cuda.tile_step import LOADS, TOKENS, make_tile_step, softmax_shift
from numbadsd.kernels.cuda.tiles import Row, heads_of_warp, rows_sum

MAX_WARPS = 4
_NEG_INF = float32(-np.inf)
_ZERO = float32(0)

split_pages = device(shared.split_pages)


@dataclass(frozen=True)
class AttendSpec:
    """Compile-time constants of the split kernel."""

    head_dim: int
    kv_dtype: str
    page_size: int
    tile_heads: int
    group: int  # query heads of a kv head

    @property
    def warp_heads(self) -> int:
        """Heads of a warp."""
        return heads_of_warp(self.tile_heads)

    @property
    def head_warps(self) -> int:
        """Warps that take different heads of the same tokens: 1, 2 or 4."""
        return _head_warps(self.tile_heads)

    @property
    def token_warps(self) -> int:
        """Warps that take different tokens: those of a tile of the whole group.

        So that a head's sums have the same order in a tile of its own.
        """
        return MAX_WARPS // _head_warps(self.group)


def _head_warps(heads: int) -> int:
    needed = -(-heads // heads_of_warp(heads))
    return 4 if needed > 2 else needed


@device
def row_pages(count, max_selected):
    """Return the pages of a row: all, or the selected ones (max_selected >= 0)."""
    return count if max_selected < 0 else min(count, max_selected)


def _registers(row: Row, warp_heads: int, head_warps: int) -> int:
    """Return the budget of a thread: with 96, 128 or 168, five, four or three blocks fit."""
    if row.head_dim > 128 or head_warps > 1:
        return 168
    return 96 if warp_heads == 1 and row.kv_dtype != "float32" else 128


@device
def _row_tokens(pages, last_position, count, last_page_tokens, page_size):
    """Return the tokens of a row of `pages` pages that ends with page `last_position`."""
    if pages == 0:
        return 0
    last = last_page_tokens if last_position == count - 1 else page_size
    return (pages - 1) * page_size + last


def _make_merge_warps(spec: AttendSpec):
    """Return ``merge_warps``: a block writes what its warps found, tokens in their order."""
    head_dim, tile_heads, token_warps = spec.head_dim, spec.tile_heads, spec.token_warps
    padded_heads = spec.warp_heads * spec.head_warps
    size, num_threads = tile_heads * head_dim, 32 * spec.head_warps * token_warps

    @device
    def merge_warps(maxima, denominators, warp_sums, sums, softmax):
        block = cuda.blockIdx.x
        for i in range(cuda.threadIdx.x, size, num_threads):
            head = i // head_dim
            largest = _NEG_INF
            for other in range(token_warps):
                largest = max(largest, maxima[other * padded_heads + head])
            shift = softmax_shift(largest)
            total, mass = _ZERO, _ZERO
            for other in range(token_warps):
                index = other * padded_heads + head
                weight = ex2(maxima[index] - shift)
                mass += weight * denominators[index]
                total += weight * warp_sums[index * head_dim + i % head_dim]
            sums[int64(block) * size + i] = total
            if i % head_dim == 0:
                softmax[(block * tile_heads + head) * 2] = largest
                softmax[(block * tile_heads + head) * 2 + 1] = mass

    return merge_warps


@cache
def attend_splits_kernel(spec: AttendSpec) -> Kernel:
    """Return the kernel of partial results.

    Work      one block per (request, head tile, split), in this order; empty splits do nothing
    Block     4 warps, fewer where a tile is one head of a group of more than four
    Shared    queries, page ids, weights of 16 tokens, sums of each warp
    Writes    sums[block, head, :] = sum of 2^(score - maximum) v, softmax[block, head] = (maximum,
              sum of 2^(score - maximum)); nothing for an empty split
    Bytes     reads 2 D e per token and kv head, once
    """
    row = Row(spec.head_dim, spec.kv_dtype)
    head_dim, page_size, tile_heads = spec.head_dim, spec.page_size, spec.tile_heads
    warp_heads, head_warps = spec.warp_heads, spec.head_warps
    token_warps, num_warps = spec.token_warps, head_warps * spec.token_warps
    num_threads = 32 * num_warps
    padded_heads = warp_heads * head_warps
    query_size, sums_size = padded_heads * head_dim, num_warps * warp_heads * head_dim
    max_pages = max(1, max(shared.SPLIT_TOKENS) // page_size)
    vector, lanes = row.vector, row.lanes
    lane_elements = row.vectors_per_lane * vector
    accumulators = (warp_heads, lane_elements)
    whole_step = make_tile_step(row, page_size, warp_heads, head_warps > 1, False)
    last_step = make_tile_step(row, page_size, warp_heads, head_warps > 1, True)
    merge_warps = _make_merge_warps(spec)
    weights_size = num_warps * TOKENS * warp_heads
    states_size = num_warps * warp_heads

    def attend_splits(
        queries, keys, values, page_indptr, page_ids, last_page_tokens, selected, sums, softmax,
        num_units, tiles_per_unit, tiles_per_kv_head, num_kv_heads, max_selected, max_splits, scale,
    ):  # fmt: skip
        query = cuda.shared.array(query_size, float32, alignment=16)
        tile_rows = cuda.shared.array(max_pages, int64)
        weights = cuda.shared.array(weights_size, float32, alignment=16)
        corrections = cuda.shared.array(states_size, float32, alignment=16)
        warp_sums = cuda.shared.array(sums_size, float32, alignment=16)
        maxima = cuda.shared.array(states_size, float32)
        denominators = cuda.shared.array(states_size, float32)

        thread, block = cuda.threadIdx.x, cuda.blockIdx.x
        tile = quotient(block, max_splits)
        split = block - tile * max_splits
        request = quotient(tile, num_units * tiles_per_unit)
        head_tile = tile - request * (num_units * tiles_per_unit)
        kv_head = quotient(head_tile, tiles_per_kv_head)
        first_page = page_indptr[request]
        count = page_indptr[request + 1] - first_page
        pages = row_pages(count, max_selected)
        list_start = (request * num_units + quotient(head_tile, tiles_per_unit)) * max_selected
        last_position = pages - 1
        if max_selected > 0 and pages > 0:
            last_position = selected[list_start + pages - 1]
        tokens = _row_tokens(pages, last_position, count, last_page_tokens[request], page_size)
        per_split = split_pages(pages, page_size)
        begin = split * per_split
        here = min(per_split, pages - begin)  # at most 0: the split is empty
        if here > 0:
            for i in range(thread, here, num_threads):
                position = begin + i
                if max_selected > 0:
                    position = selected[list_start + position]
                page = int64(page_ids[first_page + position])
                tile_rows[i] = (page * num_kv_heads + kv_head) * page_size
            for i in range(thread, query_size, num_threads):
                x = _ZERO
                if i < tile_heads * head_dim:
                    x = queries[int64(tile) * (tile_heads * head_dim) + i] * scale
                query[i] = x
            cuda.syncthreads()

            left = min(tokens - begin * page_size, per_split * page_size)
            lane, warp = int32(thread & 31), int32(thread >> 5)
            head_warp, token_warp = warp % head_warps, warp // head_warps
            acc = cuda.local.array(accumulators, float32)
            for h in range(warp_heads):
                for e in range(lane_elements):
                    acc[h, e] = _ZERO
            maximum, denominator = _NEG_INF, _ZERO
            first_query = head_warp * warp_heads * head_dim
            first_weight = warp * TOKENS * warp_heads
            token = token_warp * TOKENS
            while token + TOKENS <= left:
                maximum, denominator = whole_step(
                    keys, values, tile_rows, query, first_query, weights, first_weight,
                    corrections, warp * warp_heads, acc, maximum, denominator, token, left, lane,
                )  # fmt: skip
                token += TOKENS * token_warps
            if token < left:
                maximum, denominator = last_step(
                    keys, values, tile_rows, query, first_query, weights, first_weight,
                    corrections, warp * warp_heads, acc, maximum, denominator, token, left, lane,
                )  # fmt: skip

            # lanes that took other rows hold parts of the same sums
            denominator = rows_sum(denominator)
            part = lanes
            while part < 32:
                for h in range(warp_heads):
                    for e in range(lane_elements):
                        acc[h, e] += shfl_xor(acc[h, e], uint32(part))
                part *= 2
            if lane < warp_heads:
                maxima[warp * warp_heads + lane] = maximum
                denominators[warp * warp_heads + lane] = denominator
            if lane < lanes:
                for h in range(warp_heads):
                    start = (warp * warp_heads + h) * head_dim
                    for e in range(lane_elements):
                        d = (e // vector * lanes + lane) * vector + e % vector
                        if d < head_dim:
                            warp_sums[start + d] = acc[h, e]
            cuda.syncthreads()

            merge_warps(maxima, denominators, warp_sums, sums, softmax)

    return Kernel(
        name=f"attend_splits-{head_dim}-{spec.kv_dtype}-{page_size}-{tile_heads}-{spec.group}",
        function=attend_splits,
        parameters=(
            "f32[]", "u32[]", "u32[]", "i32[]", "i32[]", "i32[]", "i32[]", "f32[]", "f32[]",
            "i32", "i32", "i32", "i32", "i32", "i32", "f32",
        ),
        num_threads=num_threads,
        max_registers=_registers(row, warp_heads, head_warps),
        load_bytes=16 * LOADS,
        low_occupancy=LOADS_IN_FLIGHT,
    )  # fmt: skip
