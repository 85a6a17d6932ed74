"""`dsd_compare`: changes that are there are found, and those that are not are not."""

import json
from dataclasses import replace
from math import log
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numbadsd.bench.decode import run_decode_bench
from numbadsd.bench.regress import (
    FEWEST_SAMPLES,
    NOISE,
    SINGLE_NOISE,
    change_interval,
    compare,
    judge,
)
from numbadsd.bench.regress_records import as_run, read_records
from numbadsd.bench.regress_report import comparison_record, render_comparison
from numbadsd.config import DecodeBenchConfig
from tests.bench.contenders import FakeContender
from tests.bench.records import contender_record, decode_record, missing_path, path_record
from tests.bench.regress import continuous, point_line, sampled, topk, write_lines

RESULTS = Path(__file__).parents[2] / "bench_results"
KINDS = ("decode", "topk", "continuous")
OPPOSITE = {"faster": "slower", "slower": "faster", "same": "same", "noise": "noise"}
MANY = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12)


def noisy(median=1.0, sigma=0.03, n=15, seed=0):
    """Return samples about a median."""
    return list(median * np.exp(sigma * np.random.default_rng(seed).standard_normal(n)))


def only_row(base, new, noise=None):
    """Return the one row of records with these samples of dense_cpu."""
    (row,) = compare([sampled(base)], [sampled(new)], noise).rows
    return row


def recorded(kind):
    """Return the records of this machine that lie in bench_results."""
    return read_records(sorted((RESULTS / kind / "xeon_2core").glob("*.jsonl"))[-1])


# ---- the verdict


def test_twice_the_time_is_slower_and_half_of_it_faster():
    row = only_row(noisy(seed=1), noisy(2.0, seed=2))
    assert row.verdict == "slower" and row.ratio == pytest.approx(2, rel=0.05)
    assert row.interval[0] < row.ratio < row.interval[1] and row.interval[0] > 1.8
    row = only_row(noisy(2.0, seed=1), noisy(seed=2))
    assert row.verdict == "faster" and row.ratio == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("ratio", [0.97, 1.0, 1.03])
def test_three_per_cent_is_no_change(ratio):
    assert only_row(noisy(sigma=0.01, seed=1), noisy(ratio, 0.01, seed=2)).verdict == "same"


def test_a_narrower_band_finds_three_per_cent_and_a_wider_one_loses_a_third():
    base, new = noisy(sigma=0.005, seed=1), noisy(1.03, 0.005, seed=2)
    assert only_row(base, new, noise=0.01).verdict == "slower"
    assert only_row(base, new, noise=0).verdict == "slower"
    assert only_row(base, noisy(1.3, 0.005), noise=0.5).verdict == "same"


def test_medians_apart_that_samples_do_not_bear_out_are_noise():
    row = only_row([1, 1, 1, 9, 9, 9, 9], [1, 1, 1, 1, 9, 9, 9])
    assert row.ratio == pytest.approx(1 / 9) and row.interval[1] > 1
    assert row.verdict == "noise"


def test_equal_distributions_are_the_same_in_nearly_every_case():
    verdicts = [only_row(noisy(seed=n), noisy(seed=n + 1000)).verdict for n in range(1000)]
    assert verdicts.count("same") >= 950
    assert not {"faster", "slower"} & set(verdicts)


@pytest.mark.parametrize("n", [FEWEST_SAMPLES, 15])
def test_equal_distributions_are_rarely_a_change_however_noisy(n):
    wrong = 0
    for seed in range(300):
        base, new = np.exp(0.3 * np.random.default_rng(seed).standard_normal((2, n)))
        change = log(np.median(new)) - log(np.median(base))
        wrong += judge(change, change_interval(base, new), NOISE) in ("faster", "slower")
    assert wrong <= 15


@pytest.mark.parametrize("n", [5, 6, 15, 16])
def test_resampling_through_order_statistics_is_resampling(n):
    base, new = np.array(noisy(n=n, sigma=0.2, seed=3)), np.array(noisy(n=n, sigma=0.2, seed=4))
    rng = np.random.default_rng(5)
    plain = [np.median(rng.choice(x, (20000, n)), axis=1) for x in (base, new)]
    low, high = np.quantile(np.log(plain[1] / plain[0]), (0.025, 0.975))
    width = high - low
    assert change_interval(base, new) == pytest.approx((low, high), abs=0.15 * width)


