"""Kernels that measure the machine: how fast it reads memory, how fast it multiplies.

They are what decode is compared with, so they do nothing but stream, and but multiply.
"""

import numpy as np
from numba import prange

from numbadsd.kernels.cpu.jit import kernel
from numbadsd.kernels.cpu.memory import load64, store4
from numbadsd.kernels.cpu.simd import fma, splat64, sum_rows

SWEEP_CHUNKS = 64
FMA_LANES = 64


@kernel
def _read_sweep_kernel(words, sums):
    """Add up 64-bit words.

    Work      one task per chunk, each one sequential stream
    Bytes     reads 8 per word, once
    """
    size = words.size // sums.size
    for chunk in prange(sums.size):
        part = words[chunk * size : (chunk + 1) * size]
        total = np.uint64(0)
        for i in range(part.size):
            total += part[i]
        sums[chunk] = total


def read_sweep(array: np.ndarray) -> int:
    """Read a C-contiguous array once with all threads; returns the bytes that were read."""
    words = array.reshape(-1).view(np.uint8)
    words = words[: words.size // 8 * 8].view(np.uint64)
    chunks = min(SWEEP_CHUNKS, max(1, words.size // 512))
    _read_sweep_kernel(words, np.empty(chunks, np.uint64))
    return words.size // chunks * chunks * 8


@kernel
def _fma_kernel(rounds, numbers, out):
    """Multiply and add in eight independent chains per task.

    Work      one task per row of `out`
    """
    for task in prange(out.shape[0]):
        factor = load64(numbers, 0, 0)
        total_0 = splat64(np.float32(task))
        total_1 = total_0
        for _ in range(rounds):
            total_0 = fma(total_0, factor, factor)
            total_1 = fma(total_1, factor, factor)
        store4(out, task, 0, sum_rows(total_0 + total_1))


def multiply_add(rounds: int, tasks: int) -> int:
    """Run `rounds` of fused multiply-adds in every task; returns the operations, 2 per element."""
    numbers = np.full((1, FMA_LANES), 0.5, np.float32)
    _fma_kernel(rounds, numbers, np.empty((tasks, 4), np.float32))
    return 2 * 2 * FMA_LANES * rounds * tasks
