"""Attention over page lists on a device: softmax within a split, splits merged by log-sum-exp.

    out = sum_t softmax_t(sm_scale q . k_t) v_t      lse = log sum_t exp(sm_scale q . k_t)

Dense and sparse decode are one kernel: a *row* (request, unit) lists all pages of a request, or the
selected ones. A *head tile* is the query heads of a row that share a kv head; a block is one split
of one head tile. A warp takes up to four of these heads and 16 tokens at a time:

    warp w: heads 4 (w % head_warps) ..      tokens 16 (w // head_warps), + 16 token_warps, ...

Warps that share tokens read them through the L1 cache, so that K and V cross memory once for the
group. Where a row is cut depends on its own length alone and every sum has a written order.
Softmax is kept to base 2: queries are scaled by sm_scale log2(e) once.
"""

from dataclasses import dataclass
from functools import cache
from math import log

import numpy as np

from numbadsd.kernels import shared
from numbadsd.kernels.cuda.launch import DeviceArray, Kernel, check_array
from numbadsd.kernels.cuda.ops import (
    cuda,
    device,
    ex2,
    float32,
    int64,
    lg2,
    quotient,
    shfl_xor,
    uint32,
)
from numbadsd.kernels.cuda.tile_step import TOKENS, make_tile_step
from numbadsd.kernels.cuda.tiles import Row, heads_of_warp, rows_sum

NUM_WARPS = 4
NUM_THREADS = 32 * NUM_WARPS
MERGE_THREADS = 256
MAX_TILE_HEADS = 16
MAX_SPLIT_PAGES = max(shared.SPLIT_TOKENS)  # with pages of one token
_NO_SELECTION = -1
_NEG_INF = float32(-np.inf)
_ZERO = float32(0)
_LOG2_E = np.float32(1.4426950408889634)
_LN_2 = np.float32(log(2))

_split_pages = device(shared.split_pages)


