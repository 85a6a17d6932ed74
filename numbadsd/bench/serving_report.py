"""What `dsd_continuous_bench` prints: key=value lines, and where the time went for a reader."""

from math import isnan

from tabulate import tabulate

from numbadsd.config import MODES, SWITCHES

_ECHO = (
    "num_requests", "max_active_requests", "arrival_window", "min_prompt_tokens",
    "max_prompt_tokens", "min_decode_steps", "max_decode_steps", "seed", "num_heads", "head_dim",
    "page_size", "top_k_pages", *MODES, *SWITCHES, "prefill", "prefill_chunk_tokens", "admission",
    "preempt", "kv_budget", "gate_tokens", "clock",
)  # fmt: skip
_MODEL_ECHO = ("num_kv_heads", "kv_dtype", "summary", "share", "num_sink_pages", "num_recent_pages")
_STAGES = {
    "decode": "run_batch_wall_ms", "admission": "runtime_admission_ms", "prefill": "prefill_ms",
    "payload": "loop_payload_ms", "append": "append_sync_ms", "release": "release_sync_ms",
    "schedule": "schedule_ms", "idle": "idle_ms",
}  # fmt: skip


def render_lines(record: dict) -> str:
    """Return the record as key=value, one a line: the configuration, then the results."""
    config, results = record["config"], record["results"]
    lines = [f"{name}={_text(config[name])}" for name in _ECHO]
    lines += [f"{name}={_text(config['model'][name])}" for name in _MODEL_ECHO]
    lines += [f"workload_{name}={_text(value)}" for name, value in record["workload"].items()]
    serving = results.get("serving", {})
    speedups = {k: v for k, v in results.items() if k.startswith("continuous_vs_serial_speedup")}
    for name, value in results.items():
        if name != "serving" and name not in speedups:
            lines.append(f"{name}={_text(value)}")
    lines += [f"serving_{name}={_text(value)}" for name, value in serving.items()]
    # last, as the reference system has it
    lines += [f"{name}={_text(value)}" for name, value in sorted(speedups.items(), reverse=True)]
    return "\n".join(lines)


def _text(value) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        return "nan" if isnan(value) else f"{value:.6g}"
    if isinstance(value, dict):
        return ";".join(f"{key}:{item}" for key, item in value.items())
    return "none" if value is None else str(value)


def render_report(record: dict) -> str:
    """Return where the time of each run went, and what its users waited for."""
    results = record["results"]
    labels = [name.removesuffix("_total_ms") for name in results if name.endswith("_total_ms")]
    if not labels:
        return f"not available: {results['reason']}"
    return "\n\n".join([_time_table(results, labels), _latency_table(results["serving"])])


def _time_table(results: dict, labels: list[str]) -> str:
    rows = []
    for label in labels:
        total = results[f"{label}_total_ms"]
        parts = {stage: results[f"{label}_{key}"] for stage, key in _STAGES.items()}
        parts["other"] = total - sum(parts.values())
        shares = [f"{part:.1f} ({part / total:.0%})" for part in parts.values()]
        speed = results[f"{label}_tokens_per_second"]
        overall = results[f"{label}_tokens_per_second_including_admission"]
        rows.append([label, f"{total:.1f}", *shares, f"{speed:,.0f}", f"{overall:,.0f}"])
    heads = ["ms of the loop", "Total", *(s.capitalize() for s in _STAGES), "Other", "Tokens/s",
             "with admission"]  # fmt: skip
    columns = zip(heads, *rows, strict=True)
    return tabulate(columns, headers="firstrow", disable_numparse=True)


def _latency_table(serving: dict) -> str:
    names = ("ttft", "tpot", "itl", "e2el", "queue_wait")
    statistics = ("mean", "p50", "p95", "p99")
    rows = [[name, *(serving[f"{s}_{name}_ms"] for s in statistics)] for name in names]
    text = tabulate(rows, headers=["ms", *statistics], floatfmt=".3f")
    gaps = f"longest gap {serving['longest_gap_ms']:.3f} ms, p95 {serving['p95_gap_ms']:.3f} ms"
    ends = ", ".join(
        f"{serving[name]} {name}" for name in ("completed", "rejected", "cancelled", "preempted")
    )
    return f"{text}\n{ends}; {gaps}; time is {serving['clock']}"
