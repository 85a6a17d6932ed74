"""Folders of results made by hand: sweeps whose answers are known."""

import json

from tests.bench.records import decode_record, missing_path, path_record

CPU = "Intel(R) Xeon(R) Processor"
CONTEXTS = "01_decode_context_length_sweep"
BATCHES = "02_decode_batch_scaling_sweep"
SPARSITY = "03_decode_topk_sparsity_sweep"
LOAD = "05_continuous_batching_load_sweep"
FIGURE = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="640" height="360" viewBox="0 0 640 360">'
    '<rect width="640" height="360" fill="white"/><path id="a" d="M20 340 L620 20" stroke="navy"/>'
    "</svg>"
)


def environment(gpu=None, **changes):
    """Return an environment as records hold it."""
    return {
        "numbadsd": "0.1.0",
        "cpu": CPU,
        "num_cores": 2,
        "memory_bytes": 24 << 30,
        "num_threads": 2,
        "gpu": gpu,
        "os": "Linux",
        "commit": "0123456789abcdef",
        "dirty": False,
        "timestamp": "2026-11-21T11:51:06+00:00",
    } | changes


def line(experiment, series, x, x_name, record, **changes):
    """Return a line of points.jsonl; `changes` are keys of the line or of its point."""
    is_loop = record is not None and "results" in record
    point = {
        "id": f"{experiment} {series} {x}",
        "variant": f"{series}, {x_name} {x}",
        "series": series,
        "x": x,
        "x_name": x_name,
        "command": "dsd_continuous_bench" if is_loop else "dsd_bench",
        "parameters": {x_name: x},
    }
    whole = {
        "schema_version": 1,
        "experiment": experiment,
        "point": point,
        "status": "ok",
        "reason": None,
        "wall_s": 1.0,
        "started": "2026-11-21T11:51:00+00:00",
        "code_version": "0123456789ab",
        "scale": "cpu",
        "quick": False,
        "record": record,
    }
    for name, value in changes.items():
        (point if name in point else whole)[name] = value
    return whole


def decode(dense_ms, sparse_ms, backend="cpu", fraction=0.9, gpu=None, **changes):
    """Return the record of a decode run with both paths of one backend."""
    paths = {
        f"dense_{backend}": path_record(dense_ms, fraction=fraction),
        f"sparse_{backend}": path_record(sparse_ms, score=sparse_ms / 4),
    }
    other = "gpu" if backend == "cpu" else "cpu"
    paths |= {f"dense_{other}": missing_path(), f"sparse_{other}": missing_path()}
    return decode_record(**paths) | {"environment": environment(gpu)} | changes


def context_lines(batches=(1, 4), contexts=(128, 512, 2048), crossing=300, **options):
    """Return a sweep over contexts: dense takes a microsecond a token, sparse `crossing` of them.

    With batch b all is b times as long, and the curves still cross where they did.
    """
    return [
        line(
            CONTEXTS, f"batch {batch}", x, "context_tokens",
            decode(batch * x / 1e3, batch * crossing / 1e3, **options),
            parameters={"batch_size": batch, "context_tokens": x},
        )
        for batch in batches
        for x in contexts
    ]  # fmt: skip


def batch_lines():
    """Return a sweep over batches; the first one is far from the bandwidth."""
    return [
        line(BATCHES, "context 4096", batch, "batch_size", decode(4.0 * batch, 1.0, fraction=share),
             parameters={"batch_size": batch, "context_tokens": 4096})
        for batch, share in ((1, 0.5), (8, 0.875))
    ]  # fmt: skip


def sparsity_lines():
    """Return a sweep over k that keeps a 256th of the attention a page."""
    return [
        line(SPARSITY, "context 4096", k, "top_k_pages", decode(
            8.0, k / 8, quality={
                "page_recall": 0.5, "attention_mass": k / 256, "output_relative_error": 1.25,
                "density": k / 256,
            }))
        for k in (8, 32)
    ]  # fmt: skip


def loop(rate, speedup=2.5, label="continuous_sparse"):
    """Return the record of a continuous run with so many tokens a second."""
    return {
        "schema_version": 1,
        "command": "dsd_continuous_bench",
        "config": {
            "num_requests": 32, "max_active_requests": 8, "arrival_window": 0, "seed": 7,
            "min_prompt_tokens": 1024, "max_prompt_tokens": 1024, "min_decode_steps": 8,
            "max_decode_steps": 16, "admission_mode": "direct_gpu_upload", "prefill": "none",
            "clock": "steps", "model": decode_record()["config"]["model"],
        },
        "workload": {"name": "reference"},
        "environment": environment(),
        "results": {
            "backend": "cpu",
            f"{label}_tokens_per_second": rate,
            f"{label}_tokens_per_second_including_admission": rate / 4,
            f"{label}_total_ms": 20.0,
            "continuous_vs_serial_speedup": speedup,
            "continuous_vs_serial_speedup_including_admission": speedup / 2,
            f"{label}_avg_active_batch_size": 8.0,
            f"{label}_p50_step_ms": 0.5,
            f"{label}_p95_step_ms": 0.75,
            "serving": {"p50_ttft_ms": 3.0},
        },
    }  # fmt: skip


def load_lines():
    """Return a sweep of the load, at its best with 16 active requests, and one of arrivals."""
    rates = {1: 9000.0, 16: 23456.0, 32: 20000.0}
    lines = [
        line(LOAD, "prompts 1024", active, "max_active_requests", loop(rate),
             parameters={"max_active_requests": active, "prompt_tokens": 1024})
        for active, rate in rates.items()
    ]  # fmt: skip
    return [*lines, line(LOAD, "arrivals", 64, "arrival_window", loop(99999.0))]


def whole_sweep():
    """Return the lines of four experiments, with one point that failed."""
    lost = line(CONTEXTS, "batch 4", 8192, "context_tokens", None, status="timed_out",
                reason="took more than 60 s")  # fmt: skip
    return [*context_lines(), lost, *batch_lines(), *sparsity_lines(), *load_lines()]


def write_sweep(folder, lines):
    """Write the lines of a sweep into its folder, which is made; returns it."""
    for one in lines:
        file = folder / one["experiment"] / "points.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as out:
            out.write(json.dumps(one) + "\n")
    return folder


def write_results(folder, lines=None, device="xeon", name="2026-11-21_0123456"):
    """Write a sweep where `dsd_sweep` puts it below a folder of results; returns the folder."""
    write_sweep(folder / "sweeps" / device / name, whole_sweep() if lines is None else lines)
    return folder


def write_record(folder, bench, record, device="xeon", file="2026-11-21_0123456.jsonl"):
    """Append a record of a single run to its file below a folder of results."""
    path = folder / bench / device / file
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as out:
        out.write(json.dumps(record) + "\n")
