"""`dsd_bench`: decode one batch by every path, beside the limits of the machine."""

from dataclasses import asdict

import numpy as np

from numbadsd.analysis.devices import Roof, measure_fp32_gflops
from numbadsd.analysis.quality import measure_quality
from numbadsd.analysis.roofline import path_bytes, step_traffic
from numbadsd.bench.data import (
    DecodeData,
    fill_cache,
    lives_on_device,
    make_workload,
    pool_pages,
    unfilled,
)
from numbadsd.bench.record import SCHEMA_VERSION, environment
from numbadsd.bench.sampling import (
    Bandwidth,
    Run,
    is_gpu,
    make_runs,
    path_names,
    speed_figures,
    take_samples,
)
from numbadsd.bench.verdict import decide
from numbadsd.bench.versus import Versus, make_contenders
from numbadsd.config import DecodeBenchConfig
from numbadsd.decode.path import make_path
from numbadsd.timing import STAGES, sample_statistics

OVERHEADS = ("malloc", "h2d", "d2h", "free", "launch", "sync", "page_table", "sparse_layout")
ACCURACY = (
    ("sparse_cpu", "dense_cpu"),
    ("sparse_gpu", "sparse_cpu"),
    ("sparse_gpu", "dense_cpu"),
    ("dense_gpu", "dense_cpu"),
)


def run_decode_bench(
    config: DecodeBenchConfig, capture=None, command: str = "dsd_bench", find_contender=None
) -> dict:
    """Measure every path of a configuration; returns the record.

    Parameters
    ----------
    config : DecodeBenchConfig
        What to measure; with `capture`, already adapted to its shape.
    capture : Capture, optional
        Captured tensors to decode instead of synthetic ones.
    command : str
        The command line, for the record.
    find_contender : callable, optional
        Given whether it is to run on a GPU, returns the `versus.Contender` that
        ``config.versus`` names; needed for that only.
    """
    versus = Versus(make_contenders(config, find_contender))
    workload = make_workload(config, capture, versus.host_bytes)
    runs, missing = make_runs(config, pool_pages(config.model, workload.context_tokens))
    if runs:
        data = fill_cache(config.model, workload, lives_on_device(config, capture))
    else:
        data = unfilled(config.model, workload)
    for name, run in runs.items():
        run.path = make_path(name, data.cache, fused=config.fused)
    versus.add_runs(runs, data)
    bandwidth = take_samples(config, data, runs)
    measured = _bandwidth(bandwidth)
    record = {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "config": {**asdict(config), "model": asdict(config.model), "threads": None},
        "environment": environment(any(map(is_gpu, runs))),
        "data": _describe(data),
        "bandwidth": measured,
        "analytical": _analytical(config, data, measured),
        "paths": _path_records(config, data, runs, missing, bandwidth)
        | versus.records(data, runs, bandwidth),
        "accuracy": _accuracy(runs),
        "quality": _quality(data, runs),
    }
    record["config"]["paths"] = list(path_names(config))
    record["config"]["threads"] = record["environment"]["num_threads"]
    record["verdict"] = decide(record, config.model)
    return record


def _describe(data: DecodeData) -> dict:
    config, pool = data.cache.config, data.cache.pool
    context_tokens = data.context_tokens
    pages = -(-context_tokens // config.page_size)
    selected_pages = int(np.minimum(config.top_k_pages, pages).sum())
    return {
        "requests": len(context_tokens),
        "context_tokens": int(context_tokens.sum()),
        "min_context_tokens": int(context_tokens.min()),
        "max_context_tokens": int(context_tokens.max()),
        "pages": pool.capacity_pages,
        "candidate_pages": int(pages.sum()),
        "selected_tokens": selected_pages * config.page_size,  # whole pages, as in the byte model
        "kv_pool_bytes": pool.capacity_pages * config.page_bytes,
        "summary_bytes": pool.capacity_pages * config.summary_bytes,
    }


def _bandwidth(bandwidth: Bandwidth) -> dict:
    """Return what was measured, None where no path of that kind ran."""
    read, copy = bandwidth.read_gbps, bandwidth.copy_gbps
    return {
        "read_gbps": sample_statistics(read) if read else None,
        "copy_gbps": sample_statistics(copy) if copy else None,
        "fp32_gflops": measure_fp32_gflops() if read else None,
    }


def _analytical(config: DecodeBenchConfig, data: DecodeData, measured: dict) -> dict:
    """Return the byte model, with floors on the processor that was measured: CPU before GPU."""
    traffic = step_traffic(config.model, data.context_tokens)
    read, copy = measured["read_gbps"], measured["copy_gbps"]
    roof = Roof(read["median"], measured["fp32_gflops"]) if read else None
    rows = {}
    for name, step in traffic.items():
        rows[name] = {"bytes": step.num_bytes, "flops": step.flops, "intensity": step.intensity}
        floors_us = step.floors_us(roof) if roof else (None, None)
        rows[name]["bandwidth_floor_us"], rows[name]["compute_floor_us"] = floors_us
        rows[name]["gpu_bandwidth_floor_us"] = (
            step.num_bytes / copy["median"] / 1e3 if copy else None
        )
    dense_bytes = traffic["dense"].num_bytes
    for name in ("sparse_current", "sparse_target"):
        rows[f"{name}_over_dense_bytes"] = traffic[name].num_bytes / dense_bytes
    return rows


def _path_records(config, data: DecodeData, runs, missing, bandwidth: Bandwidth) -> dict:
    records = {}
    for name in path_names(config):
        if name in missing:
            reason = f"{missing[name].reason}; {missing[name].remedy}"
            records[name] = {"available": False, "reason": reason}
            continue
        run = runs[name]
        result = run.result
        is_fused = config.fused or is_gpu(name)
        num_bytes = path_bytes(config.model, data.context_tokens, result.selected_pages, is_fused)
        median = lambda pick: float(np.median([pick(t) for t in run.samples]))  # noqa: E731, B023
        records[name] = {
            "available": True,
            "reason": None,
            "compile_s": run.compile_s,
            "warmup_ms": run.warmup_ms,
            **speed_figures(run, num_bytes, bandwidth.of(name)),
            "stages_ms": {s: median(lambda t, s=s: getattr(t, f"{s}_ms")) for s in STAGES},
            "overheads_ms": {
                o: median(lambda t, o=o: t.overheads_ms.get(o, 0.0)) for o in OVERHEADS
            },
            "kernel_ms": median(lambda t: t.kernel_ms) if is_gpu(name) else None,
        }
    return records


def _accuracy(runs: dict[str, Run]) -> dict:
    """Return the largest difference of a request's outputs, averaged over requests, or None."""
    differences = {}
    for name, other in ACCURACY:
        value = None
        if name in runs and other in runs:
            difference = np.abs(runs[name].result.outputs - runs[other].result.outputs)
            value = float(difference.max(axis=(1, 2)).mean())
        differences[f"avg_max_abs_diff_{name}_vs_{other}"] = value
    return differences


def _quality(data: DecodeData, runs: dict[str, Run]) -> dict | None:
    """Return the quality of the selection, when a dense and a sparse path of one backend ran."""
    pairs = ((f"sparse_{backend}", f"dense_{backend}") for backend in ("cpu", "gpu"))
    pair = next((pair for pair in pairs if all(name in runs for name in pair)), None)
    if pair is None or not data.cache.pool.has_storage:
        return None
    sparse, dense = (runs[name].result for name in pair)
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
