"""Results that are not there, or that no page may be made of: one sentence each."""

import copy
import shutil

import pytest

from numbadsd.report import build_page
from numbadsd.report.collect import collect
from tests.report.results import (
    CONTEXTS,
    context_lines,
    decode,
    load_lines,
    sparsity_lines,
    write_record,
    write_results,
    write_sweep,
)


def refused(folder):
    """Return why a folder is refused."""
    with pytest.raises(ValueError) as error:
        collect(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_that_is_not_there_has_no_results(tmp_path):
    assert refused(tmp_path / "absent") == f"no results in {tmp_path / 'absent'}: it is not there"


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    assert "it is no folder" in refused(tmp_path / "file")


def test_an_empty_folder_has_no_results(tmp_path):
    (tmp_path / "sweeps" / "xeon").mkdir(parents=True)
    assert refused(tmp_path) == f"no results in {tmp_path}: no sweep and no record is in it"


def test_an_experiment_without_points_has_no_results(tmp_path):
    write_results(tmp_path)
    file = next(tmp_path.rglob("points.jsonl"))
    file.write_text("")
    assert str(file.parent) in refused(tmp_path) and "is empty" in refused(tmp_path)


def test_one_experiment_is_no_sweep(tmp_path):
    folder = write_sweep(tmp_path, context_lines()) / CONTEXTS
    assert "give the folder of its sweep" in refused(folder)


def test_a_sweep_of_two_versions_is_refused_and_both_are_named(tmp_path):
    lines = context_lines()
    lines[-1]["code_version"] = "ba9876543210"
    message = refused(write_results(tmp_path, lines))
    assert "0123456789ab" in message and "ba9876543210" in message


@pytest.mark.parametrize("value", ["NaN", "Infinity"])
def test_a_record_with_what_is_no_number_is_refused_with_its_place(tmp_path, value):
    write_results(tmp_path)
    file = next(tmp_path.rglob("points.jsonl"))
    file.write_text(file.read_text().replace('"wall_s": 1.0', f'"wall_s": {value}'))
    assert f"{file}:1: {value} is no number" == refused(tmp_path)


def test_a_single_record_with_what_is_no_number_is_refused_with_its_place(tmp_path):
    write_record(tmp_path, "decode", decode(1.0, 1.0))
    write_record(tmp_path, "decode", {"x": float("nan")})
    assert ".jsonl:2: NaN is no number" in refused(tmp_path)


def test_broken_json_is_refused_with_its_place(tmp_path):
    write_results(tmp_path)
    file = next(tmp_path.rglob("points.jsonl"))
    file.write_text(file.read_text() + '{"schema')
    assert "broken JSON" in refused(tmp_path) and f"{file}:" in refused(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"steps": NaN}', "\x00"])
def test_a_broken_summary_of_a_gpu_check_is_refused(tmp_path, content):
    (tmp_path / "summary.json").write_text(content)
    assert "summary.json" in refused(tmp_path)


def test_a_record_without_its_paths_is_refused(tmp_path):
    lines = context_lines()
    del lines[0]["record"]["paths"]
    message = refused(write_results(tmp_path, lines))
    assert "batch 1, context_tokens 128: lacks its paths" in message


def test_a_context_that_is_there_twice_is_refused(tmp_path):
    write_results(tmp_path, [*context_lines((1,)), *context_lines((1,))])
    with pytest.raises(ValueError, match="batch 1: x: got"):
        build_page(tmp_path)


def places(record, above=()):
    """Yield the way to every value of a record."""
    if isinstance(record, dict):
        for key, value in record.items():
            yield (*above, key)
            yield from places(value, (*above, key))


@pytest.mark.parametrize("wrong", ["text", [], None, -1])
def test_a_damaged_value_is_left_out_or_named_and_never_a_crash(tmp_path, wrong):
    lines = [context_lines((1,))[0], sparsity_lines()[0], load_lines()[0]]
    ways = [(n, way) for n, one in enumerate(lines) for way in places(one["record"])]
    for n, way in ways:
        damaged = copy.deepcopy(lines)
        target = damaged[n]["record"]
        for key in way[:-1]:
            target = target[key]
        target[way[-1]] = wrong
        shutil.rmtree(tmp_path / "made", ignore_errors=True)
        folder = write_results(tmp_path / "made", damaged)
        write_record(folder, "single", damaged[n]["record"] | {"schema_version": 1})
        try:
            assert build_page(folder)
        except ValueError as error:
            assert damaged[n]["experiment"] in str(error)


def test_what_lies_below_a_sweep_is_no_single_run(tmp_path):
    folder = write_results(tmp_path) / "sweeps" / "xeon" / "2026-11-21_0123456"
    (folder / "log.jsonl").write_text("{}\n")
    assert collect(tmp_path).others == []
