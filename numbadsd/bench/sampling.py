"""Paths, samples, and the bandwidth of the machine between them.

Samples of the paths alternate with a measurement of what memory can do: a read of the whole K/V
pool on the CPU, a copy on the device on the GPU. It gives the bandwidth that the samples are
compared with, under the same conditions, and leaves the caches as cold as a decode step finds them
in a model whose other layers have just run.
"""

from dataclasses import dataclass, field, replace
from time import perf_counter

import numpy as np
from tqdm import tqdm

from numbadsd.analysis.devices import CopyProbe, measure_read_gbps
from numbadsd.bench.data import DecodeData
from numbadsd.config import DecodeBenchConfig
from numbadsd.decode.path import PATHS, make_path
from numbadsd.errors import CudaUnavailable
from numbadsd.kernels.cuda.runtime import get_driver
from numbadsd.kernels.cuda.switch import SIMULATED
from numbadsd.pages.cache import PagedKvCache
from numbadsd.pages.layout import pages_for
from numbadsd.timing import sample_statistics
from numbadsd.types import DecodeResult, StageTimes

COMPILE_PAGE_TOKENS = 16
_SIMULATOR = CudaUnavailable(
    "NUMBA_ENABLE_CUDASIM=1 chooses the simulator, whose times mean nothing",
    "name the path in --paths to run it there",
)


def is_gpu(path_name: str) -> bool:
    """Whether a path runs on a GPU."""
    return path_name.endswith("_gpu")


def path_names(config: DecodeBenchConfig) -> tuple[str, ...]:
    """Return the paths to run, in order."""
    return config.paths or tuple(PATHS)


@dataclass
class Run:
    """One path, its samples and its last result."""

    compile_s: float
    path: object = None  # ours, or a contender's work
    samples: list[StageTimes] = field(default_factory=list)
    warmup_ms: list[float] = field(default_factory=list)
    result: DecodeResult | None = None


@dataclass
class Bandwidth:
    """What memory did between the samples, in 1e9 bytes a second."""

    read_gbps: list[float] = field(default_factory=list)  # of the CPU
    copy_gbps: list[float] = field(default_factory=list)  # of the GPU, bytes read and written

    def of(self, path_name: str) -> float:
        """Return the bandwidth that a path is compared with."""
        return float(np.median(self.copy_gbps if is_gpu(path_name) else self.read_gbps))


def make_runs(
    config: DecodeBenchConfig, num_pages: int
) -> tuple[dict[str, Run], dict[str, CudaUnavailable]]:
    """Compile, or load, the kernels of each path on a tiny batch; return the paths that run.

    Raises ValueError, before anything is compiled, for a GPU path that was named in `config` and
    cannot take its shape or a cache of `num_pages`.
    """
    missing = _missing_paths(config, num_pages)
    runs = {}
    names = [name for name in path_names(config) if name not in missing]
    for name in tqdm(names, desc="compiling", leave=False, disable=None):
        start = perf_counter()
        _decode_tiny_batch(config, name)
        runs[name] = Run(perf_counter() - start)
    return runs, missing


def _missing_paths(config: DecodeBenchConfig, num_pages: int) -> dict[str, CudaUnavailable]:
    """Return the GPU paths that cannot run here, and why."""
    missing = {}
    for name in filter(is_gpu, path_names(config)):
        try:
            if SIMULATED and config.paths is None:
                raise _SIMULATOR
            _check_device(config, name, num_pages)
        except CudaUnavailable as error:
            missing[name] = error
        except ValueError as error:
            if config.paths is not None:
                raise
            missing[name] = CudaUnavailable(str(error), "the CPU paths take it")
    return missing


def _check_device(config: DecodeBenchConfig, name: str, num_pages: int) -> None:
    """Raise CudaUnavailable without a device, ValueError for what does not fit this one."""
    make_path(name, PagedKvCache(config.model, 1, allocate_storage=False))
    # imported here: it needs CUDA, which this command does without
    from numbadsd.pages.device import check_device_memory

    check_device_memory(config.model, num_pages, get_driver().memory_bytes()[0])


def _decode_tiny_batch(config: DecodeBenchConfig, name: str) -> None:
    """Run a path once: its kernels are compiled for types and, on a GPU, for the page size."""
    model, num_tokens = config.model, 1
    if not is_gpu(name):
        model = replace(model, page_size=min(model.page_size, COMPILE_PAGE_TOKENS))
        num_tokens = model.page_size + 1
    cache = PagedKvCache(model, pages_for(num_tokens, model.page_size))
    tokens = np.zeros((num_tokens, model.num_kv_heads, model.head_dim), np.float32)
    cache.append_tokens(0, tokens, tokens)
    path = make_path(name, cache, fused=config.fused)
    path.decode(np.zeros((1, model.num_heads, model.head_dim), np.float32), [0])


def take_samples(config: DecodeBenchConfig, data: DecodeData, runs: dict[str, Run]) -> Bandwidth:
    """Take the samples of every path, a measurement of memory before each one."""
    measure = _Memory(data, runs)
    rounds = config.warmup + config.iterations
    with tqdm(total=rounds * len(runs), desc="measuring", leave=False, disable=None) as bar:
        for i in range(rounds):
            for name, run in runs.items():
                measure(name, is_kept=i >= config.warmup)
                run.result = run.path.decode(data.queries, data.request_ids)
                times = run.result.stages
                if i < config.warmup:
                    run.warmup_ms.append(times.total_ms)
                else:
                    run.samples.append(times)
                bar.update()
    for name, run in runs.items():
        if name in PATHS and is_gpu(name):  # scores and pages stay on the device while measured
            path = make_path(name, data.cache, output_mode="debug")
            run.result = path.decode(data.queries, data.request_ids)
    return measure.bandwidth


def speed_figures(run: Run, num_bytes: int, limit_gbps: float) -> dict:
    """Return the times of a run, and its bytes over them beside what memory did."""
    total_ms = sample_statistics([times.total_ms for times in run.samples])
    gbps = num_bytes / total_ms["median"] / 1e6
    return {
        "total_ms": total_ms,
        "bytes_read": num_bytes,
        "floor_ms": num_bytes / limit_gbps / 1e6,
        "achieved_gbps": gbps,
        "bandwidth_fraction": gbps / limit_gbps,
    }


class _Memory:
    """Measures the memory that a path reads."""

    def __init__(self, data: DecodeData, runs: dict[str, Run]):
        self.bandwidth = Bandwidth()
        self._pool = data.cache.pool
        self._copy = CopyProbe() if any(map(is_gpu, runs)) else None
        if not all(map(is_gpu, runs)):
            measure_read_gbps(self._pool.keys, self._pool.values)  # touches every page

    def __call__(self, path_name: str, is_kept: bool) -> None:
        if is_gpu(path_name):
            gbps, kept = self._copy.measure_gbps(), self.bandwidth.copy_gbps
        else:
            gbps = measure_read_gbps(self._pool.keys, self._pool.values)
            kept = self.bandwidth.read_gbps
        if is_kept:
            kept.append(gbps)