@pytest.mark.parametrize(
    ("new", "verdict"), [(1.09, "same"), (1.11, "slower"), (1 / 1.09, "same"), (0.89, "faster")]
)
def test_single_figures_have_the_wider_band_and_no_interval(new, verdict):
    row = only_row([1.0], [new])
    assert row.interval is None and row.noise == SINGLE_NOISE
    assert row.verdict == verdict
    assert only_row([1.0], [new], noise=0.5).verdict == "same"


@pytest.mark.parametrize("sizes", [(4, 15), (15, 4), (1, 15), (3, 3)])
def test_too_few_samples_on_a_side_are_single_figures(sizes):
    row = only_row(noisy(n=sizes[0]), noisy(1.5, n=sizes[1]))
    assert row.interval is None and row.noise == SINGLE_NOISE and row.verdict == "slower"
    assert (row.base.num_samples, row.new.num_samples) == sizes


def test_more_throughput_is_faster():
    base, new = [continuous(tokens_per_second=1000.0)], [continuous(tokens_per_second=2000.0)]
    verdicts = {row.metric.name: row.verdict for row in compare(base, new).rows}
    assert verdicts["continuous_sparse"] == "faster"
    assert verdicts["continuous_sparse total"] == "faster"
    assert compare(new, base).rows[0].verdict == "slower"


@settings(max_examples=30)
@given(samples=MANY, noise=st.sampled_from([None, 0.0, 0.2]))
def test_records_beside_themselves_have_not_changed(samples, noise):
    row = only_row(samples, samples, noise)
    assert row.ratio == 1 and row.verdict == "same"


@settings(max_examples=60)
@given(base=MANY, new=MANY, noise=st.sampled_from([None, 0.0, 0.2]))
def test_swapping_the_sides_swaps_faster_and_slower(base, new, noise):
    row, swapped = only_row(base, new, noise), only_row(new, base, noise)
    assert swapped.verdict == OPPOSITE[row.verdict]
    assert swapped.base == row.new and swapped.new == row.base
    assert swapped.ratio == pytest.approx(1 / row.ratio)


@pytest.mark.parametrize("kind", KINDS)
def test_real_records_beside_themselves_have_not_changed(kind):
    records = recorded(kind)
    comparison = compare(records, records)
    assert comparison.rows and {row.verdict for row in comparison.rows} == {"same"}
    assert not comparison.only_in_base and not comparison.only_in_new
    assert not comparison.environment


# ---- what is compared with what


def test_every_path_that_ran_has_a_row_and_another_library_has_none():
    paths = {"dense_cpu": path_record(2.0), "sparse_gpu": path_record(1.0)}
    paths |= {"dense_gpu": missing_path(), "torch_sdpa": contender_record(3.0)}
    rows = compare([decode_record(**paths)], [decode_record(**paths)]).rows
    assert [row.metric.name for row in rows] == ["dense_cpu", "sparse_gpu"]


def test_every_case_of_top_k_has_a_row_in_ms():
    record = recorded("topk")[0]
    rows = compare([record], [record]).rows
    names = [f"cpu {lengths} {values}" for lengths, values in record["config"]["cases"]]
    assert [row.metric.name for row in rows] == names
    assert {row.metric.unit for row in rows} == {"ms"}
    assert [row.base.median for row in rows] == [case["ms"]["median"] for case in record["cases"]]


def test_a_continuous_run_has_throughput_times_and_what_users_waited_for():
    record = recorded("continuous")[0]
    results = record["results"]
    rows = {row.metric.name: row for row in compare([record], [record]).rows}
    for label in ("continuous_sparse", "serial_sparse"):
        assert rows[label].base.median == results[f"{label}_tokens_per_second"]
        assert rows[label].metric.higher_is_better
        assert rows[f"{label} total"].base.median == results[f"{label}_total_ms"]
        assert rows[f"{label} step p95"].base.median == results[f"{label}_p95_step_ms"]
    assert rows["ttft median"].base.median == results["serving"]["median_ttft_ms"]
    assert rows["tpot median"].base.median == results["serving"]["median_tpot_ms"]


