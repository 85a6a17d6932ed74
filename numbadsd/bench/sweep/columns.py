"""The columns of the tables: those of the reference system by name and in order, then ours.

A column is a name and where its value stands, a place of `table.PLACES` with what that takes.
"""

_PATHS = ("dense_cpu", "sparse_cpu", "dense_gpu", "sparse_gpu")
_QUALITY = (
    "page_recall", "attention_mass", "candidate_mass", "output_relative_error", "density",
    "needle_recall",
)  # fmt: skip


def _same(place: str, *names: str) -> list[tuple]:
    """Return columns that are called as what they show."""
    return [(name, (place, name)) for name in names]


_POINT = [("experiment", ("line", "experiment")), ("variant", ("line", "point", "variant"))]
_RAW_LOG = [("raw_log", ("line", "stdout"))]
_OURS = [
    ("series", ("line", "point", "series")),
    ("id", ("line", "point", "id")),
    *_same("line", "status", "reason", "wall_s", "code_version"),
    *_same("config", "num_kv_heads", "kv_dtype", "summary", "share"),
    ("num_threads", ("record", "environment", "num_threads")),
]
_DECODE_CONFIG = [
    *_same("config", "top_k_pages", "batch_size"),
    ("min_ctx", ("config", "min_context_tokens")),
    ("max_ctx", ("config", "max_context_tokens")),
    *_same("config", "seed", "iterations", "warmup", "num_heads", "head_dim", "page_size"),
]
_SPARSE_GPU = [
    ("sparse_gpu_score_ms", ("path", "sparse_gpu", "stages_ms", "score")),
    ("sparse_gpu_topk_ms", ("path", "sparse_gpu", "stages_ms", "topk")),
    ("sparse_gpu_attention_ms", ("path", "sparse_gpu", "stages_ms", "attend")),
    ("sparse_gpu_total_overhead_ms", ("path", "sparse_gpu", "overhead_ms")),
    ("sparse_gpu_sparse_layout_ms", ("path", "sparse_gpu", "overheads_ms", "sparse_layout")),
]
_ACCURACY = "avg_max_abs_diff_{}_vs_dense_cpu"


def _accuracy(path: str) -> tuple:
    name = _ACCURACY.format(path)
    return name, ("record", "accuracy", name)


_DECODE = [
    *_POINT,
    *_DECODE_CONFIG,
    ("total_pages", ("record", "data", "pages")),
    ("total_context_tokens", ("record", "data", "context_tokens")),
    ("total_candidate_pages", ("record", "data", "candidate_pages")),
    ("total_selected_tokens", ("record", "data", "selected_tokens")),
    *(
        (f"{name}_over_dense_bytes", ("record", "analytical", f"{name}_over_dense_bytes"))
        for name in ("sparse_current", "sparse_target")
    ),
    *((f"{path}_total_ms", ("path", path, "total_ms", "median")) for path in _PATHS),
    *((f"{path}_kernel_ms", ("path", path, "kernel_ms")) for path in _PATHS[2:]),
    *_SPARSE_GPU,
    _accuracy("sparse_gpu"),
    *_RAW_LOG,
    *_OURS,
    *_same("config", "data", "fused"),
    *(
        (f"{path}_{name}", ("path", path, *keys))
        for path in _PATHS
        for name, keys in (
            ("p5_ms", ("p5_ms",)),
            ("p95_ms", ("total_ms", "p95")),
            ("floor_ms", ("floor_ms",)),
            ("bandwidth_fraction", ("bandwidth_fraction",)),
        )
    ),
    *(
        (f"sparse_cpu_{stage}_ms", ("path", "sparse_cpu", "stages_ms", stage))
        for stage in ("score", "topk", "gather", "attend")
    ),
    ("sparse_cpu_total_overhead_ms", ("path", "sparse_cpu", "overhead_ms")),
    _accuracy("sparse_cpu"),
    *((name, ("record", "quality", name)) for name in _QUALITY),
]
_PATH_ROW = [("path", ("path name",)), ("total_ms", ("this path", "total_ms", "median"))]
_OF_THIS_PATH = [
    ("p5_ms", ("this path", "p5_ms")),
    ("p95_ms", ("this path", "total_ms", "p95")),
    *_same("this path", "floor_ms", "bandwidth_fraction", "achieved_gbps"),
    ("overhead_ms", ("this path", "overhead_ms")),
    ("unavailable", ("path reason",)),
]
_TOTAL_TIME = [
    *_POINT,
    *_DECODE_CONFIG,
    *_PATH_ROW,
    ("speedup_vs_dense_cpu", ("this path", "speedup")),
    *_RAW_LOG,
    *_OURS,
    *_OF_THIS_PATH,
]
_BREAKDOWN = [
    *_POINT,
    *_DECODE_CONFIG,
    _PATH_ROW[0],
    *(
        (f"{name}_ms", ("this path", "stages_ms", stage))
        for name, stage in (
            ("score", "score"), ("topk", "topk"), ("gather", "gather"), ("attention", "attend"),
        )
    ),
    ("gpu_kernel_ms", ("this path", "kernel_ms")),
    ("gpu_kernel_other_ms", ("this path", "kernel_other_ms")),
    _PATH_ROW[1],
    *_RAW_LOG,
    *_OURS,
    ("fused", ("config", "fused")),
    *_OF_THIS_PATH,
]  # fmt: skip

