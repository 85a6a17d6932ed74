"""Small made-up points of every experiment, as a sweep would have written them."""

import json
from dataclasses import asdict, replace

from numbadsd.bench.sweep.records import PointResult

MODEL = {
    "num_heads": 8, "num_kv_heads": 2, "head_dim": 64, "page_size": 16, "top_k_pages": 8,
    "kv_dtype": "float32", "summary": "mean", "share": "request", "num_sink_pages": 0,
    "num_recent_pages": 0,
}  # fmt: skip
ENVIRONMENT = {
    "numbadsd": "0.1.0", "cpu": "Test(R) Processor", "num_threads": 2, "gpu": None, "driver": None,
    "python": "3.11.7", "numba": "0.68.1", "numba_cuda": None, "numpy": "2.4.6",
    "commit": "0123456789abcdef", "dirty": False, "timestamp": "2026-11-21T12:00:00+00:00",
}  # fmt: skip
QUALITY = {"page_recall": 0.4, "attention_mass": 0.7, "output_relative_error": 0.5, "density": 0.2}
UNAVAILABLE = {"available": False, "reason": "no GPU; plug one in"}


def path_entry(median_ms: float) -> dict:
    """Return what a record holds of a path that ran."""
    return {
        "available": True,
        "reason": None,
        "total_ms": {"median": median_ms, "samples": [f * median_ms for f in (0.9, 1.0, 1.0, 1.3)]},
        "stages_ms": {"score": 0.3 * median_ms, "topk": 0.1 * median_ms, "gather": 0.0,
                      "attend": 0.5 * median_ms},
        "overheads_ms": {"malloc": 0.06 * median_ms, "launch": 0.04 * median_ms},
        "floor_ms": 0.6 * median_ms,
        "bandwidth_fraction": 0.6,
    }  # fmt: skip


def point(experiment, series, x, x_name, command, record) -> PointResult:
    """Return one point that was measured."""
    name = f"{series}, {x_name} {x}"
    return PointResult(experiment, f"{hash(name):x}", name, series, x, x_name, command, {}, "ok",
                       None, 1.0, "c0de", "cpu", False, record)  # fmt: skip


def decode_point(
    x, dense=1.0, sparse=0.5, *, name="01_decode_context_length_sweep", series="batch 16",
    x_name="context_tokens", gpu=False, versus=False, quality=QUALITY,
) -> PointResult:  # fmt: skip
    """Return a point of `dsd_bench`; `dense` and `sparse` in ms, None without that path."""
    paths = {"dense_cpu": dense, "sparse_cpu": sparse}
    paths |= {"dense_gpu": dense / 20, "sparse_gpu": sparse / 10} if gpu else {}
    entries = {path: path_entry(ms) for path, ms in paths.items() if ms is not None}
    if not gpu:
        entries |= {"dense_gpu": UNAVAILABLE, "sparse_gpu": UNAVAILABLE}
    if versus:
        entries["torch_sdpa"] = path_entry(1.5 * dense) | {"version": "2.13.0"}
    context = x if x_name == "context_tokens" else 4096
    record = {
        "config": {"model": MODEL, "data": "structured", "kv_file": None, "seed": 7, "warmup": 1,
                   "fused": series != "staged"},
        "environment": ENVIRONMENT | ({"gpu": "Test GPU", "driver": "1.2"} if gpu else {}),
        "data": {"requests": x if x_name == "batch_size" else 16, "min_context_tokens": context,
                 "max_context_tokens": context},
        "paths": entries,
        "quality": quality,
        "verdict": {"break_even_context_tokens": 132.2},
    }  # fmt: skip
    return point(name, series, x, x_name, "dsd_bench", record)