def test_throughput_with_what_comes_before_has_a_row_where_it_differs():
    names = lambda record: [row.metric.name for row in compare([record], [record]).rows]  # noqa: E731
    assert "continuous_sparse with admission" not in names(continuous())
    record = continuous()
    record["results"]["continuous_sparse_tokens_per_second_including_admission"] = 10.0
    assert "continuous_sparse with admission" in names(record)


def test_runs_of_one_setting_are_pooled():
    runs = [sampled(noisy(seed=n)) for n in range(3)]
    (row,) = compare(runs, [sampled(noisy(2.0))]).rows
    values = [v for run in runs for v in run["paths"]["dense_cpu"]["total_ms"]["samples"]]
    assert (row.base.num_runs, row.base.num_samples, row.new.num_runs) == (3, 45, 1)
    p5, median, p95 = np.percentile(values, (5, 50, 95))
    assert row.base.median == median and (row.base.p5, row.base.p95) == (p5, p95)
    rows = compare([continuous(x) for x in (90.0, 100.0, 170.0)], [continuous(100.0)]).rows
    assert rows[0].ratio == 1 and rows[0].base.num_samples == 3


def test_settings_are_matched_by_all_of_the_configuration():
    base = [sampled([1.0]), sampled([2.0], seed=8)]
    comparison = compare(base, [sampled([2.0], seed=8), sampled([3.0], batch_size=4)])
    assert [row.base.median for row in comparison.rows] == [2.0]
    assert len(comparison.only_in_base) == len(comparison.only_in_new) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", 8), ("iterations", 4), ("threads", 1), ("fused", False), ("kv_file", "a.npz")],
)
def test_any_field_of_the_configuration_makes_another_setting(name, value):
    with pytest.raises(ValueError, match=rf"nothing in common: .* differ in {name} \("):
        compare([sampled([1.0])], [sampled([1.0], **{name: value})])


def test_settings_that_differ_in_much_are_told_in_one_line():
    other = sampled([1.0], seed=8, iterations=9, threads=4, layer=3, kv_file="a", batch_size=9)
    with pytest.raises(ValueError, match=r"batch_size \(.*seed.* and 1 more$"):
        compare([sampled([1.0])], [other])


def test_what_says_who_is_measured_is_no_part_of_the_setting():
    other = sampled([1.0], paths=["dense_cpu"], versus="torch", model=None)
    other |= {"command": "dsd_bench --json elsewhere.json", "environment": {"cpu": "Another"}}
    assert compare([sampled([1.0])], [other]).rows[0].verdict == "same"


def test_a_field_that_an_older_version_did_not_know_has_its_default():
    old = sampled([1.0])
    old["config"].pop("kv_dtype", None)
    assert len(compare([old], [sampled([1.0], kv_dtype="float32", layer=None)]).rows) == 1
    with pytest.raises(ValueError, match="kv_dtype"):
        compare([old], [sampled([1.0], kv_dtype="float16")])


@pytest.mark.parametrize("part", ["workload", "backend"])
def test_a_trace_and_a_backend_are_part_of_the_setting(part):
    other = continuous()
    other["results"] = other["results"] | {"backend": "gpu" if part == "backend" else "cpu"}
    other["workload"] = {"name": "trace" if part == "workload" else "reference"}
    with pytest.raises(ValueError, match=part):
        compare([continuous()], [other])


def test_a_figure_that_is_missing_on_a_side_is_counted():
    base = decode_record(dense_cpu=path_record(1.0), sparse_cpu=path_record(1.0))
    comparison = compare([base], [decode_record(dense_cpu=path_record(1.0))])
    assert comparison.only_in_base == ("dsd_bench: sparse_cpu",) and not comparison.only_in_new
    failed = continuous()
    failed["results"]["error"] = "request 3 was lost"
    with pytest.raises(ValueError, match="nothing in common: no figure"):
        compare([continuous()], [failed])