_LOAD = _same(
    "config", "num_requests", "max_active_requests", "arrival_window", "min_prompt_tokens",
    "max_prompt_tokens", "min_decode_steps", "max_decode_steps", "seed", "num_heads", "head_dim",
    "page_size", "top_k_pages", "admission_mode", "preadmit_prompts",
    "precompute_decode_payloads", "gpu_synthetic_decode_append", "lazy_release",
    "run_batch_output_mode", "run_batch_timing_mode",
)  # fmt: skip
_RUN = _same(
    "run", "avg_active_batch_size", "avg_step_ms", "p95_step_ms", "total_ms",
    "measured_end_to_end_ms", "decode_payload_prep_ms", "prompt_preadmit_ms",
    "runtime_admission_ms", "run_batch_wall_ms", "append_sync_ms", "release_sync_ms",
    "serving_loop_other_ms", "outside_run_batch_ms", "admission_ms", "avg_score_ms", "avg_topk_ms",
    "avg_gather_ms", "avg_attention_ms", "avg_kernel_ms", "avg_h2d_ms", "avg_d2h_ms",
    "avg_launch_ms", "avg_sync_ms", "avg_prepare_sparse_layout_ms",
)  # fmt: skip
_GENERATED = ("total_generated_tokens", ("record", "results", "total_generated_tokens"))
_SPEEDUP = (
    ("serial_tokens_per_second", ("serial run", "tokens_per_second")),
    ("continuous_vs_serial_speedup", ("record", "results", "continuous_vs_serial_speedup")),
)
_INCLUDED = "continuous_vs_serial_speedup_including_admission"
_OURS_OF_RUNS = [
    *_OURS,
    ("benchmark_mode", ("config", "benchmark_mode")),
    ("backend", ("record", "results", "backend")),
    ("tokens_per_second_including_admission", ("run", "tokens_per_second_including_admission")),
    (_INCLUDED, ("record", "results", _INCLUDED)),
    ("host_fraction", ("run", "host_fraction")),
    ("p50_step_ms", ("run", "p50_step_ms")),
    *(
        (f"{rank}_{what}_ms", ("record", "results", "serving", f"{rank}_{what}_ms"))
        for what in ("ttft", "tpot", "queue_wait")
        for rank in ("p50", "p95")
    ),
    ("completed", ("record", "results", "serving", "completed")),
]
_CONTINUOUS = [
    *_POINT,
    *_LOAD,
    _GENERATED,
    ("continuous_tokens_per_second", ("run", "tokens_per_second")),
    *_SPEEDUP,
    *_RUN,
    *_RAW_LOG,
    *_OURS_OF_RUNS,
]
_ABLATION = [
    _POINT[0],
    ("condition", ("line", "point", "series")),
    ("variant", ("line", "point", "x")),
    ("benchmark_mode", ("config", "benchmark_mode")),
    *_LOAD,
    _GENERATED,
    ("tokens_per_second", ("run", "tokens_per_second")),
    *_SPEEDUP,
    *_RUN,
    ("total_runtime_overhead_ms", ("run overheads",)),
    *_same(
        "run", "device_h2d_bytes", "device_d2h_bytes", "device_h2d_calls", "device_d2h_calls",
        "device_h2d_large_calls", "device_d2h_large_calls", "admission_device_h2d_bytes",
        "admission_device_h2d_calls", "admission_device_h2d_large_calls",
    ),
    *_RAW_LOG,
    *(column for column in _OURS_OF_RUNS if column[0] != "benchmark_mode"),
]  # fmt: skip

_BY_PATH = {"00": _TOTAL_TIME, "07": _BREAKDOWN}


def has_row_per_path(experiment: str) -> bool:
    """Whether the table of an experiment has a row for each path."""
    return experiment[:2] in _BY_PATH


def columns_of(experiment: str, command: str) -> list[tuple]:
    """Return the columns of an experiment's table, (name, place) each."""
    if experiment[:2] in _BY_PATH:
        return _BY_PATH[experiment[:2]]
    if command == "dsd_bench":
        return _DECODE
    return _ABLATION if experiment.startswith("06") else _CONTINUOUS
