"""Partial attention: one block takes one split of one head tile (see `attend`).

A warp takes some heads and 16 tokens at a time (see `attend_spec`):

    warp w    heads from warp_heads (w % head_warps) on
              tokens from 16 (w // head_warps) on, then 16 token_warps further

Warps that share tokens read them through the L1 cache, so that K and V cross memory once for the
group.
"""

from functools import cache

import numpy as np

from numbadsd.kernels import shared
from numbadsd.kernels.cuda.attend_spec import FMA, TOKENS, AttendSpec, softmax_shift
from numbadsd.kernels.cuda.fma_way import make_fma_way
from numbadsd.kernels.cuda.launch import LOADS_IN_FLIGHT, Kernel
from numbadsd.kernels.cuda.mma_way import make_mma_way
from numbadsd.kernels.cuda.ops import (
    cuda,
    device,
    ex2,
    float32,
    int32,
    int64,
    load1,
    quotient,
    store1,
    uint32,
)

_NEG_INF = float32(-np.inf)
_ZERO = float32(0)

split_pages = device(shared.split_pages)


@device
def row_pages(count, max_selected):
    """Return the pages of a row: all, or the selected ones (max_selected >= 0)."""
    return count if max_selected < 0 else min(count, max_selected)


def _make_find_split(page_size: int):
    """Return ``find_split``: which pages of which row a block takes."""

    @device
    def find_split(request, row, split, page_indptr, last_page_tokens, selected, max_selected):
        """Return the row's first places in page_ids and in selected; the split's pages and tokens.

        The split takes `here` pages from `begin` on; with 0 or less it is empty.
        """
        first_page = load1(page_indptr, request)
        count = int32(load1(page_indptr, request + 1) - first_page)
        pages = int32(row_pages(count, max_selected))
        per_split = int32(split_pages(pages, page_size))
        begin = int32(split * per_split)
        here = min(per_split, int32(pages - begin))
        first_selected, left = int32(row * max_selected), int32(0)
        if here > 0:
            last_position = int32(pages - 1)
            if max_selected > 0:
                last_position = load1(selected, int32(first_selected + last_position))
            left = int32(here * page_size)
            if begin + here == pages and last_position == count - 1:
                left = int32(left - page_size + load1(last_page_tokens, request))
        return first_page, first_selected, begin, here, left

    return find_split


