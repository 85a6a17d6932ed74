"""`dsd_bench`'s record: every key, every number consistent with the others and with an oracle."""

import json
from dataclasses import replace

import numpy as np
import pytest

from numbadsd.bench.data import capture_shape, fill_cache, make_workload
from numbadsd.bench.decode import run_decode_bench
from numbadsd.bench.record import write_record
from numbadsd.bench.report import render_report
from numbadsd.config import DecodeBenchConfig
from numbadsd.decode.path import make_path
from numbadsd.workload.captures import Capture
from tests import oracle

CONFIG = DecodeBenchConfig(
    top_k_pages=3,
    batch_size=3,
    min_context_tokens=20,
    max_context_tokens=60,
    seed=11,
    iterations=3,
    warmup=2,
    num_heads=4,
    head_dim=16,
    page_size=4,
    num_kv_heads=2,
    summary="minmax",
    share="kv_head",
    num_sink_pages=1,
)
ONCE = replace(CONFIG, iterations=1, warmup=0)

RECORD_KEYS = {
    "schema_version", "command", "config", "environment", "analytical", "paths", "accuracy",
    "quality", "verdict",
}  # fmt: skip
PATH_KEYS = {
    "available", "reason", "total_ms", "stages_ms", "overheads_ms", "bytes_read", "achieved_gbps",
    "bandwidth_fraction",
}  # fmt: skip
ACCURACY_KEYS = [
    "avg_max_abs_diff_sparse_cpu_vs_dense_cpu",
    "avg_max_abs_diff_sparse_gpu_vs_sparse_cpu",
    "avg_max_abs_diff_sparse_gpu_vs_dense_cpu",
    "avg_max_abs_diff_dense_gpu_vs_dense_cpu",
]
QUALITY_KEYS = {
    "page_recall", "attention_mass", "candidate_mass", "output_relative_error", "density",
}  # fmt: skip
CPU_PATHS = ("dense_cpu", "sparse_cpu")


@pytest.fixture(scope="module")
def record():
    """Return the record of one run of CONFIG."""
    return run_decode_bench(CONFIG, command="dsd_bench as tested")


@pytest.fixture(scope="module")
def staged():
    """Return the record of the same run with a gather."""
    return run_decode_bench(replace(CONFIG, fused=False))


def test_the_record_has_every_key(record):
    assert RECORD_KEYS <= set(record)
    assert record["schema_version"] == 1 and record["command"] == "dsd_bench as tested"
    assert list(record["paths"]) == ["dense_cpu", "sparse_cpu", "dense_gpu", "sparse_gpu"]
    assert list(record["accuracy"]) == ACCURACY_KEYS
    assert QUALITY_KEYS <= set(record["quality"])
    assert {"sentence", "speedup", "winner"} <= set(record["verdict"])


def test_the_record_tells_the_whole_configuration(record):
    config = record["config"]
    assert {name: config[name] for name in ("top_k_pages", "seed", "share", "data", "fused")} == {
        "top_k_pages": 3, "seed": 11, "share": "kv_head", "data": "uniform", "fused": True,
    }  # fmt: skip
    assert config["model"]["summary_dtype"] == "float32"
    assert config["threads"] == record["environment"]["num_threads"]


@pytest.mark.parametrize("name", CPU_PATHS)
def test_a_path_that_ran_has_every_key(record, name):
    path = record["paths"][name]
    assert PATH_KEYS <= set(path)
    assert path["available"] is True and path["reason"] is None
    assert list(path["stages_ms"]) == ["score", "topk", "gather", "attend"]
    assert set(path["total_ms"]) == {"median", "p95", "min", "samples"}


@pytest.mark.parametrize("name", ["dense_gpu", "sparse_gpu"])
def test_the_simulator_is_not_taken_for_a_gpu(record, name):
    assert record["paths"][name]["available"] is False
    assert "simulator" in record["paths"][name]["reason"]
    assert record["environment"]["gpu"] is None and record["bandwidth"]["copy_gbps"] is None


def test_the_record_survives_its_file(record, tmp_path):
    write_record(record, tmp_path / "r.json")
    read = json.loads((tmp_path / "r.json").read_text())
    assert read["paths"]["sparse_cpu"] == record["paths"]["sparse_cpu"]
    assert read["quality"] == record["quality"] and read["verdict"] == record["verdict"]
    assert render_report(read) == render_report(record)


@pytest.mark.parametrize("name", CPU_PATHS)
def test_every_iteration_is_a_sample_and_warm_up_stands_apart(record, name):
    path = record["paths"][name]
    assert len(path["total_ms"]["samples"]) == CONFIG.iterations
    assert len(path["warmup_ms"]) == CONFIG.warmup
    assert min(path["total_ms"]["samples"]) > 0 and min(path["warmup_ms"]) > 0
    assert path["total_ms"]["median"] == np.median(path["total_ms"]["samples"])


def test_every_sample_has_its_own_bandwidth(record):
    assert len(record["bandwidth"]["read_gbps"]["samples"]) == 2 * CONFIG.iterations


