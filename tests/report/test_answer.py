"""The numbers of the answer, and words for them."""

import pytest

from numbadsd.bench.sweep.records import read_sweep
from numbadsd.report import answer
from numbadsd.report.headline import fairness
from numbadsd.report.markup import join
from numbadsd.report.reading import PathFigures, device_name, find_number, path_figures
from tests.bench.records import missing_path, path_record
from tests.report.results import CONTEXTS, context_lines, load_lines, loop, write_sweep


def sweep_of(folder, lines):
    """Return a sweep as it is read back."""
    return read_sweep(write_sweep(folder, lines))


@pytest.mark.parametrize("crossing", [129, 300, 512, 2000])
def test_curves_cross_where_they_were_made_to(tmp_path, crossing):
    (row,) = answer.crossovers(sweep_of(tmp_path, context_lines((4,), crossing=crossing)))
    assert row.crossing.x == pytest.approx(crossing)
    assert row.between[0] < crossing <= row.between[1]
    assert row.speedup == pytest.approx(2048 / crossing) and row.batch == 4


def test_the_order_of_the_points_does_not_matter(tmp_path):
    lines = context_lines()
    forward = answer.crossovers(sweep_of(tmp_path / "a", lines))
    assert answer.crossovers(sweep_of(tmp_path / "b", lines[::-1])) == forward


def test_a_point_where_one_path_did_not_run_is_not_compared(tmp_path):
    lines = context_lines((1,))
    lines[0]["record"]["paths"]["sparse_cpu"] = missing_path()
    (row,) = answer.crossovers(sweep_of(tmp_path, lines))
    assert row.contexts == (512, 2048) and row.crossing.kind == "always_sparse"


def test_a_sweep_without_these_experiments_has_no_answer():
    for find in (answer.crossovers, answer.floors, answer.kept, answer.throughputs):
        assert find({}) == []


def test_a_run_that_was_not_possible_has_no_throughput(tmp_path):
    lines = load_lines()
    for one in lines:
        one["record"]["results"] = {"continuous_sparse_available": 0, "reason": "no GPU"}
    assert answer.throughputs(sweep_of(tmp_path, lines)) == []


def test_a_dense_run_is_told_apart():
    record = loop(1.0, label="continuous_dense_cpu")
    assert answer.run_path(record, "continuous_dense_cpu") == "dense CPU"
    assert answer.run_path(loop(1.0), "continuous_sparse") == "sparse CPU"


@pytest.mark.parametrize(
    ("fraction", "median_ms", "words"),
    [
        (0.7, 9.0, "fair"),
        (1.05, 9.0, "fair"),
        (1.2, 9.0, "caches help dense"),
        (0.69, 9.0, "flatters sparse"),
        (0.69, 0.5, "flattering sparse"),
        (None, 9.0, "no bandwidth"),
    ],
)
def test_a_dense_path_far_from_its_limit_is_no_fair_opponent(fraction, median_ms, words):
    assert words in fairness(PathFigures(median_ms, None, None, None, fraction))


def test_times_of_a_path_hold_its_low_percentile():
    record = {"paths": {"dense_cpu": path_record(2.0), "sparse_cpu": missing_path()}}
    figures = path_figures(record, "dense_cpu")
    assert (figures.median_ms, figures.p95_ms) == (2.0, 2.5)
    assert figures.p5_ms == pytest.approx(1.1)  # between samples of 1, 2 and 2.5
    assert path_figures(record, "sparse_cpu") is None and path_figures(None, "dense_cpu") is None


@pytest.mark.parametrize("value", [None, "1", True, [1], {}])
def test_what_is_no_number_is_missing(value):
    assert find_number({"a": {"b": value}}, "a", "b") is None
    assert find_number({"a": value}, "a", "b") is None


def test_a_device_is_called_by_its_plain_name():
    environment = {"cpu": "Intel(R)  Core(TM) i5", "num_threads": 4, "gpu": "NVIDIA H200"}
    assert device_name(environment, "cpu") == "Intel Core i5, 4 threads"
    assert device_name(environment, "gpu") == "NVIDIA H200"
    assert device_name({}, "cpu") == "CPU"


@pytest.mark.parametrize(
    ("parts", "text"),
    [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (list("abc"), "a, b and c")],
)
def test_parts_are_joined_as_one_says_them(parts, text):
    assert join(parts) == text


def test_a_curve_keeps_its_batch_though_its_name_changes(tmp_path):
    lines = context_lines((16,))
    for one in lines:
        one["point"]["series"] = "another name"
    assert answer.crossovers({CONTEXTS: sweep_of(tmp_path, lines)[CONTEXTS]})[0].batch == 16