def _make_merge_warps(spec: AttendSpec, row_stride: int):
    """Return ``merge_warps``: a block writes what its warps found, tokens in their order."""
    head_dim, tile_heads, token_warps = spec.head_dim, spec.tile_heads, spec.token_warps
    padded_heads = spec.warp_heads * spec.head_warps
    size, num_threads = tile_heads * head_dim, 32 * spec.head_warps * token_warps
    turns = -(-size // num_threads)

    @device
    def merge_warps(maxima, denominators, warp_sums, sums, softmax, block, thread):
        for turn in range(turns):
            i = int32(thread + turn * num_threads)
            if i >= size:
                break
            head, d = uint32(i) // uint32(head_dim), uint32(i) % uint32(head_dim)
            largest = _NEG_INF
            for other in range(token_warps):
                largest = max(largest, load1(maxima, int32(other * padded_heads + head)))
            shift = softmax_shift(largest)
            total, mass = _ZERO, _ZERO
            for other in range(token_warps):
                index = int32(other * padded_heads + head)
                weight = ex2(load1(maxima, index) - shift)
                mass += weight * load1(denominators, index)
                total += weight * load1(warp_sums, int32(index * row_stride + d))
            store1(sums, int64(block) * size + i, total)
            if d == 0:
                place = (int64(block) * tile_heads + head) * 2
                store1(softmax, place, largest)
                store1(softmax, place + 1, mass)

    return merge_warps


@cache
def attend_splits_kernel(spec: AttendSpec) -> Kernel:
    """Return the kernel of partial results.

    Work      one block per (request, head tile, split), in this order; empty splits do nothing
    Block     4 warps, fewer where a tile is one head of a group of more warps
    Shared    queries, page ids, sums of each warp, what its way keeps
    Writes    sums[block, head, :] = sum of 2^(score - maximum) v, softmax[block, head] = (maximum,
              sum of 2^(score - maximum)); nothing for an empty split
    Bytes     reads 2 D e per token and kv head, once
    """
    way = make_fma_way(spec) if spec.way == FMA else make_mma_way(spec)
    page_size, tile_size = spec.page_size, spec.tile_heads * spec.head_dim
    kv_head_tiles, find_split = spec.group // spec.tile_heads, _make_find_split(spec.page_size)
    head_warps, token_warps = spec.head_warps, spec.token_warps
    num_threads = 32 * head_warps * token_warps
    states_size = head_warps * token_warps * spec.warp_heads
    max_pages = max(1, max(shared.SPLIT_TOKENS) // page_size)
    query_type, query_size, scratch_size = way.query_type, way.query_size, way.scratch_size
    sums_shape, sums_size = way.sums_shape, states_size * way.row_stride
    load_queries, finish = way.load_queries, way.finish
    whole_step, last_step = way.whole_step, way.last_step
    merge_warps = _make_merge_warps(spec, way.row_stride)

    def attend_splits(
        queries, keys, values, page_indptr, page_ids, last_page_tokens, selected, sums, softmax,
        num_units, num_kv_heads, max_selected, max_splits, scale,
    ):  # fmt: skip
        query = cuda.shared.array(query_size, query_type, alignment=16)
        tile_rows = cuda.shared.array(max_pages, int64)
        scratch = cuda.shared.array(scratch_size, float32, alignment=16)
        warp_sums = cuda.shared.array(sums_size, float32, alignment=16)
        maxima = cuda.shared.array(states_size, float32)
        denominators = cuda.shared.array(states_size, float32)

        thread, block = int32(cuda.threadIdx.x), int32(cuda.blockIdx.x)
        tile = quotient(block, max_splits)
        kv_tile = int32(uint32(tile) // uint32(kv_head_tiles))
        request = quotient(kv_tile, num_kv_heads)
        row = request if num_units == 1 else tile  # where units differ, each is one tile
        first_page, first_selected, begin, here, left = find_split(
            request, row, int32(block - tile * max_splits), page_indptr, last_page_tokens,
            selected, max_selected,
        )  # fmt: skip
        if here > 0:
            kv_head = int32(kv_tile - request * num_kv_heads)
            i = thread
            while i < here:
                position = int32(begin + i)
                if max_selected > 0:
                    position = load1(selected, int32(first_selected + position))
                page = load1(page_ids, int32(first_page + position))
                store1(tile_rows, i, (int64(page) * num_kv_heads + kv_head) * page_size)
                i = int32(i + num_threads)
            load_queries(queries, int64(tile) * tile_size, scale, query, scratch, thread)
            cuda.syncthreads()

            lane, warp = thread & int32(31), thread >> int32(5)
            acc = cuda.local.array(sums_shape, float32)
            for i in range(acc.shape[0]):
                for j in range(acc.shape[1]):
                    acc[i, j] = _ZERO
            maximum, denominator = _NEG_INF, _ZERO
            token = int32(warp // head_warps * TOKENS)
            while token + TOKENS <= left:
                maximum, denominator = whole_step(
                    keys, values, tile_rows, query, scratch, acc, maximum, denominator, token,
                    left, warp, lane,
                )  # fmt: skip
                token = int32(token + TOKENS * token_warps)
            if token < left:
                maximum, denominator = last_step(
                    keys, values, tile_rows, query, scratch, acc, maximum, denominator, token,
                    left, warp, lane,
                )  # fmt: skip
            finish(acc, maximum, denominator, warp_sums, maxima, denominators, warp, lane)
            cuda.syncthreads()
            merge_warps(maxima, denominators, warp_sums, sums, softmax, block, thread)

    return Kernel(
        name=(
            f"attend_splits_{spec.way}-{spec.head_dim}-{spec.kv_dtype}-{page_size}"
            f"-{spec.tile_heads}-{spec.group}"
        ),
        function=attend_splits,
        parameters=(
            "f32[]", "u32[]", "u32[]", "i32[]", "i32[]", "i32[]", "i32[]", "f32[]", "f32[]",
            "i32", "i32", "i32", "i32", "f32",
        ),
        num_threads=num_threads,
        max_registers=way.max_registers,
        load_bytes=way.load_bytes,
        low_occupancy=LOADS_IN_FLIGHT,
    )  # fmt: skip
