"""Splits of a row to outputs: weights 2^(maximum of the split - maximum), in a fixed order."""

from dataclasses import dataclass
from functools import cache
from math import log

import numpy as np

from numbadsd.kernels.cuda.attend_spec import softmax_shift
from numbadsd.kernels.cuda.attend_splits import row_pages, split_pages
from numbadsd.kernels.cuda.launch import Kernel
from numbadsd.kernels.cuda.ops import cuda, ex2, float32, int64, lg2, quotient

MERGE_THREADS = 256
_NEG_INF = float32(-np.inf)
_ZERO = float32(0)
_LN_2 = np.float32(log(2))


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
        pages = row_pages(count, max_selected)
        per_split = split_pages(pages, page_size)
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
        shift = softmax_shift(largest)

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
