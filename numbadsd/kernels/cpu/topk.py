"""Select the k best pages of each selection unit: exact, deterministic, linear in the pages.

Radix selection on an order-preserving uint32 key: three histogram passes (11, 11 and 10 bits) find
the key of the k-th best page, one pass in ascending order emits every page above it and the first
ones equal to it. So: higher score first, ties to the lower position, NaN as -inf.
"""

import numpy as np
from numba import prange

from numbadsd.kernels import shared
from numbadsd.kernels.cpu.jit import device, kernel
from numbadsd.kernels.words import check_array

_ordered_key = device(shared.ordered_key)
_FORCED_KEY = shared.FORCED_KEY
_BINS = 2048
_PASSES = ((21, 11), (10, 11), (0, 10))  # (lowest bit, bits)


@device
def _kth_key(keys, count, k, histogram):
    """Return the k-th largest of keys[:count], and how many of its equals belong to the k."""
    wanted = k
    prefix, mask = np.uint32(0), np.uint32(0)
    for shift, bits in _PASSES:
        bins = 1 << bits
        low = np.uint32(bins - 1)
        histogram[:bins] = 0
        for i in range(count):
            if keys[i] & mask == prefix:
                histogram[(keys[i] >> np.uint32(shift)) & low] += 1
        digit = bins - 1
        while histogram[digit] < wanted:
            wanted -= histogram[digit]
            digit -= 1
        prefix = np.uint32(prefix | np.uint32(np.uint32(digit) << np.uint32(shift)))
        mask = np.uint32(mask | np.uint32(low << np.uint32(shift)))
    return prefix, wanted


@kernel
def select_pages_kernel(scores, page_counts, num_sink_pages, num_recent_pages, selected):
    """Write selected[row, :]: ascending positions, then -1.

    Work      one task per row (request, unit)
    Writes    selected, every element once
    Bytes     reads 4 per page, once; the keys of a row stay in cache
    """
    rows, k = selected.shape
    units = rows // page_counts.size
    for row in prange(rows):
        count = page_counts[row // units]
        written = 0
        if count <= k:
            for position in range(count):
                selected[row, position] = position
            written = count
        elif k > 0:
            keys = np.empty(count, np.uint32)
            for i in range(count):
                keys[i] = _ordered_key(scores[row, i])
            keys[:num_sink_pages] = _FORCED_KEY
            keys[count - num_recent_pages :] = _FORCED_KEY
            threshold, equal = _kth_key(keys, count, k, np.empty(_BINS, np.int32))
            for position in range(count):
                take = keys[position] > threshold
                if keys[position] == threshold and equal > 0:
                    equal -= 1
                    take = True
                if take:
                    selected[row, written] = position
                    written += 1
        for i in range(written, k):
            selected[row, i] = -1


def select_pages(
    scores: np.ndarray,  # [B, S, P] f32
    page_counts: np.ndarray,  # [B] i32, at most P each
    num_sink_pages: int,
    num_recent_pages: int,
    selected: np.ndarray,  # [B, S, K] i32
) -> None:
    """Write each unit's K best pages, ascending; forced pages are in and count towards K."""
    check_array("scores", scores, (None, None, None), np.float32)
    batch, units, stride = scores.shape
    check_array("page_counts", page_counts, (batch,))
    check_array("selected", selected, (batch, units, None), np.int32)
    k = selected.shape[2]
    if num_sink_pages < 0 or num_recent_pages < 0 or num_sink_pages + num_recent_pages > k:
        forced = f"{num_sink_pages} + {num_recent_pages}"
        raise ValueError(f"num_sink_pages + num_recent_pages: got {forced}, want at most k = {k}")
    if batch and page_counts.max() > stride:
        raise ValueError(f"page_counts: got {page_counts.max()}, want at most {stride}")
    if selected.size == 0:
        return
    select_pages_kernel(
        scores.reshape(batch * units, stride),
        page_counts,
        num_sink_pages,
        num_recent_pages,
        selected.reshape(batch * units, k),
    )
