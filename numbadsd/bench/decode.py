"""`dsd_bench`: decode one batch by every path, beside the limits of the machine.

Samples of the paths alternate with a read of the whole K/V pool. The read gives the bandwidth that
the samples are compared with, under the same conditions, and leaves the caches as cold as a decode
step finds them in a model whose other layers have just run.
"""

from dataclasses import asdict, dataclass, field, replace
from time import perf_counter

import numpy as np
from tqdm import tqdm

from numbadsd.analysis.devices import Roof, measure_fp32_gflops, measure_read_gbps
from numbadsd.analysis.quality import measure_quality
from numbadsd.analysis.roofline import path_bytes, step_traffic
from numbadsd.bench.data import DecodeData, fill_cache, make_workload
from numbadsd.bench.record import SCHEMA_VERSION, environment
from numbadsd.bench.verdict import decide
from numbadsd.config import DecodeBenchConfig
from numbadsd.decode.path import make_path
from numbadsd.errors import CudaUnavailable
from numbadsd.pages.cache import PagedKvCache
from numbadsd.timing import STAGES, sample_statistics
from numbadsd.types import DecodeResult, StageTimes

OVERHEADS = ("malloc", "h2d", "d2h", "free", "launch", "sync", "page_table", "sparse_layout")
COMPILE_PAGE_TOKENS = 16
ACCURACY = (
    ("sparse_cpu", "dense_cpu"),
    ("sparse_gpu", "sparse_cpu"),
    ("sparse_gpu", "dense_cpu"),
    ("dense_gpu", "dense_cpu"),
)


@dataclass
class _Run:
    """One path, its samples and its last result."""

    path: object
    compile_s: float
    samples: list[StageTimes] = field(default_factory=list)
    warmup_ms: list[float] = field(default_factory=list)
    result: DecodeResult | None = None


def run_decode_bench(config: DecodeBenchConfig, capture=None, command: str = "dsd_bench") -> dict:
    """Measure every path of a configuration; returns the record.

    Parameters
    ----------
    config : DecodeBenchConfig
        What to measure; with `capture`, already adapted to its shape.
    capture : Capture, optional
        Captured tensors to decode instead of synthetic ones.
    command : str
        The command line, for the record.
    """
    workload = make_workload(config, capture)
    runs, missing = _make_runs(config)
    data = fill_cache(config.model, workload)
    for name, run in runs.items():
        run.path = make_path(name, data.cache, fused=config.fused)
    read_gbps = _measure(config, data, runs)
    roof = Roof(float(np.median(read_gbps)), measure_fp32_gflops())
    record = {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "config": {**asdict(config), "model": asdict(config.model), "threads": None},
        "environment": environment(),
        "data": _describe(data),
        "bandwidth": {"read_gbps": sample_statistics(read_gbps), "fp32_gflops": roof.fp32_gflops},
        "analytical": _analytical(config, data, roof),
        "paths": _path_records(config, data, runs, missing, roof),
        "accuracy": _accuracy(runs),
        "quality": _quality(data, runs),
    }
    record["config"]["threads"] = record["environment"]["num_threads"]
    record["verdict"] = decide(record, config.model)
    return record


def _make_runs(config: DecodeBenchConfig) -> tuple[dict[str, _Run], dict[str, CudaUnavailable]]:
    """Compile, or load, the kernels of each path on a tiny batch; return the paths that run."""
    # kernels are compiled for types, not for sizes: small pages do
    model = replace(config.model, page_size=min(config.page_size, COMPILE_PAGE_TOKENS))
    cache = PagedKvCache(model, 2)
    tokens = np.zeros((model.page_size + 1, model.num_kv_heads, model.head_dim), np.float32)
    cache.append_tokens(0, tokens, tokens)
    queries = np.zeros((1, model.num_heads, model.head_dim), np.float32)
    runs, missing = {}, {}
    for name in tqdm(config.paths, desc="compiling", leave=False, disable=None):
        start = perf_counter()
        try:
            path = make_path(name, cache, fused=config.fused)
            path.decode(queries, [0])
        except CudaUnavailable as error:
            missing[name] = error
        else:
            runs[name] = _Run(path, perf_counter() - start)
    return runs, missing