def test_figures_that_were_not_measured_are_left_out():
    record = continuous()
    record["results"] |= {"continuous_sparse_p95_step_ms": None}
    record["results"]["serving"] = {"median_ttft_ms": None}
    names = {row.metric.name for row in compare([record], [record]).rows}
    assert names == {"continuous_sparse", "continuous_sparse total"}


def test_the_environment_and_the_memory_of_both_sides_are_held_against_each_other():
    base, new = sampled([1.0]), sampled([1.0])
    base["environment"] = {"cpu": "A", "num_threads": 2, "commit": "abc", "dirty": False, "os": "x"}
    new["environment"] = {"cpu": "A", "num_threads": 4, "commit": "def", "dirty": True, "os": "y"}
    new["bandwidth"] = {"read_gbps": {"median": 4.0}, "copy_gbps": None, "fp32_gflops": 1.0}
    comparison = compare([base, base], [new])
    seen = {d.name: (d.base, d.new) for d in comparison.environment}
    assert seen == {"num_threads": (("2",), ("4",)), "dirty": (("False",), ("True",))}
    assert comparison.commits == (("abc",), ("def with uncommitted changes",))
    assert comparison.num_runs == (2, 1)
    assert comparison.rates == {"read_gbps": (0.5,), "fp32_gflops": (0.01,)}


def test_records_as_the_benchmark_returns_them_are_compared():
    config = DecodeBenchConfig(
        top_k_pages=2, batch_size=2, min_context_tokens=9, max_context_tokens=20, iterations=2,
        warmup=0, num_heads=2, page_size=4, paths=("dense_cpu",),
    )  # fmt: skip
    base = run_decode_bench(config)
    new = run_decode_bench(replace(config, versus="torch"), find_contender=FakeContender)
    new["config"] |= {"kv_file": None, "layer": None}
    (row,) = compare([base], [json.loads(json.dumps(new))], 0.9).rows
    assert row.metric.name == "dense_cpu" and row.base.num_samples == 2


# ---- what is refused


@pytest.mark.parametrize("noise", [-0.1, 1.0, 5, float("nan"), float("inf")])
def test_noise_is_a_fraction(noise):
    with pytest.raises(ValueError, match="noise"):
        compare([sampled([1.0])], [sampled([1.0])], noise)


def test_no_records_and_other_records_are_refused():
    with pytest.raises(ValueError, match="NEW has no records"):
        compare([sampled([1.0])], [])
    with pytest.raises(ValueError, match="BASE is of dsd_bench, NEW of dsd_topk_bench"):
        compare([sampled([1.0])], [topk()])
    for record in ({}, {"command": "dsd_kernels --all"}, {"bench": "versus_torch"}):
        with pytest.raises(ValueError, match="record 2 of NEW is none of dsd_bench, "):
            compare([sampled([1.0])], [sampled([1.0]), record])


@pytest.mark.parametrize(
    "change",
    [
        {"config": None},
        {"config": "x"},
        {"paths": None},
        {"paths": {"dense_cpu": {}}},
        {"paths": {"dense_cpu": {"available": True}}},
        {"paths": {"dense_cpu": {"available": True, "total_ms": {"samples": ["1"]}}}},
        {"paths": {"dense_cpu": {"available": True, "total_ms": {"median": True}}}},
        {"paths": {"dense_cpu": {"available": True, "total_ms": {"samples": [float("nan")]}}}},
        {"environment": 3},
        {"bandwidth": {"read_gbps": {"median": "x"}}},
    ],
    ids=str,
)
def test_a_damaged_record_is_refused_with_its_place(change):
    with pytest.raises(ValueError, match=r"^record 1 of BASE is no record of dsd_bench: "):
        compare([sampled([1.0]) | change], [sampled([1.0])])


# ---- reading


def test_a_file_is_read_as_it_is(tmp_path):
    records = [sampled([1.0]), topk()]
    assert read_records(write_lines(tmp_path / "r.jsonl", records)) == records