@pytest.mark.parametrize("fused", [True, False])
def test_stages_and_overheads_of_a_sample_add_up_to_its_total(fused):
    record = run_decode_bench(replace(ONCE, fused=fused))  # one sample is its own median
    for name in CPU_PATHS:
        path = record["paths"][name]
        parts = sum(path["stages_ms"].values()) + sum(path["overheads_ms"].values())
        assert parts == pytest.approx(path["total_ms"]["samples"][0], rel=1e-9)


@pytest.mark.parametrize("name", CPU_PATHS)
def test_bandwidth_is_bytes_over_the_median_and_over_what_was_measured(record, name):
    path, read_gbps = record["paths"][name], record["bandwidth"]["read_gbps"]["median"]
    gbps = path["bytes_read"] / (path["total_ms"]["median"] * 1e-3) / 1e9
    assert path["achieved_gbps"] == pytest.approx(gbps)
    assert path["bandwidth_fraction"] == pytest.approx(gbps / read_gbps)
    assert path["floor_ms"] == pytest.approx(path["bytes_read"] / (read_gbps * 1e9) * 1e3)


def test_bytes_are_those_of_the_batch(record):
    tokens, pages = record["data"]["context_tokens"], record["data"]["pages"]
    token_bytes = 2 * 2 * 16 * 4
    assert record["paths"]["dense_cpu"]["bytes_read"] == tokens * token_bytes
    assert record["analytical"]["dense"]["bytes"] == tokens * token_bytes
    # 3 pages of at most 4 tokens for each request, and summaries of two vectors
    most = pages * 2 * 2 * 16 * 4 + 3 * 3 * 4 * token_bytes
    assert most - 3 * 3 * token_bytes <= record["paths"]["sparse_cpu"]["bytes_read"] <= most
    assert record["analytical"]["sparse_target"]["bytes"] == most
    dense = record["analytical"]["dense"]
    fp32_gflops = record["bandwidth"]["fp32_gflops"]
    assert dense["compute_floor_us"] == pytest.approx(dense["flops"] / fp32_gflops / 1e3)
    assert dense["gpu_bandwidth_floor_us"] is None
    ratio = most / (tokens * token_bytes)
    assert record["analytical"]["sparse_target_over_dense_bytes"] == pytest.approx(ratio)


def test_the_batch_is_described(record):
    data = record["data"]
    assert data["requests"] == 3
    assert 20 <= data["min_context_tokens"] <= data["max_context_tokens"] <= 60
    assert data["kv_pool_bytes"] == data["pages"] * 4 * 256
    assert data["summary_bytes"] == data["pages"] * 2 * 128


def test_a_fused_path_gathers_nothing_and_a_staged_one_does(record, staged):
    assert record["paths"]["sparse_cpu"]["stages_ms"]["gather"] == 0
    assert staged["paths"]["sparse_cpu"]["stages_ms"]["gather"] > 0
    assert staged["paths"]["dense_cpu"]["stages_ms"]["gather"] == 0


def test_a_staged_path_moves_more_bytes_for_the_same_outputs(record, staged):
    assert staged["accuracy"] == record["accuracy"] and staged["quality"] == record["quality"]
    fused_bytes = record["paths"]["sparse_cpu"]["bytes_read"]
    assert staged["paths"]["sparse_cpu"]["bytes_read"] > fused_bytes
    assert staged["paths"]["dense_cpu"]["bytes_read"] == record["paths"]["dense_cpu"]["bytes_read"]


def test_accuracy_is_the_oracles(record):
    data = fill_cache(CONFIG.model, make_workload(CONFIG))
    largest = []
    for request_id in data.request_ids:
        tensors = data.queries[request_id], data.cache.copy_keys(request_id)
        tensors += (data.cache.copy_values(request_id),)
        dense, _ = oracle.attention(*tensors, CONFIG.model.sm_scale)
        sparse, *_ = oracle.sparse_decode(
            *tensors, page_size=4, top_k_pages=3, summary="minmax", share="kv_head",
            sm_scale=CONFIG.model.sm_scale, num_sink_pages=1,
        )  # fmt: skip
        largest.append(np.abs(sparse - dense).max())
    value = record["accuracy"]["avg_max_abs_diff_sparse_cpu_vs_dense_cpu"]
    assert value == pytest.approx(np.mean(largest), rel=1e-5)


def test_the_same_seed_gives_the_same_data_and_another_does_not(record):
    again = run_decode_bench(ONCE)
    assert again["accuracy"] == record["accuracy"] and again["quality"] == record["quality"]
    other = run_decode_bench(replace(ONCE, seed=12))
    assert other["accuracy"] != record["accuracy"]


