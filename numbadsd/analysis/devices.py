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
_TRANSFER_BYTES = 1 << 26  # several milliseconds on the bus, beside which a start is nothing


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


def measure_transfer_gbps() -> dict[str, float]:
    """Return the bandwidth, in 1e9 bytes a second, between page-locked memory and the GPU.

    Returns
    -------
    dict
        "h2d" and "d2h": to the device, and back; the best of several copies each.
    """
    driver = get_driver()
    size = 1 << 16 if driver.is_simulated else _TRANSFER_BYTES
    stream = driver.stream()
    host, device = driver.pinned(size, np.uint8), driver.empty(size, np.uint8)
    host[:] = 1
    rates = {}
    copies = {
        "h2d": lambda: stream.upload(device, host),
        "d2h": lambda: stream.download(host, device),
    }
    for way, copy in copies.items():
        samples = []
        for _ in range(1 + _REPEATS):
            start = stream.record()
            copy()
            end = stream.record()
            end.synchronize()
            samples.append(size / max(end.elapsed_ms(start), 1e-6) / 1e6)
        rates[way] = max(samples[1:])
    return rates
