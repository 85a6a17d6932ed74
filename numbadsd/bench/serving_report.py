"""What `dsd_continuous_bench` prints: key=value lines, and where the time went for a reader."""

from dataclasses import fields
from math import isnan

from tabulate import tabulate

from numbadsd.config import ContinuousBenchConfig

MODEL_ECHO = ("num_kv_heads", "kv_dtype", "summary", "share", "num_sink_pages", "num_recent_pages")
OPTION_ECHO = ("prefill", "prefill_chunk_tokens", "admission", "preempt", "kv_budget",
               "gate_tokens", "clock", "step_ms", "serial")  # fmt: skip
_LENGTHS = ("min_prompt_tokens", "max_prompt_tokens", "min_decode_steps", "max_decode_steps")
NOT_USED = {"poisson": ("arrival_window",), "trace": ("arrival_window", *_LENGTHS)}
_STAGES = {
    "decode": "run_batch_wall_ms", "admission": "runtime_admission_ms", "prefill": "prefill_ms",
    "payload": "loop_payload_ms", "append": "append_sync_ms", "release": "release_sync_ms",
    "schedule": "schedule_ms", "idle": "idle_ms",
}  # fmt: skip
_SHOWN_REJECTIONS = 3


def positional_names() -> list[str]:
    """Return the command's positional arguments in order."""
    names = [field.name for field in fields(ContinuousBenchConfig)]
    return names[: names.index("benchmark_mode") + 1]


def render_lines(record: dict) -> str:
    """Return the record as key=value, one a line: the configuration, then the results."""
    config, workload, results = record["config"], record["workload"], record["results"]
    not_used = NOT_USED.get(workload["name"], ())
    echo = {name: config[name] for name in positional_names() if name not in not_used}
    echo |= {name: config["model"][name] for name in MODEL_ECHO}
    echo |= {name: config[name] for name in OPTION_ECHO}
    values = echo | {f"workload_{k}": v for k, v in workload.items() if k not in echo}
    values |= {k: v for k, v in results.items() if not k.startswith(("serving", "continuous_vs_"))}
    serving = dict(results.get("serving", {}))
    if serving:
        serving["rejections"] = _rejections(serving["rejections"])
    values |= {f"serving_{name}": value for name, value in serving.items()}
    # last, as the reference system has it
    values |= {k: v for k, v in results.items() if k.startswith("continuous_vs_")}
    return "\n".join(f"{name}={_text(value)}" for name, value in values.items())


def _text(value) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        return "nan" if isnan(value) else f"{value:.6g}"
    if isinstance(value, dict):
        return "; ".join(f"{key}: {item}" for key, item in value.items()) or "none"
    return "none" if value is None else str(value)


def _rejections(reasons: dict) -> str | None:
    """Return the first reasons; the record has them all."""
    shown = list(reasons.values())[:_SHOWN_REJECTIONS]
    more = len(reasons) - len(shown)
    return "; ".join([*shown, *([f"and {more} more"] if more else [])]) or None


def render_report(record: dict) -> str:
    """Return where the time of each run went, and what its users waited for."""
    results = record["results"]
    labels = [name.removesuffix("_total_ms") for name in results if name.endswith("_total_ms")]
    if not labels:
        return f"not available: {results['reason']}"
    sections = {
        "Continuous Batching": _head(record),
        "Time of the Loop": _time_table(results, labels),
        "KV Cache": _kv_table(results, labels),
        "Latency": _latency_table(results["serving"]),
        "Requests": _requests(results),
    }
    return "\n\n".join(f"== {title} ==\n{text}" for title, text in sections.items())


def _head(record: dict) -> str:
    config, env, workload = record["config"], record["environment"], record["workload"]
    model, backend = config["model"], record["results"]["backend"]
    mode = f"k {model['top_k_pages']}" if config["benchmark_mode"] == "sparse" else "dense"
    heads = f"{model['num_heads']} query, {model['num_kv_heads']} kv, head_dim {model['head_dim']}"
    rows = [
        ("requests", f"{workload['num_requests']} ({workload['name']}), at most "
                     f"{config['max_active_requests']} active"),
        ("heads", f"{heads}; pages of {model['page_size']} tokens, {model['kv_dtype']}; {mode}"),
        ("prompts", f"{config['admission_mode']}, prefill {config['prefill']}, admission "
                    f"{config['admission']}, KV budget {config['kv_budget']}"),
        ("clock", f"{config['clock']}, steps "
                  + ("as measured" if config["step_ms"] is None else f"{config['step_ms']:g} ms")),
        ("machine", f"{env['cpu']}, {env['num_threads']} threads" if backend == "cpu"
                    else f"{env['gpu']}"),
    ]  # fmt: skip
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


