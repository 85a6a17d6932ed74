"""The top-k of torch and CuPy, as contenders of `dsd_topk_bench`.

Each keeps its own copy of the scores and times its own calls: on a GPU by events, behind a copy
that empties the L2 cache and takes longer than the launches do, so that these are hidden.
"""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from time import perf_counter

import numba
import numpy as np

FLUSH_BYTES = 256 << 20  # several times the largest L2 cache
CUPY_PACKAGES = ("cupy", "cupy-cuda13x", "cupy-cuda12x")


def find_selectors(on_gpu: bool) -> list:
    """Return torch's top-k for that side and, on a GPU, CuPy's; each says whether it can run."""
    return [TorchSelector(on_gpu), CupySelector()] if on_gpu else [TorchSelector(on_gpu)]


def _version(*packages: str) -> str | None:
    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


class TorchSelector:
    """`torch.topk`: one batched call; rows of different lengths are masked with -inf beforehand."""

    name = "torch"

    def __init__(self, on_gpu: bool):
        self.on_gpu = on_gpu
        self.version = _version("torch")
        self.reason = self._why_not()

    def _why_not(self) -> str | None:
        if find_spec("torch") is None:
            return "not installed"
        import torch

        if self.on_gpu and not torch.cuda.is_available():
            return f"torch {torch.__version__} finds no GPU"
        return None

    def prepare(self, scores: np.ndarray, lengths: np.ndarray, k: int, order: str):
        """Return its work on scores [rows, length] of which `lengths` [rows] count."""
        import torch

        torch.set_num_threads(numba.get_num_threads())
        if lengths.min() < scores.shape[1]:
            scores = scores.copy()
            for row, length in zip(scores, lengths, strict=True):
                row[length:] = -np.inf
        # torch does not read ml_dtypes' bfloat16: its bits are passed
        words = torch.from_numpy(scores.view(f"i{scores.dtype.itemsize}"))
        tensor = words.view(getattr(torch, str(scores.dtype)))
        work = _TorchGpuWork if self.on_gpu else _TorchCpuWork
        return work(tensor, min(k, scores.shape[1]), order == "score")


class _TorchCpuWork:
    """`torch.topk` by the host's clock."""

    def __init__(self, tensor, k: int, is_sorted: bool):
        self._tensor, self._k, self._is_sorted = tensor, k, is_sorted
        self._result = None

    def _select(self) -> None:
        self._result = self._tensor.topk(self._k, sorted=self._is_sorted)

    def time_ms(self) -> float:
        start = perf_counter()
        self._select()
        return (perf_counter() - start) * 1e3

    def indices(self) -> np.ndarray:
        return self._result.indices.cpu().numpy()


class _TorchGpuWork(_TorchCpuWork):
    """`torch.topk` by the events of its stream."""

    def __init__(self, tensor, k: int, is_sorted: bool):
        import torch

        super().__init__(tensor.cuda(), k, is_sorted)
        self._source = torch.ones(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
        self._target = torch.empty_like(self._source)
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def time_ms(self) -> float:
        start, end = self._events
        self._target.copy_(self._source)
        start.record()
        self._select()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)


class CupySelector:
    """`cupy.argpartition` in a loop over the rows, each at its own length; half as float32."""

    name = "cupy"
    on_gpu = True

    def __init__(self):
        self.version = _version(*CUPY_PACKAGES)
        self.reason = self._why_not()

    def _why_not(self) -> str | None:
        if find_spec("cupy") is None:
            return "not installed"
        import cupy

        try:
            cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            return f"cupy {cupy.__version__} finds no GPU ({error})"
        return None

    def prepare(self, scores: np.ndarray, lengths: np.ndarray, k: int, order: str):
        """Return its work; a row of no more than k scores is selected whole without a call."""
        return _CupyWork(np.asarray(scores, np.float32), lengths, k, order == "score")


class _CupyWork:
    """`cupy.argpartition` by the events of its stream."""

    def __init__(self, scores: np.ndarray, lengths: np.ndarray, k: int, is_sorted: bool):
        import cupy

        self._cupy, self._k, self._is_sorted = cupy, k, is_sorted
        device_scores = cupy.asarray(scores)
        out = np.full((len(scores), k), -1, np.int64)
        for chosen, row, length in zip(out, scores, lengths, strict=True):
            if length <= k:
                chosen[:length] = np.argsort(-row[:length], kind="stable")
        self._out = cupy.asarray(out)
        self._rows = [
            (i, row[:length])
            for i, (row, length) in enumerate(zip(device_scores, lengths.tolist(), strict=True))
            if length > k
        ]
        self._source = cupy.ones(FLUSH_BYTES, cupy.uint8)
        self._target = cupy.empty_like(self._source)
        self._events = [cupy.cuda.Event() for _ in range(2)]

    def _select(self) -> None:
        for i, row in self._rows:
            chosen = self._cupy.argpartition(row, len(row) - self._k)[len(row) - self._k :]
            if self._is_sorted:
                chosen = chosen[self._cupy.argsort(-row[chosen])]
            self._out[i] = chosen

    def time_ms(self) -> float:
        start, end = self._events
        self._target[:] = self._source
        start.record()
        self._select()
        end.record()
        end.synchronize()
        return self._cupy.cuda.get_elapsed_time(start, end)

    def indices(self) -> np.ndarray:
        return self._cupy.asnumpy(self._out)