@dataclass(frozen=True)
class AttendSpec:
    """Compile-time constants of the split kernel."""

    head_dim: int
    kv_dtype: str
    page_size: int
    tile_heads: int

    @property
    def warp_heads(self) -> int:
        """Heads of a warp."""
        return heads_of_warp(self.tile_heads)

    @property
    def head_warps(self) -> int:
        """Warps that take different heads of the same tokens: 1, 2 or 4."""
        needed = -(-self.tile_heads // self.warp_heads)
        return 4 if needed > 2 else needed


@device
def _row_pages(count, max_selected):
    """Return the pages of a row: all, or the selected ones (max_selected >= 0)."""
    return count if max_selected < 0 else min(count, max_selected)


@device
def _row_tokens(pages, last_position, count, last_page_tokens, page_size):
    """Return the tokens of a row of `pages` pages that ends with page `last_position`."""
    if pages == 0:
        return 0
    last = last_page_tokens if last_position == count - 1 else page_size
    return (pages - 1) * page_size + last


@cache
def attend_splits_kernel(spec: AttendSpec) -> Kernel:
    """Return the kernel of partial results.

    Work      one block per (request, head tile, split), in this order; empty splits do nothing
    Block     4 warps
    Shared    queries, page ids, weights of 16 tokens, sums of each warp
    Writes    sums[block, head, :] = sum of 2^(score - maximum) v, softmax[block, head] = (maximum,
              sum of 2^(score - maximum)); nothing for an empty split
    Bytes     reads 2 D e per token and kv head, once
    """
    row = Row(spec.head_dim, spec.kv_dtype)
    head_dim, page_size, tile_heads = spec.head_dim, spec.page_size, spec.tile_heads
    warp_heads, head_warps = spec.warp_heads, spec.head_warps
    token_warps = NUM_WARPS // head_warps
    padded_heads = warp_heads * head_warps
    query_size, sums_size = padded_heads * head_dim, NUM_WARPS * warp_heads * head_dim
    max_pages = max(1, max(shared.SPLIT_TOKENS) // page_size)
    vector, lanes = row.vector, row.lanes
    lane_elements = row.vectors_per_lane * vector
    accumulators = (warp_heads, lane_elements)
    whole_step = make_tile_step(row, page_size, warp_heads, head_warps > 1, False)
    last_step = make_tile_step(row, page_size, warp_heads, head_warps > 1, True)
    weights_size = NUM_WARPS * TOKENS * warp_heads
    states_size = NUM_WARPS * warp_heads
    row_words = row.words

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
        pages = _row_pages(count, max_selected)
        list_start = (request * num_units + quotient(head_tile, tiles_per_unit)) * max_selected
        last_position = pages - 1
        if max_selected > 0 and pages > 0:
            last_position = selected[list_start + pages - 1]
        tokens = _row_tokens(pages, last_position, count, last_page_tokens[request], page_size)
        per_split = _split_pages(pages, page_size)
        begin = split * per_split
        here = min(per_split, pages - begin)  # at most 0: the split is empty
        if here > 0:
            for i in range(thread, here, NUM_THREADS):
                position = begin + i
                if max_selected > 0:
                    position = selected[list_start + position]
                page = int64(page_ids[first_page + position])
                tile_rows[i] = (page * num_kv_heads + kv_head) * page_size
            for i in range(thread, query_size, NUM_THREADS):
                x = _ZERO
                if i < tile_heads * head_dim:
                    x = queries[int64(tile) * (tile_heads * head_dim) + i] * scale
                query[i] = x
            cuda.syncthreads()

            left = min(tokens - begin * page_size, per_split * page_size)
            lane, warp = thread % 32, thread // 32
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

            for i in range(thread, tile_heads * head_dim, NUM_THREADS):
                head = i // head_dim
                state = head // warp_heads * warp_heads + head % warp_heads
                largest = _NEG_INF
                for other in range(token_warps):
                    largest = max(largest, maxima[other * padded_heads + state])
                shift = _ZERO if largest == _NEG_INF else largest
                total, mass = _ZERO, _ZERO
                for other in range(token_warps):
                    index = other * padded_heads + state
                    weight = ex2(maxima[index] - shift)
                    mass += weight * denominators[index]
                    total += weight * warp_sums[index * head_dim + i % head_dim]
                sums[int64(block) * (tile_heads * head_dim) + i] = total
                if i % head_dim == 0:
                    softmax[(block * tile_heads + head) * 2] = largest
                    softmax[(block * tile_heads + head) * 2 + 1] = mass

    return Kernel(
        name=f"attend_splits-{head_dim}-{spec.kv_dtype}-{page_size}-{tile_heads}",
        function=attend_splits,
        parameters=(
            "f32[]", "u32[]", "u32[]", "i32[]", "i32[]", "i32[]", "i32[]", "f32[]", "f32[]",
            "i32", "i32", "i32", "i32", "i32", "i32", "f32",
        ),
        num_threads=NUM_THREADS,
        max_registers=128,
        load_bytes=min(row_words, 16 * 8) * 4 // 4,
    )  # fmt: skip


@dataclass(frozen=True)
class MergeSpec:
    """Compile-time constants of the merge kernel."""

    head_dim: int
    page_size: int
    tile_heads: int


@cache
def merge_splits_kernel(spec: MergeSpec) -> Kernel:
    """Return the kernel that merges the splits of every (request, head).

    Work      one block per (request, query head); threads along head_dim, groups of them take
              every n-th split
    Shared    maxima and sums of each group
    Writes    outputs and lse, every element once; 0 and -inf where nothing was attended
    """
    head_dim, page_size, tile_heads = spec.head_dim, spec.page_size, spec.tile_heads
    columns = 1 << (head_dim - 1).bit_length()
    groups = MERGE_THREADS // columns
    sums_size = groups * head_dim

    def merge_splits(sums, softmax, page_indptr, outputs, lse, num_heads, max_selected, max_splits):
        maxima = cuda.shared.array(MERGE_THREADS, float32)
        masses = cuda.shared.array(groups, float32)
        totals = cuda.shared.array(sums_size, float32)
        thread, block = cuda.threadIdx.x, cuda.blockIdx.x
        request = quotient(block, num_heads)
        head = block - request * num_heads
        count = page_indptr[request + 1] - page_indptr[request]
        pages = _row_pages(count, max_selected)
        per_split = _split_pages(pages, page_size)
        splits = quotient(pages + per_split - 1, per_split)
        tile = quotient(block, tile_heads)  # heads of a tile are neighbours
        first = int64(tile) * max_splits * tile_heads + head % tile_heads

        largest = _NEG_INF
        for split in range(thread, splits, MERGE_THREADS):
            largest = max(largest, softmax[(first + split * tile_heads) * 2])
        maxima[thread] = largest
        cuda.syncthreads()
        half = MERGE_THREADS // 2
        while half > 0:
            if thread < half:
                maxima[thread] = max(maxima[thread], maxima[thread + half])
            cuda.syncthreads()
            half //= 2
        largest = maxima[0]
        shift = _ZERO if largest == _NEG_INF else largest

        group, d = thread // columns, thread % columns
        total, mass = _ZERO, _ZERO
        if d < head_dim:
            for split in range(group, splits, groups):
                slot = first + split * tile_heads
                weight = ex2(softmax[slot * 2] - shift)
                mass += weight * softmax[slot * 2 + 1]
                total += weight * sums[slot * head_dim + d]
            totals[group * head_dim + d] = total
            if d == 0:
                masses[group] = mass
        cuda.syncthreads()
        if thread < head_dim:
            total, mass = _ZERO, _ZERO
            for other in range(groups):
                total += totals[other * head_dim + thread]
                mass += masses[other]
            attended = mass != _ZERO  # NaN stays NaN
            outputs[int64(block) * head_dim + thread] = total / mass if attended else _ZERO
            if thread == 0:
                lse[block] = (largest + lg2(mass)) * _LN_2 if attended else _NEG_INF

    return Kernel(
        name=f"merge_splits-{head_dim}-{page_size}-{tile_heads}",
        function=merge_splits,
        parameters=("f32[]", "f32[]", "i32[]", "f32[]", "f32[]", "i32", "i32", "i32"),
        num_threads=MERGE_THREADS,
        max_registers=64,
        load_bytes=4,
    )


def workspace_sizes(batch: int, num_heads: int, head_dim: int, max_splits: int) -> tuple[int, int]:
    """Return the float32 numbers of `sums` and of `softmax` that a launch needs."""
    slots = batch * num_heads * max_splits
    return slots * head_dim, slots * 2


def attend_pages(
    queries: DeviceArray,  # [B, H, D] f32
    keys: DeviceArray,  # [N, G, T, D]
    values: DeviceArray,  # as keys
    page_indptr: DeviceArray,  # [B + 1] i32
    page_ids: DeviceArray,  # [n] i32
    last_page_tokens: DeviceArray,  # [B] i32
    num_kv_heads: int,  # G
    sm_scale: float,
    outputs: DeviceArray,  # [B, H, D] f32
    lse: DeviceArray,  # [B, H] f32
    *,
    stream,
    workspace: tuple[DeviceArray, DeviceArray],  # sums, softmax: f32, see workspace_sizes
    max_pages: int,  # no request has more
    selected: DeviceArray | None = None,  # [B, S, K] i32
) -> None:
    """Attend each head to the tokens of its request's pages, or of the selected ones.

    Rows without pages give 0 and -inf.
    """
    check_array("queries", queries, (None, None, None), np.float32)
    batch, num_heads, head_dim = queries.shape
    check_array("keys", keys, (None, num_kv_heads, None, head_dim))
    check_array("values", values, keys.shape, keys.dtype)
    check_array("page_indptr", page_indptr, (batch + 1,), np.int32)
    check_array("last_page_tokens", last_page_tokens, (batch,), np.int32)
    check_array("outputs", outputs, queries.shape, np.float32)
    check_array("lse", lse, (batch, num_heads), np.float32)
    page_size, group = keys.shape[2], num_heads // num_kv_heads
    units, max_selected = 1, _NO_SELECTION
    if selected is not None:
        check_array("selected", selected, (batch, None, None), np.int32)
        units, max_selected = selected.shape[1:]
        max_pages = min(max_pages, max_selected)
    tile_heads = 1 if units == num_heads else group
    if tile_heads > MAX_TILE_HEADS or units not in (1, num_kv_heads, num_heads):
        got = f"{group} query heads on a kv head, {units} lists a request"
        raise ValueError(f"queries: got {got}, want at most {MAX_TILE_HEADS}, 1 or G or H")
    tiles = num_heads // tile_heads
    max_splits = shared.most_splits(max_pages, page_size)
    sums, softmax = workspace
    for name, array, size in zip(
        ("sums", "softmax"), workspace, workspace_sizes(batch, num_heads, head_dim, max_splits),
        strict=True,
    ):  # fmt: skip
        if array.size < size:
            raise ValueError(f"workspace: got {array.size} numbers for {name}, want {size}")
    if batch == 0:
        return
    spec = AttendSpec(head_dim, str(keys.dtype), page_size, tile_heads)
    stream.launch(
        attend_splits_kernel(spec), batch * tiles * max_splits, queries, keys, values, page_indptr,
        page_ids, last_page_tokens, page_ids if selected is None else selected, sums, softmax,
        units, tiles // units, group // tile_heads, num_kv_heads, max_selected, max_splits,
        np.float32(np.float32(sm_scale) * _LOG2_E),
    )  # fmt: skip
    stream.launch(
        merge_splits_kernel(MergeSpec(head_dim, page_size, tile_heads)), batch * num_heads,
        sums, softmax, page_indptr, outputs, lse, num_heads, max_selected, max_splits,
    )  # fmt: skip