def _time_table(results: dict, labels: list[str]) -> str:
    columns = []
    for label in labels:
        total = results[f"{label}_total_ms"]
        parts = {stage: results[f"{label}_{key}"] for stage, key in _STAGES.items()}
        parts["other"] = total - sum(parts.values())
        columns.append([
            f"{total:.1f}", *(f"{part:.1f} ({part / total:.0%})" for part in parts.values()),
            f"{results[f'{label}_host_fraction']:.1%}",
            f"{results[f'{label}_prompt_preadmit_ms']:.1f}",
            f"{results[f'{label}_decode_payload_prep_ms']:.1f}",
            f"{results[f'{label}_avg_step_ms']:.3f}",
            f"{results[f'{label}_avg_active_batch_size']:.1f}",
            f"{results[f'{label}_tokens_per_second']:,.0f}",
            f"{results[f'{label}_tokens_per_second_including_admission']:,.0f}",
        ])  # fmt: skip
    names = ["loop, ms", *(f"- {stage}" for stage in (*_STAGES, "other")), "outside of kernels",
             "before: prompts, ms", "before: payloads, ms", "mean step, ms", "mean batch",
             "tokens/s in the loop", "tokens/s, before included"]  # fmt: skip
    if "continuous_vs_serial_speedup" in results:
        names += ["speed-up", "speed-up, before included"]
        speedups = (
            "continuous_vs_serial_speedup",
            "continuous_vs_serial_speedup_including_admission",
        )
        columns[0] += [f"{results[name]:.2f}" for name in speedups]
        for column in columns[1:]:
            column += ["1.00", "1.00"]
    rows = zip(names, *columns, strict=True)
    return tabulate(rows, headers=["", *labels], disable_numparse=True,
                    colalign=["left", *("right" for _ in labels)])  # fmt: skip


def _kv_table(results: dict, labels: list[str]) -> str:
    names = {
        "held, MB": "kv_bytes_resident_per_step",
        "read, MB": "kv_bytes_read_per_step",
        "a dense step would read, MB": "kv_bytes_read_dense_per_step",
    }
    rows = [
        [name, *(f"{results[f'{label}_{key}'] / 1e6:.3f}" for label in labels)]
        for name, key in names.items()
    ]
    rows.append(["most pages at once", *(results[f"{label}_peak_pages"] for label in labels)])
    text = tabulate(rows, headers=["a mean step", *labels], disable_numparse=True,
                    colalign=["left", *("right" for _ in labels)])  # fmt: skip
    share = results["sparse_cheaper_token_fraction"]
    return f"{text}\n{share:.0%} of the tokens had a context for which sparse reads fewer bytes"


def _latency_table(serving: dict) -> str:
    names = ("ttft", "tpot", "itl", "e2el", "queue_wait")
    statistics = ("mean", "p50", "p95", "p99")
    rows = [[name, *(serving[f"{s}_{name}_ms"] for s in statistics)] for name in names]
    rows.append(["gaps", "", "", serving["p95_gap_ms"], "", serving["longest_gap_ms"]])
    return tabulate(rows, headers=["ms", *statistics, "longest"], floatfmt=".3f")


def _requests(results: dict) -> str:
    serving = results["serving"]
    names = ("completed", "rejected", "failed", "cancelled", "not_started", "preempted")
    lines = [", ".join(f"{serving[name]} {name.replace('_', ' ')}" for name in names)]
    if serving["request_goodput"] is not None:
        lines.append(f"goodput {serving['request_goodput']:.3g} requests/s")
    if serving["rejections"]:
        lines.append(f"rejected: {_rejections(serving['rejections'])}")
    if "error" in results:
        lines.append(f"error: {results['error']}")
    return "\n".join(lines)
