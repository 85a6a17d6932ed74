"""Reading results: whole points, or one line that says what is wrong and where."""

import json

import pytest

from numbadsd.bench.sweep.records import (
    POINTS_FILE,
    PointResult,
    read_experiment,
    read_lines,
    read_sweep,
)
from numbadsd.bench.sweep.run import Sweep
from tests.bench.sweep.builders import CODE, make_points, outcome

NAMES = ("00_backend_total_time", "grid")


def line_of(point, out, code=CODE, **values):
    """Return the line of a point."""
    return Sweep({}, out, "cpu", True, code).line(point, outcome(**values))


@pytest.fixture
def sweep(tmp_path):
    """Return a folder with two experiments of two points each."""
    for name in NAMES:
        (tmp_path / name).mkdir()
        lines = [line_of(point, tmp_path) for point in make_points(16, 32, experiment=name)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / name / POINTS_FILE).write_text(text)
    return tmp_path


def spoil(sweep, change, name="grid"):
    """Change the second line of an experiment."""
    file = sweep / name / POINTS_FILE
    first, second, _ = file.read_text().split("\n")
    line = json.loads(second)
    changed = change(line)
    second = changed if isinstance(changed, str) else json.dumps(changed or line)
    file.write_text(f"{first}\n{second}\n")


def test_a_point_is_read_with_all_that_was_written(sweep):
    points = read_experiment(sweep / "grid")
    assert [point.x for point in points] == [16, 32] and all(point.ok for point in points)
    point = points[1]
    assert isinstance(point, PointResult)
    assert (point.experiment, point.series, point.x_name) == ("grid", "batch 2", "context_tokens")
    assert (point.variant, point.command) == ("batch 2, context 32", "dsd_bench")
    assert point.parameters == {"batch_size": 2, "context_tokens": 32}
    assert (point.scale, point.quick, point.code_version) == ("cpu", True, CODE)
    assert (point.status, point.reason, point.wall_s) == ("ok", None, 1.5)
    assert point.record["paths"]["dense_cpu"]["total_ms"]["median"] == 4.0


def test_a_failed_point_is_read_with_its_reason(tmp_path):
    (tmp_path / "grid").mkdir()
    line = line_of(make_points(16)[0], tmp_path, status="timed_out", reason="took too long")
    (tmp_path / "grid" / POINTS_FILE).write_text(json.dumps(line))
    (point,) = read_experiment(tmp_path / "grid")
    assert not point.ok and point.record is None
    assert (point.status, point.reason) == ("timed_out", "took too long")


def test_a_sweep_is_its_experiments_in_order(sweep):
    (sweep / "stdout").mkdir()
    assert {name: len(points) for name, points in read_sweep(sweep).items()} == {
        "00_backend_total_time": 2, "grid": 2,
    }  # fmt: skip


def test_empty_lines_are_passed_over(sweep):
    file = sweep / "grid" / POINTS_FILE
    file.write_text("\n" + file.read_text() + "\n\n")
    assert len(read_experiment(sweep / "grid")) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda line: json.dumps(line)[:-5], ["broken JSON"]),
        (lambda line: json.dumps(line | {"wall_s": float("nan")}), ["NaN", "no number"]),
        (lambda line: json.dumps(line | {"wall_s": float("inf")}), ["Infinity"]),
        (lambda line: json.dumps(line | {"record": {"a": [float("-inf")]}}), ["-Infinity"]),
        (lambda line: "[1]", ["want a JSON object"]),
        (lambda line: line | {"schema_version": 2}, ["schema_version 2", "reads 1"]),
        (lambda line: {"schema_version": 1}, ["no point of a sweep", "point missing"]),
        (lambda line: line | {"point": 3}, ["no point of a sweep"]),
        (lambda line: line | {"code_version": None}, ["code_version: got None"]),
        (lambda line: line.pop("status") and None, ["status missing"]),
        (lambda line: line["point"].pop("x") and None, ["x missing"]),
    ],
)  # fmt: skip
def test_a_line_that_is_wrong_is_named_with_its_file_and_place(sweep, change, words):
    spoil(sweep, change)
    with pytest.raises(ValueError) as error:
        read_sweep(sweep)
    text = str(error.value)
    assert f"{sweep / 'grid' / POINTS_FILE}:2" in text and "\n" not in text
    assert all(word in text for word in words)


def test_a_file_that_is_no_text_is_named(sweep):
    (sweep / "grid" / POINTS_FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="UTF-8"):
        read_lines(sweep / "grid" / POINTS_FILE)


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(ValueError, match="no results in"):
        read_sweep(tmp_path)
    with pytest.raises(ValueError, match=f"no results in .*{POINTS_FILE}"):
        read_experiment(tmp_path)
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid" / POINTS_FILE).touch()
    with pytest.raises(ValueError, match="is empty"):
        read_experiment(tmp_path / "grid")
    with pytest.raises(ValueError, match="is empty"):
        read_sweep(tmp_path)


def test_points_of_two_versions_of_the_code_do_not_mix(sweep):
    spoil(sweep, lambda line: line | {"code_version": "ffffffffffff"})
    with pytest.raises(ValueError, match=f"{CODE} and ffffffffffff"):
        read_sweep(sweep)