def serving_point(
    x, rate=1000.0, *, name="05_continuous_batching_load_sweep", series="prompts 1024",
    x_name="max_active_requests", label="continuous_sparse", serial=True,
) -> PointResult:  # fmt: skip
    """Return a point of `dsd_continuous_bench`; `rate` in tokens per second of the loop."""
    values = {
        "tokens_per_second": rate, "tokens_per_second_including_admission": rate / 2,
        "total_ms": 100.0, "run_batch_wall_ms": 60.0, "runtime_admission_ms": 10.0,
        "prefill_ms": 0.0, "append_sync_ms": 8.0, "release_sync_ms": 2.0, "schedule_ms": 5.0,
        "loop_payload_ms": 5.0, "idle_ms": 4.0, "prompt_preadmit_ms": 40.0,
        "decode_payload_prep_ms": 10.0, "avg_active_batch_size": 3.5, "p50_step_ms": 0.4,
        "p95_step_ms": 0.6,
    }  # fmt: skip
    results = {"backend": "cpu"} | {f"{label}_{key}": value for key, value in values.items()}
    if serial:
        results["continuous_vs_serial_speedup"] = rate / 400
        results["continuous_vs_serial_speedup_including_admission"] = rate / 600
    config = {
        "model": MODEL, "num_requests": 32, "max_active_requests": 8, "arrival_window": 0,
        "min_prompt_tokens": 1024, "max_prompt_tokens": 4096, "min_decode_steps": 8,
        "max_decode_steps": 32, "admission_mode": "cpu_cache", "prefill": "none",
        "clock": "steps", "seed": 7,
    }  # fmt: skip
    record = {"config": config, "environment": ENVIRONMENT, "workload": {"name": "reference"},
              "results": results}  # fmt: skip
    return point(name, series, x, x_name, "dsd_continuous_bench", record)


def lost(measured: PointResult, status="failed") -> PointResult:
    """Return the same point as one that was not measured."""
    return replace(measured, status=status, reason="it went wrong", record=None)


def three_rows(name: str) -> list[PointResult]:
    """Return three points of an experiment, or three of each of its curves."""
    if name.startswith("05"):
        loads = [serving_point(x, 800 * x**0.5) for x in (1, 4, 16)]
        windows = dict(series="arrivals", x_name="arrival_window")
        return loads + [serving_point(x, 3000 - x, **windows) for x in (0, 16, 64)]
    if name.startswith("06"):
        variants = ("optimized", "runtime_admit", "eager_release")
        return [serving_point(v, name=name, series="steady", x_name="variant") for v in variants]
    x_name, values, series = {
        "02": ("batch_size", (1, 4, 16), ("context 4096",)),
        "03": ("top_k_pages", (1, 8, 64), ("context 4096",)),
        "04": ("page_size", (8, 16, 64), ("8 pages", "128 tokens")),
        "07": ("context_tokens", (1024, 4096, 16384), ("fused", "staged")),
    }.get(name[:2], ("context_tokens", (64, 512, 4096), ("batch 16",)))
    return [
        decode_point(x, 0.01 * x, 0.1 * x**0.5, name=name, series=one, x_name=x_name,
                     versus=one == "fused")
        for one in series
        for x in values
    ]  # fmt: skip


def with_gpu(points: list[PointResult]) -> list[PointResult]:
    """Return points of `dsd_bench` as of a machine with a GPU, where all four paths ran."""
    changed = []
    for one in points:
        dense, sparse = (one.record["paths"][p]["total_ms"] for p in ("dense_cpu", "sparse_cpu"))
        changed.append(
            decode_point(one.x, dense["median"], sparse["median"], name=one.experiment,
                         series=one.series, x_name=one.x_name, gpu=True)
        )  # fmt: skip
    return changed


def write_experiment(folder, points: list[PointResult]) -> None:
    """Write the points.jsonl of an experiment."""
    folder.mkdir(parents=True)
    in_point = ("id", "variant", "series", "x", "x_name", "command", "parameters")
    lines = []
    for one in points:
        fields = asdict(one)
        inner = {name: fields.pop(name) for name in in_point}
        lines.append(json.dumps({"schema_version": 1, "point": inner} | fields))
    (folder / "points.jsonl").write_text("\n".join(lines) + "\n")
