"""Records made by hand: what the verdict and the report start from."""

GPU_REASON = "no GPU was found; plug one in"


def path_record(
    total_ms=1.0, *, fraction=0.9, spread=1.25, overheads=None, kernel_ms=None, **stages_ms
):
    """Return the record of a path that ran; the rest of its total is attention."""
    stages = {"score": 0.0, "topk": 0.0, "gather": 0.0, "attend": 0.0} | stages_ms
    names = ("malloc", "h2d", "d2h", "free", "launch", "sync", "page_table", "sparse_layout")
    overheads = dict.fromkeys(names, 0.0) | (overheads or {})
    if "attend" not in stages_ms:
        stages["attend"] = total_ms - sum(stages.values()) - sum(overheads.values())
    return {
        "available": True,
        "reason": None,
        "compile_s": 0.25,
        "warmup_ms": [9.0],
        "total_ms": {
            "median": total_ms,
            "p95": spread * total_ms,
            "min": total_ms / 2,
            "samples": [total_ms / 2, total_ms, spread * total_ms],
        },
        "stages_ms": stages,
        "overheads_ms": overheads,
        "kernel_ms": kernel_ms,
        "bytes_read": 4_000_000,
        "floor_ms": 0.5,
        "achieved_gbps": 8 * fraction,
        "bandwidth_fraction": fraction,
    }


def contender_record(total_ms=1.0, *, fraction=0.5, kernel_ms=None, difference=1e-6):
    """Return the record of another library's attention."""
    keys = ("available", "reason", "warmup_ms", "total_ms", "bytes_read", "floor_ms")
    path = path_record(total_ms, fraction=fraction)
    return {
        **{key: path[key] for key in (*keys, "achieved_gbps", "bandwidth_fraction")},
        "version": "2.13.0",
        "form": "one batch, folded",
        "forms_ms": {"one batch, folded": 1.0},
        "kernel_ms": kernel_ms,
        "max_abs_difference": difference,
    }


def missing_path(reason=GPU_REASON):
    """Return the record of a path that could not run."""
    return {"available": False, "reason": reason}


def traffic_record(name):
    """Return one row of the analytical section."""
    num_bytes = {"dense": 8_000_000, "sparse_current": 20_000_000, "sparse_target": 1_000_000}[name]
    return {
        "bytes": num_bytes,
        "flops": 4_000_000,
        "intensity": 4_000_000 / num_bytes,
        "bandwidth_floor_us": 1000.5,
        "compute_floor_us": 40.25,
        "gpu_bandwidth_floor_us": None,
    }


def decode_record(gpu=None, **paths):
    """Return a record of `dsd_bench` with these paths, on a GPU of that name.

    By default both CPU paths ran and there was no GPU.
    """
    if not paths:
        paths = {"dense_cpu": path_record(4.0), "sparse_cpu": path_record(1.0, score=0.25)}
        paths |= {"dense_gpu": missing_path(), "sparse_gpu": missing_path()}
    model = {"num_heads": 8, "num_kv_heads": 2, "head_dim": 64, "page_size": 16}
    model |= {"top_k_pages": 4, "kv_dtype": "float16", "summary": "minmax", "share": "kv_head"}
    model |= {"num_sink_pages": 1, "num_recent_pages": 2, "summary_dtype": "float16"}
    config = {"data": "uniform", "fused": True, "seed": 7, "iterations": 3, "warmup": 1}
    analytical = {n: traffic_record(n) for n in ("dense", "sparse_current", "sparse_target")}
    analytical |= {"sparse_current_over_dense_bytes": 2.5, "sparse_target_over_dense_bytes": 0.125}
    accuracy = ("sparse_cpu_vs_dense_cpu", "sparse_gpu_vs_sparse_cpu", "sparse_gpu_vs_dense_cpu")
    accuracy = dict.fromkeys(f"avg_max_abs_diff_{name}" for name in accuracy)
    accuracy["avg_max_abs_diff_dense_gpu_vs_dense_cpu"] = None
    accuracy["avg_max_abs_diff_sparse_cpu_vs_dense_cpu"] = 0.0123
    quality = {"page_recall": 0.75, "attention_mass": 0.875, "candidate_mass": 0.5}
    quality |= {"output_relative_error": 0.0625, "density": 0.0312, "needle_recall": None}
    return {
        "schema_version": 1,
        "command": "dsd_bench",
        "config": {**config, "model": model, "threads": 2},
        "environment": {
            "cpu": "A Processor",
            "num_threads": 2,
            "threading_layer": "omp",
            "gpu": gpu,
        },
        "data": {
            "requests": 3,
            "context_tokens": 6000,
            "min_context_tokens": 1000,
            "max_context_tokens": 3000,
            "pages": 376,
            "kv_pool_bytes": 3_080_192,
            "summary_bytes": 192_512,
        },
        "bandwidth": {
            "read_gbps": {"median": 8.0, "p95": 9.0, "min": 7.0, "samples": [7.0, 8.0, 9.0]},
            "copy_gbps": None,
            "fp32_gflops": 100.0,
        },
        "analytical": analytical,
        "paths": paths,
        "accuracy": accuracy,
        "quality": quality,
        "verdict": {"sentence": "A verdict.", "speedup": 4.0, "winner": "sparse"},
    }
