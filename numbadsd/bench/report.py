"""The report: a record as the sections one reads in a terminal."""

from tabulate import tabulate

from numbadsd.bench.verdict import SIMULATOR
from numbadsd.decode.path import PATHS
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
GPUKernel           time in which the GPU ran kernels, by its own events; what the host adds is in
                    Launch. Stages and overheads are medians of parts that do not overlap.
Bandwidth           a path is near its limit when Fraction is near 1; a pool that fits in the
                    processor's caches is compared with the bandwidth of these caches.
Speedup             dense_cpu over this path, medians; beside it, the dense path of the same
                    processor over this path. Trust it as far as that dense's Fraction is high.
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
        ("GPU", _gpu(env["gpu"])),
    )  # fmt: skip
    return tabulate(rows, tablefmt="plain")


def _gpu(name: str | None) -> str:
    if name == SIMULATOR:
        return f"{name}: its times mean nothing"
    return name or "none used"


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
            row["gpu_bandwidth_floor_us"],
        )
        for name, row in analytical.items()
        if isinstance(row, dict)
    ]
    headers = ["", "Bytes(MB)", "FLOPs(M)", "AI", "BwFloor(us)", "CmpFloor(us)", "GPUBwFloor(us)"]
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
    return "\n".join([*_limits(measured), _table(rows, headers)])


def _limits(measured: dict):
    """Yield a line for the memory of each kind of processor that ran."""
    read, copy = measured["read_gbps"], measured["copy_gbps"]
    if read:
        yield (
            f"measured here: reads {read['median']:.1f} GB/s (median of {len(read['samples'])} "
            f"sweeps of the K/V pool, between samples), {measured['fp32_gflops']:.0f} GFLOP/s fp32"
        )
    if copy:
        yield (
            f"measured here: GPU copies {copy['median']:.1f} GB/s, read and written (median of "
            f"{len(copy['samples'])}, between samples)"
        )


def _end_to_end(record: dict) -> str:
    paths = record["paths"]
    rows = []
    for name, path in paths.items():
        if not path["available"]:
            rows.append((name, *[None] * 5, "unavailable"))
            continue
        total = path["total_ms"]
        speedups = [_speedup(paths, dense, total) for dense in ("dense_cpu", _own_dense(name))]
        rows.append((name, total["median"], total["p95"], total["min"], *speedups, _note(path)))
    headers = ["", "Total(ms)", "p95", "min", "Speedup", "vs own dense", "note"]
    return "\n".join([_table(rows, headers), *_versus(paths), *_reasons(paths)])


def _note(path: dict) -> str:
    if "compile_s" in path:
        return f"compile or load {path['compile_s']:.2f} s"
    return f"version {path['version']}"


def _own_dense(name: str) -> str:
    """Return the dense path of the processor that something ran on."""
    return "dense_gpu" if name.endswith("_gpu") else "dense_cpu"


def _versus(paths: dict):
    """Yield how our dense paths stand beside another library's attention."""
    for name, other in paths.items():
        ours = paths.get(_own_dense(name), {"available": False})
        if name in PATHS or not other["available"] or not ours["available"]:
            continue
        ratio = other["total_ms"]["median"] / ours["total_ms"]["median"]
        kernels = ""
        if other["kernel_ms"] and ours["kernel_ms"]:
            kernels = f", kernels alone {other['kernel_ms'] / ours['kernel_ms']:.2f}x"
        yield (
            f"{_own_dense(name)} against {name}: {ratio:.2f}x{kernels} ({other['form']}; outputs "
            f"differ by at most {other['max_abs_difference']:.1e})"
        )


def _reasons(paths: dict):
    """Yield why paths could not run, each reason once: it would stretch the table."""
    names = {}
    for name, path in paths.items():
        if not path["available"]:
            names.setdefault(path["reason"], []).append(name)
    for reason, same in names.items():
        yield f"{', '.join(same)} unavailable: {reason}"


def _speedup(paths: dict, dense: str, total_ms: dict) -> float | None:
    """Return how much faster a path is than a dense one, when that one ran."""
    if not paths.get(dense, {"available": False})["available"]:
        return None
    return paths[dense]["total_ms"]["median"] / total_ms["median"]


def _stages(record: dict) -> str:
    rows = [
        (name, *(path["stages_ms"][stage] for stage in STAGES), path["kernel_ms"])
        for name, path in _ours(record)
    ]
    headers = ["ms", "Score", "TopK", "Gather", "Attend", "GPUKernel"]
    return _table(rows, headers)


def _overheads(record: dict) -> str:
    rows = []
    for name, path in _ours(record):
        times = path["overheads_ms"]
        overheads = sum(times.values())
        explained = (overheads + sum(path["stages_ms"].values())) / path["total_ms"]["median"]
        columns = (times[key] for key in _OVERHEADS.values())
        rows.append((name, *columns, overheads, f"{explained:.0%}"))
    return _table(rows, ["ms", *_OVERHEADS, "TotalOH", "Stages + OH of Total"])


def _accuracy(record: dict) -> str:
    rows = [
        (name, "not measured" if value is None else f"{value:.3e}")
        for name, value in record["accuracy"].items()
    ]
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


def _quality(record: dict) -> str:
    if record["quality"] is None:
        return "not measured: it takes a dense and a sparse path, and K and V in host memory"
    rows = [
        (name, "not defined" if value != value else f"{value:.4f}", _QUALITY[name])
        for name, value in record["quality"].items()
        if value is not None
    ]
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


def _available(record: dict):
    return [(name, path) for name, path in record["paths"].items() if path["available"]]


def _ours(record: dict):
    return [(name, path) for name, path in _available(record) if name in PATHS]
