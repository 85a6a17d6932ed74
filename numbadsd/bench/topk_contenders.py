"""What a top-k benchmark times: numbadsd's own, NumPy's, and the memory of the machine.

A contender is prepared with the rows of a case and gives a `Work`. Contenders that need other
libraries come from outside: this layer imports none of them.
"""

from pathlib import Path
from time import perf_counter
from typing import Protocol

import numpy as np

import numbadsd
from numbadsd.analysis.devices import CopyProbe, measure_read_gbps
from numbadsd.config import check
from numbadsd.kernels.cuda.runtime import get_driver

FEWEST_FLUSH_BYTES, MOST_FLUSH_BYTES = 64 << 20, 512 << 20
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_FREE_FRACTION = 0.5  # of a device, for the scores; copies and other libraries have the rest


class Work(Protocol):
    """One contender at one case, ready to run."""

    def time_ms(self) -> float:
        """Select once; return the milliseconds that it took."""

    def indices(self) -> np.ndarray:
        """Return what was selected last, [rows, at least k]; beyond a row's length is padding."""


class Contender(Protocol):
    """Another top-k. `reason` says why it cannot run here."""

    name: str
    version: str | None
    on_gpu: bool
    reason: str | None

    def prepare(self, scores: np.ndarray, lengths: np.ndarray, k: int, order: str) -> Work:
        """Return its work on scores [rows, length] of which `lengths` [rows] count."""


class OwnOnCpu:
    """`numbadsd.topk` on the CPU, by the host's clock."""

    def __init__(self, scores: np.ndarray, lengths: np.ndarray, k: int, order: str):
        self._arguments = scores, lengths, k
        self._options = {"sorted": order, "out": np.empty((len(scores), k), np.int32)}

    def time_ms(self) -> float:
        """Select once; return the milliseconds that it took."""
        start = perf_counter()
        numbadsd.topk(*self._arguments, **self._options)
        return (perf_counter() - start) * 1e3

    def indices(self) -> np.ndarray:
        """Return what was selected last."""
        return self._options["out"]


class OwnOnGpu:
    """`numbadsd.topk` on the GPU: one graph, by the events at its ends."""

    def __init__(self, scores: np.ndarray, lengths: np.ndarray, k: int, order: str):
        driver = get_driver()
        self._stream = driver.stream()
        arrays = [driver.empty(array.shape, array.dtype) for array in (scores, lengths)]
        for target, source in zip(arrays, (scores, lengths), strict=True):
            self._stream.upload(target, source)
        self._out = driver.empty((len(scores), k), np.int32)
        num_bytes = numbadsd.topk_workspace_bytes(*scores.shape)
        options = {
            "sorted": order,
            "out": self._out,
            "workspace": driver.empty(num_bytes, np.uint8),
            "stream": self._stream,
        }

        def step() -> None:
            self._start = self._stream.record()
            numbadsd.topk(*arrays, k, **options)
            self._end = self._stream.record()

        step()  # compiles and loads, which a capture must not
        self._stream.synchronize()
        self._graph = self._stream.capture(step)

    def time_ms(self) -> float:
        """Select once; return the milliseconds that it took."""
        self._stream.replay(self._graph)
        self._stream.synchronize()
        return self._end.elapsed_ms(self._start)

    def indices(self) -> np.ndarray:
        """Return what was selected last."""
        indices = np.empty(self._out.shape, np.int32)
        self._stream.download(indices, self._out)
        self._stream.synchronize()
        return indices


class Numpy:
    """`numpy.argpartition` in a loop over the rows, each at its own length; half as float32."""

    name = "numpy"
    version = np.__version__
    on_gpu = False
    reason = None

    def prepare(self, scores: np.ndarray, lengths: np.ndarray, k: int, order: str) -> Work:
        """Return its work; a row of no more than k scores is selected whole without a call."""
        return _NumpyWork(np.asarray(scores, np.float32), lengths, k, order)


class _NumpyWork:
    def __init__(self, scores, lengths, k, order):
        self._rows = [row[:length] for row, length in zip(scores, lengths, strict=True)]
        self._k, self._is_sorted = k, order == "score"
        self._out = np.full((len(scores), k), -1, np.int32)
        for out, row in zip(self._out, self._rows, strict=True):
            if len(row) <= k:  # trivial: selected here, not while it is timed
                out[: len(row)] = np.argsort(-row, kind="stable")
        self._long_rows = [i for i, row in enumerate(self._rows) if len(row) > k]

    def time_ms(self) -> float:
        start = perf_counter()
        for i in self._long_rows:
            row = self._rows[i]
            chosen = np.argpartition(row, len(row) - self._k)[len(row) - self._k :]
            if self._is_sorted:
                chosen = chosen[np.argsort(-row[chosen], kind="stable")]
            self._out[i] = chosen
        return (perf_counter() - start) * 1e3

    def indices(self) -> np.ndarray:
        return self._out


def selections_agree(case, k: int, ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether two selections hold the same scores in every row; ties may be broken either way.

    What lies outside a row's length is padding. A row has min(k, length) different indices.
    """
    return all(
        _row_agrees(row[:length], min(k, int(length)), a, b)
        for row, length, a, b in zip(case.scores, case.lengths, ours, theirs, strict=True)
    )


def _row_agrees(row: np.ndarray, want: int, ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether two selections of `want` elements of a row hold the same scores."""
    scores = []
    for indices in (ours, theirs):
        inside = indices[(indices >= 0) & (indices < len(row))]
        if len(inside) != want or len(np.unique(inside)) != want:
            return False
        scores.append(np.sort(row[inside].astype(np.float32)))
    return np.array_equal(*scores)


def check_device_memory(rows: int, length: int, k: int, element_bytes: int) -> None:
    """Raise ValueError, with the bytes, when the scores are too large for the device."""
    needed = rows * (length * element_bytes + 4 * k + 4)
    needed += numbadsd.topk_workspace_bytes(rows, length)
    usable = int(_FREE_FRACTION * get_driver().memory_bytes()[0])
    check(
        needed <= usable,
        "rows x length",
        f"{rows} x {length}",
        f"scores that fit on the device: these need {needed:,} bytes of {usable:,} (half its "
        "free memory)",
    )


def flush_bytes() -> int:
    """Return the bytes to read so that nothing else is left in the processor's caches."""
    try:
        texts = [file.read_text().strip() for file in _CACHES.glob("index*/size")]
        largest = max(int(text.removesuffix("K")) << 10 for text in texts)
    except (OSError, ValueError):  # not Linux, or a machine that does not tell
        largest = MOST_FLUSH_BYTES
    return min(max(largest, FEWEST_FLUSH_BYTES), MOST_FLUSH_BYTES)


class Memory:
    """Measures memory before every sample, with buffers so large that caches are cold after it."""

    def __init__(self, uses_gpu: bool):
        self.read_gbps: list[float] = []  # of the CPU
        self.copy_gbps: list[float] = []  # of the GPU, bytes read and written
        self._buffer = np.ones(flush_bytes() // 8, np.int64)
        self._copy = CopyProbe() if uses_gpu else None
        measure_read_gbps(self._buffer)  # compiles

    def measure(self, on_gpu: bool, is_kept: bool) -> None:
        """Measure the memory that the next sample reads."""
        gbps = self._copy.measure_gbps() if on_gpu else measure_read_gbps(self._buffer)
        if is_kept:
            (self.copy_gbps if on_gpu else self.read_gbps).append(gbps)
