"""The report: a record as the sections one reads in a terminal."""

from tabulate import tabulate

from numbadsd.timing import STAGES

_OVERHEADS = {
    "Malloc": "malloc",
    "H2D": "h2d",
    "D2H": "d2h",
    "Free": "free",
    "Launch": "launch",
    "Sync": "sync",
    "PageTable": "page_table",
    "SparseLayout": "sparse_layout",
}
_QUALITY = {
    "page_recall": "share of the true top-k pages that was chosen",
    "attention_mass": "softmax mass on the chosen tokens",
    "candidate_mass": "the same without forced sink and recent pages",
    "output_relative_error": "||sparse - dense|| / ||dense||",
    "density": "tokens read / context tokens",
    "needle_recall": "share of the planted needle pages that was chosen",
}
_GUIDE = """\
Analytical Ceiling  what the formulas allow at the bandwidth and FP32 rate measured in this run:
                    sparse_target reads summaries and selected pages in place (--fused);
                    sparse_current reads every key and copies what it selects.
Bandwidth           a path is near its limit when Fraction is near 1; a pool that fits in the
                    processor's caches is compared with the bandwidth of these caches.
Speedup             dense_cpu over this path, medians. Trust it as far as dense's Fraction is high.
Quality             means over (request, head). Uniform data has no pages worth finding: use
                    --data structured or --kv-file before believing any of it."""


def render_report(record: dict) -> str:
    """Return all sections of a `dsd_bench` record as text."""
    sections = (
        ("Decode Benchmark", _configuration(record)),
        ("Analytical Ceiling", _analytical(record)),
        ("Bandwidth", _bandwidth(record)),
        ("End-to-End", _end_to_end(record)),
        ("Stage / Kernel Breakdown", _stages(record)),
        ("Runtime Overheads", _overheads(record)),
        ("Accuracy", _accuracy(record)),
        ("Quality", _quality(record)),
        ("Reading Guide", _GUIDE),
        ("Verdict", record["verdict"]["sentence"]),
    )
    return "\n\n".join(f"== {title} ==\n{text}" for title, text in sections)


def _table(rows: list, headers: list[str], formats=".3f") -> str:
    if not rows:
        return "no path ran"
    return tabulate(rows, headers, floatfmt=formats, missingval="-", disable_numparse=[0])


def _configuration(record: dict) -> str:
    config, model, data = record["config"], record["config"]["model"], record["data"]
    env = record["environment"]
    source = config.get("kv_file") or config["data"]
    rows = (
        ("requests", f"{data['requests']}"),
        ("context tokens", f"{data['min_context_tokens']} .. {data['max_context_tokens']}, "
         f"{data['context_tokens']} in all"),
        ("heads", f"{model['num_heads']} query, {model['num_kv_heads']} kv, "
         f"head_dim {model['head_dim']}"),
        ("pages", f"{data['pages']} of {model['page_size']} tokens, {model['kv_dtype']}"),
        ("K/V pool", f"{data['kv_pool_bytes'] / 1e6:.1f} MB, summaries "
         f"{data['summary_bytes'] / 1e6:.1f} MB"),
        ("selection", f"k {model['top_k_pages']}, {model['summary']}, shared per {model['share']}, "
         f"{model['num_sink_pages']} sink + {model['num_recent_pages']} recent forced, "
         f"{'fused' if config['fused'] else 'staged'}"),
        ("data", f"{source}, seed {config['seed']}"),
        ("samples", f"{config['iterations']} after {config['warmup']} warm-up"),
        ("machine", f"{env['cpu']}, {env['num_threads']} threads ({env['threading_layer']})"),
    )  # fmt: skip
    return tabulate(rows, tablefmt="plain")


def _analytical(record: dict) -> str:
    analytical = record["analytical"]
    rows = [
        (
            name,
            row["bytes"] / 1e6,
            row["flops"] / 1e6,
            row["intensity"],
            row["bandwidth_floor_us"],
            row["compute_floor_us"],
        )
        for name, row in analytical.items()
        if isinstance(row, dict)
    ]
    headers = ["", "Bytes(MB)", "FLOPs(M)", "AI", "BwFloor(us)", "CmpFloor(us)"]
    ratios = [f"{k} {v:.4f}" for k, v in analytical.items() if not isinstance(v, dict)]
    return "\n".join([_table(rows, headers), *ratios])


def _bandwidth(record: dict) -> str:
    measured = record["bandwidth"]
    rows = [
        (
            name,
            path["bytes_read"] / 1e6,
            path["floor_ms"],
            path["total_ms"]["median"],
            path["achieved_gbps"],
            path["bandwidth_fraction"],
        )
        for name, path in _available(record)
    ]
    headers = ["", "Bytes(MB)", "Floor(ms)", "Total(ms)", "GB/s", "Fraction"]
    gbps = measured["read_gbps"]
    limit = (
        f"measured here: reads {gbps['median']:.1f} GB/s (median of {len(gbps['samples'])} sweeps "
        f"of the K/V pool, between samples), {measured['fp32_gflops']:.0f} GFLOP/s fp32"
    )
    return "\n".join([limit, _table(rows, headers)])


def _end_to_end(record: dict) -> str:
    paths = record["paths"]
    dense = paths.get("dense_cpu", {"available": False})
    rows = []
    for name, path in paths.items():
        if not path["available"]:
            rows.append((name, None, None, None, None, f"unavailable: {path['reason']}"))
            continue
        total = path["total_ms"]
        speedup = dense["total_ms"]["median"] / total["median"] if dense["available"] else None
        note = f"compile or load {path['compile_s']:.2f} s"
        rows.append((name, total["median"], total["p95"], total["min"], speedup, note))
    headers = ["", "Total(ms)", "p95", "min", "Speedup", "note"]
    return _table(rows, headers)


def _stages(record: dict) -> str:
    rows = [
        (name, *(path["stages_ms"][stage] for stage in STAGES), None)
        for name, path in _available(record)
    ]
    headers = ["ms", "Score", "TopK", "Gather", "Attend", "GPUKernel"]
    return _table(rows, headers)


def _overheads(record: dict) -> str:
    rows = []
    for name, path in _available(record):
        times = path["overheads_ms"]
        rows.append((name, *(times[key] for key in _OVERHEADS.values()), sum(times.values())))
    return _table(rows, ["ms", *_OVERHEADS, "TotalOH"])


def _accuracy(record: dict) -> str:
    rows = [
        (name, "not measured" if value is None else f"{value:.3e}")
        for name, value in record["accuracy"].items()
    ]
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


def _quality(record: dict) -> str:
    if record["quality"] is None:
        return "not measured: it takes dense_cpu and sparse_cpu"
    rows = [
        (name, "not defined" if value != value else f"{value:.4f}", _QUALITY[name])
        for name, value in record["quality"].items()
        if value is not None
    ]
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


def _available(record: dict):
    return [(name, path) for name, path in record["paths"].items() if path["available"]]
