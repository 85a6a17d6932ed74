"""The report: every section in the reference's order, every number where one looks for it."""

import json
import re

import pytest

from numbadsd.bench.report import render_report
from tests.bench.records import (
    GPU_REASON,
    contender_record,
    decode_record,
    missing_path,
    path_record,
)

REFERENCE_TITLES = [
    "Decode Benchmark",
    "Analytical Ceiling",
    "End-to-End",
    "Stage / Kernel Breakdown",
    "Runtime Overheads",
    "Accuracy",
    "Reading Guide",
]
OWN_TITLES = ["Bandwidth", "Quality", "Verdict"]


def sections_of(record):
    """Return the sections of a report by title, in order."""
    parts = re.split(r"^== (.+) ==$", render_report(record), flags=re.MULTILINE)
    assert parts[0] == ""
    return {title: text.strip("\n") for title, text in zip(parts[1::2], parts[2::2], strict=True)}


def row_of(section, name):
    """Return the cells of the first line that begins with a name: its row in the table."""
    row = next(line for line in section.splitlines() if line.split()[:1] == [name])
    return row.split()[1:]


def headers_of(section, first_row="dense_cpu"):
    """Return the column titles, two spaces apart: two lines above the first row."""
    lines = section.splitlines()
    (index,) = [i for i, line in enumerate(lines) if line.split()[:1] == [first_row]]
    return re.split(r"\s{2,}", lines[index - 2].strip())


def test_the_references_sections_come_in_its_order():
    titles = list(sections_of(decode_record()))
    assert [title for title in titles if title in REFERENCE_TITLES] == REFERENCE_TITLES


def test_bandwidth_quality_and_a_last_verdict_are_added():
    titles = list(sections_of(decode_record()))
    assert set(titles) == {*REFERENCE_TITLES, *OWN_TITLES}
    assert titles[-1] == "Verdict"


def test_the_configuration_is_named_in_full():
    section = sections_of(decode_record())["Decode Benchmark"]
    assert "8 query, 2 kv, head_dim 64" in section
    assert "1000 .. 3000, 6000 in all" in section
    assert "376 of 16 tokens, float16" in section
    assert "k 4, minmax, shared per kv_head, 1 sink + 2 recent forced, fused" in section
    assert "uniform, seed 7" in section
    assert "3 after 1 warm-up" in section
    assert "A Processor, 2 threads" in section


def test_a_capture_stands_where_the_kind_of_data_would():
    record = decode_record()
    record["config"] |= {"kv_file": "some/file.npz", "fused": False}
    section = sections_of(record)["Decode Benchmark"]
    assert "some/file.npz" in section and "uniform" not in section and "staged" in section


def test_the_ceiling_has_the_references_columns_and_ratios():
    section = sections_of(decode_record())["Analytical Ceiling"]
    columns = ["Bytes(MB)", "FLOPs(M)", "AI", "BwFloor(us)", "CmpFloor(us)"]
    assert headers_of(section, "dense") == [*columns, "GPUBwFloor(us)"]
    assert row_of(section, "dense") == ["8.000", "4.000", "0.500", "1000.500", "40.250", "-"]
    assert row_of(section, "sparse_target")[0] == "1.000"
    assert "sparse_current_over_dense_bytes 2.5000" in section
    assert "sparse_target_over_dense_bytes 0.1250" in section


def test_the_ceiling_has_a_floor_on_the_gpu_where_one_was_measured():
    record = decode_record("A GPU")
    record["analytical"]["dense"]["gpu_bandwidth_floor_us"] = 12.5
    assert row_of(sections_of(record)["Analytical Ceiling"], "dense")[-1] == "12.500"


def test_the_gpu_is_named_or_said_to_be_unused_or_simulated():
    for gpu, words in ((None, "none used"), ("A GPU", "A GPU"), ("simulator", "mean nothing")):
        section = sections_of(decode_record(gpu))["Decode Benchmark"]
        assert words in " ".join(row_of(section, "GPU"))


def test_end_to_end_gives_the_speedup_over_dense_cpu():
    section = sections_of(decode_record())["End-to-End"]
    columns = ["Total(ms)", "p95", "min", "Speedup", "vs own dense", "note"]
    assert headers_of(section) == columns
    assert row_of(section, "dense_cpu")[:5] == ["4.000", "5.000", "2.000", "1.000", "1.000"]
    assert row_of(section, "sparse_cpu")[:5] == ["1.000", "1.250", "0.500", "4.000", "4.000"]
    assert "compile or load 0.25 s" in section


