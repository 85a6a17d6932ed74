"""Records to compare, made by hand."""

import json

import numpy as np

from tests.bench.records import decode_record, path_record


def sampled(samples, **config):
    """Return a record of `dsd_bench` in which dense_cpu took these milliseconds."""
    path = path_record(1.0)
    path["total_ms"] = {"median": float(np.median(samples)), "samples": list(map(float, samples))}
    record = decode_record(dense_cpu=path)
    record["config"] |= config
    return record


def topk(ms=1.0):
    """Return a record of `dsd_topk_bench` with one case."""
    case = {"device": "cpu", "lengths": "mix", "values": "normal", "ms": {"median": ms}}
    return {
        "schema_version": 1,
        "command": "dsd_topk_bench",
        "config": {"rows": 4, "cases": [["mix", "normal"]], "device": "auto"},
        "environment": {"cpu": "A Processor"},
        "cases": [case],
    }


def continuous(tokens_per_second=1000.0):
    """Return a record of `dsd_continuous_bench` of 1,000 tokens."""
    label = "continuous_sparse"
    results = {
        "backend": "cpu",
        f"{label}_available": 1,
        f"{label}_tokens_per_second": tokens_per_second,
        f"{label}_tokens_per_second_including_admission": tokens_per_second,
        f"{label}_total_ms": 1e6 / tokens_per_second,
        f"{label}_p95_step_ms": 2.0,
        "serving": {"median_ttft_ms": 3.0, "median_tpot_ms": 0.5},
    }
    return {
        "schema_version": 1,
        "command": "dsd_continuous_bench",
        "config": {"num_requests": 4},
        "workload": {"name": "reference"},
        "environment": {"cpu": "A Processor"},
        "results": results,
    }


def point_line(variant, samples, code_version="aaaa", **config):
    """Return a line of points.jsonl; without samples, of a point that failed."""
    point = {"id": variant, "variant": variant, "series": "s", "x": 1, "x_name": "seed"}
    point |= {"command": "dsd_bench", "parameters": {}, "argv": []}
    return {
        "schema_version": 1,
        "experiment": "01_decode",
        "point": point,
        "status": "ok" if samples else "failed",
        "reason": None if samples else "out of memory",
        "wall_s": 1.0,
        "code_version": code_version,
        "scale": "cpu",
        "quick": False,
        "record": sampled(samples, **config) if samples else None,
    }


def write_lines(path, records):
    """Write records, one line each; returns the path."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