@pytest.mark.parametrize("where", ["points.jsonl", "renamed.jsonl", "the experiment", "the sweep"])
def test_points_of_a_sweep_are_read_from_a_file_or_a_folder(tmp_path, where):
    folder = tmp_path / "01_decode"
    folder.mkdir()
    name = "renamed.jsonl" if where == "renamed.jsonl" else "points.jsonl"
    lines = [point_line("a", [1.0]), point_line("b", [2.0], seed=8), point_line("c", None)]
    file = write_lines(folder / name, lines)
    path = {"the experiment": folder, "the sweep": tmp_path}.get(where, file)
    records = read_records(path)
    assert [as_run(record, "").label for record in records] == ["01_decode: a", "01_decode: b"]
    assert len(compare(records, records).rows) == 2


@pytest.mark.parametrize("where", ["file", "experiment", "sweep"])
def test_points_of_different_code_are_refused(tmp_path, where):
    for name, version in (("01_a", "aaaa"), ("02_b", "bbbb")):
        (tmp_path / name).mkdir()
        lines = [point_line("a", [1.0]), point_line("b", [1.0], code_version=version)]
        write_lines(tmp_path / name / "points.jsonl", lines[where == "sweep" :])
    file = tmp_path / "02_b" / "points.jsonl"
    path = {"file": file, "experiment": file.parent, "sweep": tmp_path}[where]
    with pytest.raises(ValueError, match="mixes points of code versions .*bbbb"):
        read_records(path)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "empty"),
        ([point_line("a", None)], "none of its 1 points was measured"),
        ([{"point": {}}], ":1: no point of a sweep: 'experiment' is missing"),
        ([point_line("a", [1.0]), {"command": "dsd_bench"}], ":2: no point of a sweep"),
    ],
    ids=["empty", "failed", "no point", "mixed"],
)
def test_a_file_without_what_is_wanted_is_refused(tmp_path, lines, words):
    with pytest.raises(ValueError, match=words):
        read_records(write_lines(tmp_path / "r.jsonl", lines))


# ---- the report


def test_the_report_groups_rows_and_says_what_came_out():
    base = [sampled(noisy()), sampled([1.0], seed=8), sampled([1.0], seed=9), continuous()]
    new = [sampled(noisy(2.0)), sampled([1.0], seed=8), continuous(), sampled([1.0], seed=10)]
    base[1]["command"] = "dsd_bench 8 --seed 8 --json /some/where.json --staged"
    comparison = compare(base, new)
    text = render_comparison(comparison, "old.jsonl", "new.jsonl")
    lines = text.splitlines()
    assert lines[0] == "BASE  old.jsonl: 4 runs" and lines[1] == "NEW   new.jsonl: 4 runs"
    assert "dsd_bench 8 --seed 8 --staged" in lines
    row = lines[lines.index("dsd_bench") + 1].split()
    assert row[:2] == ["dense_cpu", "ms"] and row[4] == "+100.0%" and row[-1] == "slower"
    assert "one run" in lines[lines.index("dsd_bench 8 --seed 8 --staged") + 1]
    assert "1 slower, 6 same." in lines
    assert "Only in BASE: 1 (--all lists them)" in lines
    listed = render_comparison(comparison, show_all=True)
    assert "Only in NEW: 1:\n  dsd_bench" in listed
    assert "-4.8% .. +5.0%" in text and "-9.1% .. +10.0%" in text


def test_the_report_says_what_else_has_changed():
    base, new = sampled([1.0]), sampled([1.0])
    new["environment"] = base["environment"] | {"num_threads": 4, "commit": "0123456789"}
    text = render_comparison(compare([base], [new]))
    assert "Environment: num_threads 2 -> 4" in text and "commit 0123456" in text
    assert "reads of memory at 1.00x of BASE (1.00 .. 1.00)" in text
    assert "the same processors" in render_comparison(compare([base], [base]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_comparison_of_real_records_is_a_table_and_a_record(kind):
    records = recorded(kind)
    comparison = compare(records, records)
    record = comparison_record(comparison, "a", "b", "dsd_compare a b")
    assert json.loads(json.dumps(record, allow_nan=False))["verdicts"]["slower"] == 0
    assert len(record["rows"]) == len(comparison.rows) == record["verdicts"]["same"]
    assert {"label", "metric", "base", "new", "ratio", "verdict"} <= set(record["rows"][0])
    assert render_comparison(comparison).count(" same") >= len(comparison.rows)