def test_a_gpu_path_is_compared_with_dense_cpu_and_with_its_own_dense():
    paths = {"dense_cpu": path_record(8.0), "dense_gpu": path_record(2.0)}
    section = sections_of(decode_record(**paths, sparse_gpu=path_record(0.5)))["End-to-End"]
    assert row_of(section, "dense_cpu")[3:5] == ["1.000", "1.000"]
    assert row_of(section, "dense_gpu")[3:5] == ["4.000", "1.000"]
    assert row_of(section, "sparse_gpu")[3:5] == ["16.000", "4.000"]


def test_a_gpu_alone_is_compared_with_its_own_dense():
    paths = {"dense_gpu": path_record(2.0), "sparse_gpu": path_record(0.5)}
    section = sections_of(decode_record(**paths))["End-to-End"]
    assert row_of(section, "dense_gpu")[3:5] == ["-", "1.000"]
    assert row_of(section, "sparse_gpu")[3:5] == ["-", "4.000"]


@pytest.mark.parametrize("name", ["dense_gpu", "sparse_gpu"])
def test_a_path_that_cannot_run_has_a_row_that_says_so(name):
    section = sections_of(decode_record())["End-to-End"]
    assert " ".join(row_of(section, name)) == "- - - - - unavailable"


def test_reasons_stand_under_the_table_once_and_do_not_stretch_it():
    reason = "a long reason " * 20
    paths = {"dense_gpu": missing_path(reason), "sparse_gpu": missing_path(reason)}
    paths = {"dense_cpu": path_record(1.0)} | paths
    *table, last = sections_of(decode_record(**paths))["End-to-End"].splitlines()
    assert last.startswith(f"dense_gpu, sparse_gpu unavailable: {reason.strip()}")
    assert max(map(len, table)) < 100


def test_different_reasons_are_told_apart():
    paths = {"dense_gpu": missing_path(GPU_REASON), "sparse_gpu": missing_path("too many pages")}
    lines = sections_of(decode_record(**paths))["End-to-End"].splitlines()
    assert lines[-2:] == [
        f"dense_gpu unavailable: {GPU_REASON}",
        "sparse_gpu unavailable: too many pages",
    ]


def test_there_is_no_speedup_without_a_dense_path():
    record = decode_record(sparse_cpu=path_record(1.0))
    assert row_of(sections_of(record)["End-to-End"], "sparse_cpu")[3:5] == ["-", "-"]
    record = decode_record(dense_cpu=missing_path(), sparse_cpu=path_record(1.0))
    assert row_of(sections_of(record)["End-to-End"], "sparse_cpu")[3:5] == ["-", "-"]


def test_another_librarys_attention_has_rows_and_a_line_of_its_own():
    paths = {"dense_cpu": path_record(2.0), "torch_sdpa": contender_record(3.0)}
    sections = sections_of(decode_record(**paths))
    bandwidth = ["4.000", "0.500", "3.000", "4.000", "0.500"]
    assert row_of(sections["Bandwidth"], "torch_sdpa") == bandwidth
    row = ["3.000", "3.750", "1.500", "0.667", "0.667", "version", "2.13.0"]
    assert row_of(sections["End-to-End"], "torch_sdpa") == row
    line = "dense_cpu against torch_sdpa: 1.50x (one batch, folded; outputs differ by at most "
    assert sections["End-to-End"].splitlines()[-1] == f"{line}1.0e-06)"
    for title in ("Stage / Kernel Breakdown", "Runtime Overheads", "Accuracy"):
        assert "torch" not in sections[title]


def test_on_a_gpu_another_librarys_kernels_are_compared_too():
    paths = {"dense_gpu": path_record(2.0, kernel_ms=1.0)}
    paths["torch_sdpa_gpu"] = contender_record(3.0, kernel_ms=1.25)
    section = sections_of(decode_record("A GPU", **paths))["End-to-End"]
    assert row_of(section, "torch_sdpa_gpu")[3:5] == ["-", "0.667"]
    assert "dense_gpu against torch_sdpa_gpu: 1.50x, kernels alone 1.25x (" in section


def test_a_missing_library_is_a_row_and_a_reason():
    missing = missing_path("torch is not installed") | {"version": None}
    section = sections_of(decode_record(dense_cpu=path_record(1.0), torch_sdpa=missing))[
        "End-to-End"
    ]
    assert row_of(section, "torch_sdpa")[-1] == "unavailable"
    assert section.endswith("torch_sdpa unavailable: torch is not installed")


def test_stages_have_the_references_columns():
    record = decode_record(sparse_cpu=path_record(1.0, score=0.5, topk=0.125, gather=0.25))
    section = sections_of(record)["Stage / Kernel Breakdown"]
    columns = ["ms", "Score", "TopK", "Gather", "Attend", "GPUKernel"]
    assert headers_of(section, "sparse_cpu") == columns
    assert row_of(section, "sparse_cpu") == ["0.500", "0.125", "0.250", "0.125", "-"]