def _measure(config: DecodeBenchConfig, data: DecodeData, runs: dict[str, _Run]) -> list[float]:
    """Take the samples, a read of the pool before each one; return the bandwidths of the reads."""
    pool = data.cache.pool
    measure_read_gbps(pool.keys, pool.values)  # compiles, and touches every page
    read_gbps = []
    rounds = config.warmup + config.iterations
    with tqdm(total=rounds * len(runs), desc="measuring", leave=False, disable=None) as bar:
        for i in range(rounds):
            for run in runs.values():
                gbps = measure_read_gbps(pool.keys, pool.values)
                run.result = run.path.decode(data.queries, data.request_ids)
                if i < config.warmup:
                    run.warmup_ms.append(run.result.stages.total_ms)
                else:
                    run.samples.append(run.result.stages)
                    read_gbps.append(gbps)
                bar.update()
    return read_gbps or [measure_read_gbps(pool.keys, pool.values)]


def _describe(data: DecodeData) -> dict:
    pool, context_tokens = data.cache.pool, data.context_tokens
    return {
        "requests": len(context_tokens),
        "context_tokens": int(context_tokens.sum()),
        "min_context_tokens": int(context_tokens.min()),
        "max_context_tokens": int(context_tokens.max()),
        "pages": pool.capacity_pages,
        "kv_pool_bytes": pool.keys.nbytes + pool.values.nbytes,
        "summary_bytes": data.cache.summaries.nbytes,
    }


def _analytical(config: DecodeBenchConfig, data: DecodeData, roof: Roof) -> dict:
    traffic = step_traffic(config.model, data.context_tokens)
    rows = {}
    for name, step in traffic.items():
        bandwidth_floor_us, compute_floor_us = step.floors_us(roof)
        rows[name] = {
            "bytes": step.num_bytes,
            "flops": step.flops,
            "intensity": step.intensity,
            "bandwidth_floor_us": bandwidth_floor_us,
            "compute_floor_us": compute_floor_us,
        }
    dense_bytes = traffic["dense"].num_bytes
    for name in ("sparse_current", "sparse_target"):
        rows[f"{name}_over_dense_bytes"] = traffic[name].num_bytes / dense_bytes
    return rows


def _path_records(config, data: DecodeData, runs, missing, roof: Roof) -> dict:
    records = {}
    for name in config.paths:
        if name in missing:
            reason = f"{missing[name].reason}; {missing[name].remedy}"
            records[name] = {"available": False, "reason": reason}
            continue
        run = runs[name]
        result = run.result
        num_bytes = path_bytes(
            config.model, data.context_tokens, result.selected_pages, config.fused
        )
        total_ms = sample_statistics([times.total_ms for times in run.samples])
        gbps = num_bytes / total_ms["median"] / 1e6
        median = lambda pick: float(np.median([pick(t) for t in run.samples]))  # noqa: E731, B023
        records[name] = {
            "available": True,
            "reason": None,
            "compile_s": run.compile_s,
            "warmup_ms": run.warmup_ms,
            "total_ms": total_ms,
            "stages_ms": {s: median(lambda t, s=s: getattr(t, f"{s}_ms")) for s in STAGES},
            "overheads_ms": {
                o: median(lambda t, o=o: t.overheads_ms.get(o, 0.0)) for o in OVERHEADS
            },
            "bytes_read": num_bytes,
            "floor_ms": num_bytes / roof.read_gbps / 1e6,
            "achieved_gbps": gbps,
            "bandwidth_fraction": gbps / roof.read_gbps,
        }
    return records


def _accuracy(runs: dict[str, _Run]) -> dict:
    """Return the largest difference of a request's outputs, averaged over requests, or None."""
    differences = {}
    for name, other in ACCURACY:
        value = None
        if name in runs and other in runs:
            difference = np.abs(runs[name].result.outputs - runs[other].result.outputs)
            value = float(difference.max(axis=(1, 2)).mean())
        differences[f"avg_max_abs_diff_{name}_vs_{other}"] = value
    return differences


def _quality(data: DecodeData, runs: dict[str, _Run]) -> dict | None:
    """Return the quality of the selection, when a dense and a sparse path ran."""
    if "sparse_cpu" not in runs or "dense_cpu" not in runs:
        return None
    sparse, dense = runs["sparse_cpu"].result, runs["dense_cpu"].result
    # without knowing which heads look for a needle, its recall would say little
    needle_heads = getattr(data.workload, "needle_heads", None)
    needle_pages = data.workload.needle_pages if needle_heads is not None else None
    return asdict(
        measure_quality(
            data.cache,
            data.queries,
            data.request_ids,
            sparse.selected_pages,
            dense.outputs,
            sparse.outputs,
            needle_pages,
            needle_heads,
        )
    )
