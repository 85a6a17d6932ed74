"""The tables: the reference system's columns by name and order, then ours; no number is lost."""

import csv
import io
import json
from pathlib import Path

import pytest

from numbadsd.bench.sweep.columns import columns_of
from numbadsd.bench.sweep.experiments import EXPERIMENTS
from numbadsd.bench.sweep.run import Sweep
from numbadsd.bench.sweep.table import PLACES, render_csv
from tests.bench.records import missing_path, path_record
from tests.bench.sweep.builders import CODE, make_point, outcome

RECORDS = Path(__file__).parents[3] / "bench_results"

DECODE = """experiment,variant,top_k_pages,batch_size,min_ctx,max_ctx,seed,iterations,warmup,
num_heads,head_dim,page_size,total_pages,total_context_tokens,total_candidate_pages,
total_selected_tokens,sparse_current_over_dense_bytes,sparse_target_over_dense_bytes,
dense_cpu_total_ms,sparse_cpu_total_ms,dense_gpu_total_ms,sparse_gpu_total_ms,dense_gpu_kernel_ms,
sparse_gpu_kernel_ms,sparse_gpu_score_ms,sparse_gpu_topk_ms,sparse_gpu_attention_ms,
sparse_gpu_total_overhead_ms,sparse_gpu_sparse_layout_ms,avg_max_abs_diff_sparse_gpu_vs_dense_cpu,
raw_log"""
CONFIG = DECODE.split(",total_pages")[0].replace("\n", "")
LOAD = """num_requests,max_active_requests,arrival_window,min_prompt_tokens,
max_prompt_tokens,min_decode_steps,max_decode_steps,seed,num_heads,head_dim,page_size,top_k_pages,
admission_mode,preadmit_prompts,precompute_decode_payloads,gpu_synthetic_decode_append,lazy_release,
run_batch_output_mode,run_batch_timing_mode,total_generated_tokens"""
RUN = """serial_tokens_per_second,continuous_vs_serial_speedup,
avg_active_batch_size,avg_step_ms,p95_step_ms,total_ms,measured_end_to_end_ms,
decode_payload_prep_ms,prompt_preadmit_ms,runtime_admission_ms,run_batch_wall_ms,append_sync_ms,
release_sync_ms,serving_loop_other_ms,outside_run_batch_ms,admission_ms,avg_score_ms,avg_topk_ms,
avg_gather_ms,avg_attention_ms,avg_kernel_ms,avg_h2d_ms,avg_d2h_ms,avg_launch_ms,avg_sync_ms,
avg_prepare_sparse_layout_ms"""
DEVICE = """total_runtime_overhead_ms,device_h2d_bytes,device_d2h_bytes,device_h2d_calls,
device_d2h_calls,device_h2d_large_calls,device_d2h_large_calls,admission_device_h2d_bytes,
admission_device_h2d_calls,admission_device_h2d_large_calls"""
PUBLISHED = {
    "00": f"{CONFIG},path,total_ms,speedup_vs_dense_cpu,raw_log",
    **dict.fromkeys(("01", "02", "03", "04"), DECODE),
    "05": f"experiment,variant,{LOAD},continuous_tokens_per_second,{RUN},raw_log",
    "06": f"experiment,condition,variant,benchmark_mode,{LOAD},tokens_per_second,{RUN},{DEVICE},"
          "raw_log",
    "07": f"{CONFIG},path,score_ms,topk_ms,gather_ms,attention_ms,gpu_kernel_ms,"
          "gpu_kernel_other_ms,total_ms,raw_log",
}  # fmt: skip


def line_of(point, found):
    """Return the line of a point."""
    return json.loads(json.dumps(Sweep({}, Path(), "cpu", False, CODE).line(point, found)))


def rows_of(*lines):
    """Return the rows of a table, by column."""
    return list(csv.DictReader(io.StringIO(render_csv(lines), newline="")))


def experiment_line(code, record, variant=0):
    """Return the line of a point of an experiment, with a record."""
    (experiment,) = (e for e in EXPERIMENTS.values() if e.code == code)
    return line_of(experiment.points("cpu", False)[variant], outcome(record=record))


