"""What the machine at hand can do: measured, never taken from a data sheet."""

from dataclasses import dataclass
from time import perf_counter

import numba
import numpy as np

from numbadsd.kernels.cpu.probe import multiply_add, read_sweep
from numbadsd.kernels.cuda.runtime import get_driver

_FMA_ROUNDS = 2_000_000  # a few milliseconds a task, beside which its start is nothing
_REPEATS = 5
_COPY_BYTES = 1 << 30


@dataclass(frozen=True)
class Roof:
    """The two limits of a roofline."""

    read_gbps: float
    fp32_gflops: float


def measure_read_gbps(*arrays: np.ndarray) -> float:
    """Return the bandwidth, in 1e9 bytes a second, of one read of these arrays by all threads."""
    start = perf_counter()
    num_bytes = sum(read_sweep(array) for array in arrays)
    return num_bytes / (perf_counter() - start) / 1e9


def measure_fp32_gflops() -> float:
    """Return the best rate, in 1e9 operations a second, of fused multiply-adds in registers."""
    tasks = numba.get_num_threads()
    multiply_add(1, tasks)
    rates = []
    for _ in range(_REPEATS):
        start = perf_counter()
        operations = multiply_add(_FMA_ROUNDS, tasks)
        rates.append(operations / (perf_counter() - start) / 1e9)
    return max(rates)


class CopyProbe:
    """Measures copies on the GPU; what it copies is several times the largest L2 cache."""

    def __init__(self):
        self._driver = get_driver()
        free_bytes, _ = self._driver.memory_bytes()
        size = min(_COPY_BYTES if not self._driver.is_simulated else 1 << 16, free_bytes // 8)
        self._stream = self._driver.stream()
        self._source, self._target = (self._driver.empty(size, np.uint8) for _ in range(2))
        self._stream.fill(self._source, 1)
        self.measure_gbps()

    def measure_gbps(self) -> float:
        """Return the bandwidth, in 1e9 bytes read and written a second, of one copy."""
        start = self._stream.record()
        self._stream.copy(self._target, self._source)
        end = self._stream.record()
        end.synchronize()
        return 2 * self._source.nbytes / end.elapsed_ms(start) / 1e6