@pytest.mark.parametrize("share", ["request", "kv_head", "query_head"])
@pytest.mark.parametrize("k", [15, 16, 1000])
def test_selecting_every_page_is_dense_bit_for_bit(k, share):
    record = run_decode_bench(replace(ONCE, top_k_pages=k, share=share))  # at most 15 pages
    assert record["accuracy"]["avg_max_abs_diff_sparse_cpu_vs_dense_cpu"] == 0.0
    quality = record["quality"]
    assert quality["density"] == quality["page_recall"] == 1.0
    assert quality["attention_mass"] == pytest.approx(1.0)
    assert quality["output_relative_error"] == 0.0


def test_selecting_nothing_is_measured_too():
    record = run_decode_bench(replace(ONCE, top_k_pages=0, num_sink_pages=0))
    quality = record["quality"]
    assert quality["density"] == quality["attention_mass"] == 0.0
    assert quality["output_relative_error"] == 1.0
    assert render_report(record)


@pytest.mark.parametrize("paths", [("dense_cpu",), ("sparse_cpu",), ("sparse_cpu", "dense_gpu")])
def test_only_the_chosen_paths_are_measured(paths):
    record = run_decode_bench(replace(ONCE, paths=paths))
    assert tuple(record["paths"]) == paths
    assert record["quality"] is None
    assert set(record["accuracy"].values()) == {None}
    assert record["verdict"]["winner"] is None and "No verdict" in record["verdict"]["sentence"]
    assert render_report(record)


def test_a_record_without_a_path_that_can_run_is_still_a_record(no_gpu, tmp_path):
    record = run_decode_bench(replace(ONCE, paths=("dense_gpu", "sparse_gpu")))
    write_record(record, tmp_path / "r.json")
    for path in record["paths"].values():
        assert path == {"available": False, "reason": "; ".join(no_gpu)}
    assert set(record["bandwidth"].values()) == {None}
    assert record["verdict"]["sentence"].startswith("No verdict")
    assert "no path ran" in render_report(record)


def test_a_cache_that_no_path_reads_is_not_filled(no_gpu, monkeypatch):
    def fail(*arguments):
        raise AssertionError("the cache was filled")

    monkeypatch.setattr("numbadsd.bench.decode.fill_cache", fail)
    record = run_decode_bench(replace(ONCE, paths=("dense_gpu",)))
    assert record["data"]["requests"] == 3 and record["data"]["pages"] > 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_half_the_bytes(record, dtype):
    half = run_decode_bench(replace(ONCE, kv_dtype=dtype))
    for name in CPU_PATHS:
        assert 2 * half["paths"][name]["bytes_read"] == record["paths"][name]["bytes_read"]
    assert 2 * half["data"]["kv_pool_bytes"] == record["data"]["kv_pool_bytes"]


def test_structured_data_has_a_needle_and_uniform_data_has_none(record):
    assert record["quality"]["needle_recall"] is None
    structured = run_decode_bench(replace(ONCE, data="structured", min_context_tokens=60))
    assert 0 <= structured["quality"]["needle_recall"] <= 1
    assert structured["config"]["data"] == "structured"
    assert structured["quality"]["attention_mass"] > record["quality"]["attention_mass"]


def test_a_capture_is_decoded_as_it_is():
    rng = np.random.default_rng(5)
    queries = rng.standard_normal((2, 6, 32), np.float32)
    keys, values = rng.standard_normal((2, 50, 3, 32), np.float32)
    capture = Capture(queries, keys, values, query_positions=np.array([20, 49]))
    config = replace(ONCE, batch_size=8, **capture_shape(capture))
    record = run_decode_bench(config, capture)
    assert record["data"]["requests"] == 2
    assert record["data"]["min_context_tokens"] == 21  # its own token and the 20 before
    assert record["data"]["max_context_tokens"] == 50
    assert record["config"]["model"]["num_kv_heads"] == 3
    largest = []
    for query, tokens in zip(queries, (21, 50), strict=True):
        tensors = query, keys[:tokens], values[:tokens]
        dense, _ = oracle.attention(*tensors, 32**-0.5)
        sparse, *_ = oracle.sparse_decode(
            *tensors, page_size=4, top_k_pages=3, summary="minmax", share="kv_head",
            sm_scale=32**-0.5, num_sink_pages=1,
        )  # fmt: skip
        largest.append(np.abs(sparse - dense).max())
    value = record["accuracy"]["avg_max_abs_diff_sparse_cpu_vs_dense_cpu"]
    assert value == pytest.approx(np.mean(largest), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "fused"), [("dense_cpu", 1), ("sparse_cpu", 1), ("sparse_cpu", 0)]
)
def test_every_step_of_a_path_adds_up(name, fused):
    data = fill_cache(CONFIG.model, make_workload(CONFIG))
    path = make_path(name, data.cache, fused=bool(fused))
    for _ in range(5):
        times = path.decode(data.queries, data.request_ids).stages
        stages = times.score_ms + times.topk_ms + times.gather_ms + times.attend_ms
        parts = stages + sum(times.overheads_ms.values())
        assert min(times.overheads_ms.values()) >= 0
        assert parts == pytest.approx(times.total_ms, rel=1e-9)