@pytest.mark.parametrize("code", PUBLISHED)
def test_the_first_columns_are_the_published_ones(code):
    (experiment,) = (e for e in EXPERIMENTS.values() if e.code == code)
    names = [name for name, _ in columns_of(experiment.name, experiment.command)]
    published = PUBLISHED[code].replace("\n", "").split(",")
    assert names[: len(published)] == published
    assert {"series", "id", "status", "reason", "wall_s"} <= set(names[len(published) :])
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("command", ["dsd_bench", "dsd_continuous_bench"])
def test_every_column_of_every_table_knows_where_its_value_stands(command):
    for name in [*EXPERIMENTS, "grid"]:
        assert {place for _, (place, *_) in columns_of(name, command)} <= set(PLACES)


def test_a_decode_point_is_one_row_of_its_record_s_numbers():
    record = outcome().record
    record["data"] |= {"candidate_pages": 376, "selected_tokens": 192}
    (row,) = rows_of(line_of(make_point(4096), outcome(record=record)))
    want = {
        "experiment": "grid", "variant": "batch 2, context 4096", "top_k_pages": 8,
        "batch_size": 2, "min_ctx": 4096, "max_ctx": 4096, "seed": 7, "total_pages": 376,
        "total_context_tokens": 6000, "total_candidate_pages": 376, "total_selected_tokens": 192,
        "sparse_current_over_dense_bytes": 2.5, "dense_cpu_total_ms": 4.0, "num_kv_heads": 8,
        "sparse_cpu_total_ms": 1.0, "dense_gpu_total_ms": "", "sparse_gpu_kernel_ms": "",
        "raw_log": "stdout/batch_2_context_4096.txt", "status": "ok", "reason": "", "wall_s": 1.5,
        "dense_cpu_p95_ms": 5.0, "dense_cpu_floor_ms": 0.5, "dense_cpu_bandwidth_fraction": 0.9,
        "sparse_cpu_score_ms": 0.25, "avg_max_abs_diff_sparse_cpu_vs_dense_cpu": 0.0123,
        "page_recall": 0.75, "needle_recall": "", "num_threads": 2, "code_version": CODE,
        "dense_cpu_p5_ms": 2.2,
    }  # fmt: skip
    assert {name: row[name] for name in want} == {name: str(value) for name, value in want.items()}


def test_the_gpu_s_numbers_have_their_columns():
    overheads = {"launch": 0.25, "sparse_layout": 0.5}
    gpu = path_record(2.0, kernel_ms=1.0, score=0.125, topk=0.25, attend=0.5, overheads=overheads)
    record = outcome().record
    record["paths"] = {"dense_gpu": path_record(8.0, kernel_ms=7.0), "sparse_gpu": gpu}
    record["accuracy"]["avg_max_abs_diff_sparse_gpu_vs_dense_cpu"] = 0.5
    (row,) = rows_of(line_of(make_point(), outcome(record=record)))
    want = {
        "dense_gpu_total_ms": "8.0", "dense_gpu_kernel_ms": "7.0", "sparse_gpu_kernel_ms": "1.0",
        "sparse_gpu_score_ms": "0.125", "sparse_gpu_topk_ms": "0.25", "dense_cpu_total_ms": "",
        "sparse_gpu_attention_ms": "0.5", "sparse_gpu_total_overhead_ms": "0.75",
        "sparse_gpu_sparse_layout_ms": "0.5", "avg_max_abs_diff_sparse_gpu_vs_dense_cpu": "0.5",
    }  # fmt: skip
    assert {name: row[name] for name in want} == want
    (row,) = (r for r in rows_of(experiment_line("07", record)) if r["path"] == "sparse_gpu")
    assert (row["gpu_kernel_ms"], row["gpu_kernel_other_ms"]) == ("1.0", "0.125")


