"""`--versus`: another library's attention beside our paths, on the same numbers.

A contender comes from outside, since this layer imports no such library. What it prepares is a path
like ours, and is measured as one: in turn with them, each sample after a read of memory.
"""

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Protocol

import numpy as np

from numbadsd.analysis.roofline import path_bytes
from numbadsd.bench.data import DecodeData
from numbadsd.bench.sampling import Bandwidth, Run, is_gpu, path_names, speed_figures
from numbadsd.config import DecodeBenchConfig, ModelConfig, check
from numbadsd.pages.cache import PagedKvCache
from numbadsd.types import DecodeResult


class Attention(Protocol):
    """A batch in another library's hands: a path. `form` is how the library is called.

    `forms_ms` are the times of all forms that were tried beforehand.
    """

    form: str
    forms_ms: dict[str, float]

    def decode(self, queries: np.ndarray, request_ids: Sequence[int]) -> DecodeResult:
        """Attend to all that the requests have."""


class Contender(Protocol):
    """Another library's attention. `reason` says why it cannot run here.

    Its name ends in "_gpu" where it runs on one.
    """

    name: str
    version: str | None
    reason: str | None

    def host_bytes(self, model: ModelConfig, context_tokens: np.ndarray) -> int:
        """Return the memory of the host that it takes for contexts [B]."""

    def prepare(
        self, cache: PagedKvCache, queries: np.ndarray, request_ids: Sequence[int]
    ) -> Attention:
        """Return its work on a batch."""


def make_contenders(
    config: DecodeBenchConfig, find_contender: Callable[[bool], Contender] | None
) -> list[Contender]:
    """Return what to compare with: one on each kind of processor that our paths ask for."""
    if config.versus is None:
        return []
    check(find_contender is not None, "versus", config.versus, "a find_contender that makes it")
    return [find_contender(on_gpu) for on_gpu in sorted(set(map(is_gpu, path_names(config))))]


class Versus:
    """The contenders of one benchmark, from what they need to what came of them."""

    def __init__(self, contenders: Sequence[Contender]):
        self._contenders = {contender.name: contender for contender in contenders}
        self._reasons: dict[str, str] = {}

    def host_bytes(self, model: ModelConfig, context_tokens: np.ndarray) -> int:
        """Return the memory of the host that they take for contexts [B]."""
        contenders = self._contenders.values()
        return sum(contender.host_bytes(model, context_tokens) for contender in contenders)

    def add_runs(self, runs: dict[str, Run], data: DecodeData) -> None:
        """Add a run for each that can run, where a path of ours runs on the same processor."""
        sides = set(map(is_gpu, runs))
        kept = {n: contender for n, contender in self._contenders.items() if is_gpu(n) in sides}
        self._contenders = kept
        for name, contender in kept.items():
            if contender.reason is not None:
                self._reasons[name] = contender.reason
                continue
            start = perf_counter()
            try:
                work = contender.prepare(data.cache, data.queries, data.request_ids)
            except Exception as error:  # another library's failure is its result, and not ours
                self._reasons[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                continue
            runs[name] = Run(perf_counter() - start, work)

    def records(self, data: DecodeData, runs: dict[str, Run], bandwidth: Bandwidth) -> dict:
        """Return the entry of each, in the figures that our paths have too."""
        num_bytes = path_bytes(data.cache.config, data.context_tokens, None)
        records = {}
        for name, contender in self._contenders.items():
            entry = {"available": name in runs, "reason": self._reasons.get(name)}
            records[name] = entry | {"version": contender.version}
            if name in runs:
                run = runs[name]
                records[name] |= {
                    "form": run.path.form,
                    "forms_ms": run.path.forms_ms,
                    "warmup_ms": run.warmup_ms,
                    **speed_figures(run, num_bytes, bandwidth.of(name)),
                    "kernel_ms": _kernel_ms(name, run),
                    "max_abs_difference": _largest_difference(name, runs),
                }
        return records


def _kernel_ms(name: str, run: Run) -> float | None:
    return float(np.median([times.kernel_ms for times in run.samples])) if is_gpu(name) else None


def _largest_difference(name: str, runs: dict[str, Run]) -> float | None:
    """Return how far its outputs are from our dense ones, of the same processor if it ran."""
    dense = ("dense_gpu", "dense_cpu") if is_gpu(name) else ("dense_cpu", "dense_gpu")
    ours = next((runs[path].result.outputs for path in dense if path in runs), None)
    if ours is None:
        return None
    return float(np.abs(runs[name].result.outputs - ours).max())