def test_the_kernels_of_a_gpu_have_their_own_time():
    record = decode_record(dense_gpu=path_record(1.0, kernel_ms=0.75))
    section = sections_of(record)["Stage / Kernel Breakdown"]
    assert row_of(section, "dense_gpu")[-1] == "0.750"


def test_overheads_have_the_references_columns_and_their_sum():
    overheads = {"malloc": 0.5, "sync": 0.25, "page_table": 0.125}
    record = decode_record(dense_cpu=path_record(2.0, overheads=overheads))
    section = sections_of(record)["Runtime Overheads"]
    headers = headers_of(section)
    reference = ["Malloc", "H2D", "D2H", "Free", "Launch", "Sync", "SparseLayout", "TotalOH"]
    assert [header for header in headers if header in reference] == reference
    cells = dict(zip(headers[1:], row_of(section, "dense_cpu"), strict=True))
    assert cells["Malloc"] == "0.500" and cells["Sync"] == "0.250" and cells["TotalOH"] == "0.875"
    assert cells["Stages + OH of Total"] == "100%"


def test_what_stages_and_overheads_leave_out_of_the_total_is_seen():
    path = path_record(2.0, attend=1.0, overheads={"launch": 0.5})
    section = sections_of(decode_record(dense_cpu=path))["Runtime Overheads"]
    assert row_of(section, "dense_cpu")[-1] == "75%"


def test_bandwidth_stands_beside_every_path_that_ran():
    section = sections_of(decode_record())["Bandwidth"]
    assert "reads 8.0 GB/s (median of 3 sweeps" in section and "100 GFLOP/s" in section
    assert row_of(section, "dense_cpu") == ["4.000", "0.500", "4.000", "7.200", "0.900"]
    assert "dense_gpu" not in section and "GPU copies" not in section


def test_the_copies_of_a_gpu_stand_beside_the_reads_of_the_cpu():
    record = decode_record("A GPU", dense_gpu=path_record(1.0))
    record["bandwidth"]["copy_gbps"] = {"median": 4000.0, "samples": [4000.0, 4000.0]}
    assert len(re.findall("^measured here: ", render_report(record), re.MULTILINE)) == 2
    record["bandwidth"] |= {"read_gbps": None, "fp32_gflops": None}
    section = sections_of(record)["Bandwidth"]
    assert "GPU copies 4000.0 GB/s, read and written (median of 2, between samples)" in section
    assert "reads" not in section and "GFLOP/s" not in section


def test_accuracy_has_the_references_four_names():
    section = sections_of(decode_record())["Accuracy"]
    assert [line.split()[0] for line in section.splitlines()] == [
        "avg_max_abs_diff_sparse_cpu_vs_dense_cpu",
        "avg_max_abs_diff_sparse_gpu_vs_sparse_cpu",
        "avg_max_abs_diff_sparse_gpu_vs_dense_cpu",
        "avg_max_abs_diff_dense_gpu_vs_dense_cpu",
    ]
    assert row_of(section, "avg_max_abs_diff_sparse_cpu_vs_dense_cpu") == ["1.230e-02"]
    assert row_of(section, "avg_max_abs_diff_dense_gpu_vs_dense_cpu") == ["not", "measured"]


def test_quality_has_every_number_and_what_it_means():
    record = decode_record()
    section = sections_of(record)["Quality"]
    assert row_of(section, "page_recall")[0] == "0.7500"
    assert row_of(section, "density") == "0.0312 tokens read / context tokens".split()
    assert "needle_recall" not in section
    record["quality"]["needle_recall"] = 0.5
    assert row_of(sections_of(record)["Quality"], "needle_recall")[0] == "0.5000"


def test_quality_that_was_not_measured_says_what_it_takes():
    record = decode_record()
    record["quality"] = None
    assert sections_of(record)["Quality"] == (
        "not measured: it takes a dense and a sparse path, and K and V in host memory"
    )


def test_a_number_that_is_not_defined_is_not_printed_as_nan():
    record = decode_record()
    record["quality"]["page_recall"] = float("nan")  # as measured with k = 0
    assert "nan" not in sections_of(record)["Quality"]


def test_a_report_needs_no_path_that_ran():
    record = decode_record(dense_gpu=missing_path(), sparse_gpu=missing_path())
    sections = sections_of(record)
    assert list(sections) == list(sections_of(decode_record()))
    assert "unavailable" in sections["End-to-End"]


def test_the_verdict_is_the_records_sentence():
    assert sections_of(decode_record())["Verdict"] == "A verdict."


def test_a_record_that_was_read_back_gives_the_same_report():
    record = decode_record()
    assert render_report(json.loads(json.dumps(record))) == render_report(record)