def test_total_time_and_stages_have_a_row_for_each_path():
    record = outcome().record
    record["paths"] = {
        "dense_cpu": path_record(4.0), "sparse_cpu": path_record(1.0, score=0.25, attend=0.5),
        "dense_gpu": missing_path("no GPU"),
        "torch_sdpa": {"available": True, "total_ms": path_record(2.0)["total_ms"]},
    }  # fmt: skip
    rows = rows_of(experiment_line("00", record))
    assert [row["path"] for row in rows] == ["dense_cpu", "sparse_cpu", "dense_gpu", "torch_sdpa"]
    assert [row["speedup_vs_dense_cpu"] for row in rows] == ["1.0", "4.0", "", "2.0"]
    assert [row["unavailable"] for row in rows] == ["", "", "no GPU", ""]
    rows = rows_of(experiment_line("07", record))
    assert [row["score_ms"] for row in rows] == ["0.0", "0.25", "", ""]
    assert [row["total_ms"] for row in rows] == ["4.0", "1.0", "", "2.0"]


@pytest.mark.parametrize("code", PUBLISHED)
def test_a_point_that_failed_is_a_row_with_what_is_known(code):
    (experiment,) = (e for e in EXPERIMENTS.values() if e.code == code)
    point = experiment.points("cpu", False)[0]
    (row,) = rows_of(line_of(point, outcome("timed_out", reason="took too long")))
    assert (row["status"], row["reason"]) == ("timed_out", "took too long")
    assert row["num_heads"] == "8" and row["raw_log"] == f"stdout/{point.slug}.txt"
    assert row.get("total_ms", "") == "" and row["num_threads"] == ""


def continuous_record(part=0):
    """Return a record of `dsd_continuous_bench` that was measured on a CPU."""
    (file,) = (RECORDS / "continuous" / "xeon_2core").glob("*fd65579.jsonl")
    return json.loads(file.read_text().splitlines()[part])


def test_a_continuous_point_is_one_row_of_its_record_s_numbers():
    record = continuous_record()
    results = record["results"]
    (row,) = rows_of(experiment_line("05", record))
    want = {
        "continuous_tokens_per_second": results["continuous_sparse_tokens_per_second"],
        "serial_tokens_per_second": results["serial_sparse_tokens_per_second"],
        "continuous_vs_serial_speedup": results["continuous_vs_serial_speedup"],
        "avg_step_ms": results["continuous_sparse_avg_step_ms"],
        "avg_attention_ms": results["continuous_sparse_avg_attention_ms"],
        "total_generated_tokens": 5246, "num_requests": 128, "min_prompt_tokens": 1024,
        "max_prompt_tokens": 1024, "run_batch_output_mode": "outputs_only",
        "admission_mode": "direct_gpu_upload", "backend": "cpu",
        "p95_ttft_ms": results["serving"]["p95_ttft_ms"],
        "host_fraction": results["continuous_sparse_host_fraction"],
    }  # fmt: skip
    assert {name: row[name] for name in want} == {name: str(value) for name, value in want.items()}
    assert "" not in [row[name] for name in PUBLISHED["05"].replace("\n", "").split(",")]


def test_a_row_of_the_ablation_names_condition_variant_and_overheads():
    record = continuous_record()
    (row,) = rows_of(experiment_line("06", record, variant=5))
    assert (row["condition"], row["variant"]) == ("steady", "dense_gpu_optimized")
    assert row["benchmark_mode"] == "dense_gpu"
    results = record["results"]
    names = ("h2d", "d2h", "launch", "sync", "prepare_sparse_layout")
    total = sum(results[f"continuous_sparse_avg_{name}_ms"] for name in names)
    assert float(row["total_runtime_overhead_ms"]) == total > 0
    assert row["device_h2d_bytes"] == "0"


def test_a_dense_run_fills_the_same_columns():
    results = {"continuous_dense_cpu_available": 1, "continuous_dense_cpu_tokens_per_second": 5.0,
               "serial_dense_cpu_tokens_per_second": 4.0}  # fmt: skip
    (row,) = rows_of(experiment_line("05", {"results": results}))
    assert row["continuous_tokens_per_second"] == "5.0"
    assert row["serial_tokens_per_second"] == "4.0"


def test_words_with_commas_and_quotes_survive():
    reason = 'it said "no", twice\nand left'
    (row,) = rows_of(line_of(make_point(), outcome("failed", reason=reason)))
    assert row["reason"] == reason


def test_no_lines_are_no_table():
    assert render_csv([]) == ""
