"""Select the k best pages of each unit on a device: exact, deterministic, a block a row.

Radix selection on an order-preserving uint32 key, eight bits a pass: a histogram in shared memory,
its suffix sums, the digit in which the k-th best key lies. Then each thread takes a run of
positions; sums over the runs before it tell where its own pages go, so that positions come out
ascending: higher score first, ties to the lower position, NaN as -inf.
"""

from functools import cache

import numpy as np

from numbadsd.kernels import shared
from numbadsd.kernels.cuda.launch import DeviceArray, Kernel, check_array
from numbadsd.kernels.cuda.ops import (
    cuda,
    device,
    int32,
    int64,
    quotient,
    shfl_up,
    uint32,
)  # fmt: skip

NUM_THREADS = 256
NUM_WARPS = NUM_THREADS // 32
KEPT_KEYS = 8192  # of a row in shared memory; a longer row makes its keys again in each pass
BINS = 256  # one a thread
MAX_K = 1024

_FORCED_KEY = shared.FORCED_KEY
_ordered_key = device(shared.ordered_key)


@device
def _key_at(scores, base, position, count, num_sink_pages, num_recent_pages):
    """Return the key of a page; forced pages are above every score."""
    forced = position < num_sink_pages or position >= count - num_recent_pages
    return _FORCED_KEY if forced else _ordered_key(scores[base + position])


@device
def block_sum_before(number, warp_totals):
    """Return the sum over the threads before this one, and over all; called by whole blocks."""
    thread = cuda.threadIdx.x
    lane, warp = thread % 32, thread // 32
    total = uint32(number)
    for step in range(5):
        other = shfl_up(total, uint32(1 << step))
        if lane >= 1 << step:
            total = uint32(total + other)
    if lane == 31:
        warp_totals[warp] = int32(total)
    cuda.syncthreads()
    before, everything = int32(total) - number, int32(0)
    for other_warp in range(NUM_WARPS):
        if other_warp < warp:
            before += warp_totals[other_warp]
        everything += warp_totals[other_warp]
    cuda.syncthreads()
    return before, everything


@cache
def select_pages_kernel() -> Kernel:
    """Return the kernel of page selection.

    Work      one block per row (request, unit)
    Block     256 threads
    Writes    selected[row, :]: ascending positions, then -1
    Bytes     reads 4 per page once, or five times in a row of over 8192 pages
    """

    def select_pages(
        scores, page_counts, selected, units, stride, k, num_sink_pages, num_recent_pages
    ):
        keys = cuda.shared.array(KEPT_KEYS, uint32)
        histogram = cuda.shared.array(BINS, int32)
        warp_totals = cuda.shared.array(NUM_WARPS, int32)
        found = cuda.shared.array(2, int32)  # the digit, and how many keys are above it
        thread, row = cuda.threadIdx.x, cuda.blockIdx.x
        count = page_counts[quotient(row, units)]
        base, out = int64(row) * stride, int64(row) * k
        if count <= k:
            for i in range(thread, k, NUM_THREADS):
                selected[out + i] = i if i < count else -1
        else:
            is_kept = count <= KEPT_KEYS
            if is_kept:
                for i in range(thread, count, NUM_THREADS):
                    keys[i] = _key_at(scores, base, i, count, num_sink_pages, num_recent_pages)
            prefix, mask, wanted = uint32(0), uint32(0), int32(k)
            for step in range(4):
                shift = uint32(24 - 8 * step)
                histogram[thread] = 0
                cuda.syncthreads()
                for i in range(thread, count, NUM_THREADS):
                    key = keys[i] if is_kept else _key_at(
                        scores, base, i, count, num_sink_pages, num_recent_pages
                    )  # fmt: skip
                    if uint32(key & mask) == prefix:
                        cuda.atomic.add(histogram, uint32(uint32(key >> shift) & uint32(255)), 1)
                cuda.syncthreads()
                digit = BINS - 1 - thread
                here = histogram[digit]
                above, _ = block_sum_before(here, warp_totals)
                if above < wanted and above + here >= wanted:
                    found[0], found[1] = digit, above
                cuda.syncthreads()
                prefix = uint32(prefix | uint32(uint32(found[0]) << shift))
                mask = uint32(mask | uint32(uint32(255) << shift))
                wanted = int32(wanted - found[1])

            run = quotient(count + NUM_THREADS - 1, NUM_THREADS)
            begin, end = min(thread * run, count), min(thread * run + run, count)
            above, equal = int32(0), int32(0)
            for i in range(begin, end):
                key = keys[i] if is_kept else _key_at(
                    scores, base, i, count, num_sink_pages, num_recent_pages
                )  # fmt: skip
                above += int32(key > prefix)
                equal += int32(key == prefix)
            above_before, _ = block_sum_before(above, warp_totals)
            equal_before, _ = block_sum_before(equal, warp_totals)
            place = above_before + min(equal_before, wanted)
            for i in range(begin, end):
                key = keys[i] if is_kept else _key_at(
                    scores, base, i, count, num_sink_pages, num_recent_pages
                )  # fmt: skip
                take = key > prefix
                if key == prefix:
                    take = equal_before < wanted
                    equal_before += int32(1)
                if take:
                    selected[out + place] = i
                    place += 1

    return Kernel(
        name="select_pages",
        function=select_pages,
        parameters=("f32[]", "i32[]", "i32[]", "i32", "i32", "i32", "i32", "i32"),
        num_threads=NUM_THREADS,
        max_registers=64,
        load_bytes=4,
        low_occupancy="it keeps a row in shared memory; rows, not warps, fill a device",
    )


def select_pages(
    scores: DeviceArray,  # [B, S, P] f32
    page_counts: DeviceArray,  # [B] i32, at most P each
    num_sink_pages: int,
    num_recent_pages: int,
    selected: DeviceArray,  # [B, S, K] i32
    *,
    stream,
) -> None:
    """Write each unit's K best pages, ascending; forced pages are in and count towards K."""
    check_array("scores", scores, (None, None, None), np.float32)
    batch, units, stride = scores.shape
    check_array("page_counts", page_counts, (batch,), np.int32)
    check_array("selected", selected, (batch, units, None), np.int32)
    k = selected.shape[2]
    if num_sink_pages < 0 or num_recent_pages < 0 or num_sink_pages + num_recent_pages > k:
        forced = f"{num_sink_pages} + {num_recent_pages}"
        raise ValueError(f"num_sink_pages + num_recent_pages: got {forced}, want at most k = {k}")
    if k > MAX_K:
        raise ValueError(f"selected: got k = {k}, want at most {MAX_K} on a GPU")
    if selected.size:
        stream.launch(
            select_pages_kernel(), batch * units, scores, page_counts, selected, units, stride, k,
            num_sink_pages, num_recent_pages,
        )  # fmt: skip
