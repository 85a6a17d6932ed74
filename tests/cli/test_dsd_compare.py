"""`dsd_compare`: its table, its status, and one line for what cannot be compared."""

import json
from pathlib import Path

import click
import pytest

from numbadsd.cli.dsd_compare import command
from tests.bench.regress import continuous, point_line, sampled, topk, write_lines
from tests.cli.process import (
    Ended,
    assert_complains,
    read_record,
    run_here,
    run_script,
    run_script_into_closed_pipe,
)

NAME = "dsd_compare"
RESULTS = Path(__file__).parents[2] / "bench_results"
STEADY = [1.0, 1.01, 0.99, 1.02, 1.0, 1.01]


@pytest.fixture
def files(tmp_path):
    """Return files of records, as texts: of one setting, and of others."""
    records = {
        "base": [sampled(STEADY)],
        "same": [sampled([1.001 * ms for ms in STEADY])],
        "slow": [sampled([2 * ms for ms in STEADY]), sampled([1.0], seed=8)],
        "single": [sampled([1.0])],
        "single_slow": [sampled([1.07])],
        "topk": [topk()],
        "continuous": [continuous()],
        "other": [sampled(STEADY, kv_dtype="bfloat16")],
    }
    return {n: str(write_lines(tmp_path / f"{n}.jsonl", r)) for n, r in records.items()}


@pytest.fixture
def run(capsys):
    """Return a function that runs the command here."""
    return lambda *arguments: run_here(command, arguments, capsys)


def test_arguments_and_options_are_these():
    arguments = [p.name for p in command.params if isinstance(p, click.Argument)]
    options = {flag for p in command.params if isinstance(p, click.Option) for flag in p.opts}
    assert arguments == ["base", "new"]
    assert options == {"--noise", "--all", "--json"}


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_both_sides_the_options_and_the_status(flag):
    ended = run_script(NAME, flag)
    assert ended.status == 0 and ended.stderr == ""
    for word in ("BASE", "NEW", "--noise", "0.05", "0.1", "--all", "--json", "status 1"):
        assert word in ended.stdout


@pytest.mark.parametrize(
    ("base", "new", "status"),
    [
        ("base", "same", 0),
        ("base", "slow", 1),
        ("slow", "base", 0),
        ("single", "single_slow", 0),
        ("topk", "topk", 0),
        ("continuous", "continuous", 0),
    ],
)
def test_as_a_process_the_status_says_whether_anything_is_slower(files, base, new, status):
    ended = run_script(NAME, files[base], files[new])
    assert ended.status == status and ended.stderr == ""
    assert files[base] in ended.stdout and files[new] in ended.stdout
    assert ("slower" in ended.stdout) is (status == 1)


def test_noise_narrows_and_widens_the_band(run, files):
    assert run(files["single"], files["single_slow"], "--noise", "0.05").status == 1
    assert run(files["base"], files["same"], "--noise", "0").status == 0
    assert run(files["base"], files["slow"], "--noise", "0.5").status == 1
    wide = sampled([1.4 * ms for ms in STEADY])
    Path(files["same"]).write_text(json.dumps(wide) + "\n")
    assert run(files["base"], files["same"], "--noise", "0.5").status == 0


def test_what_stands_on_one_side_only_is_counted_and_with_all_listed(run, files):
    ended = run(files["base"], files["slow"])
    assert "Only in NEW: 1 (--all lists them)" in ended.stdout
    ended = run(files["base"], files["slow"], "--all")
    assert "Only in NEW: 1:\n  dsd_bench" in ended.stdout


def test_the_record_has_what_the_table_has(run, files, tmp_path):
    path = tmp_path / "comparison.json"
    ended = run(files["base"], files["slow"], "--json", path)
    record = read_record(path)
    assert ended.status == 1 and record["verdicts"]["slower"] == 1
    assert record["base"] == files["base"] and record["schema_version"] == 1
    (row,) = record["rows"]
    assert row["ratio"] == pytest.approx(2) and row["metric"]["name"] == "dense_cpu"
    assert record["command"].startswith("dsd_compare")


def test_folders_of_a_sweep_are_compared_with_a_file_of_points(run, tmp_path):
    for side, factor in (("old", 1), ("new", 3)):
        folder = tmp_path / side / "01_decode"
        folder.mkdir(parents=True)
        samples = [factor * ms for ms in STEADY]
        write_lines(folder / "points.jsonl", [point_line("batch 1", samples, side)])
    old, new = tmp_path / "old", tmp_path / "new"
    file = new / "01_decode" / "points.jsonl"
    for arguments in ((old, new), (old / "01_decode", new), (old, file)):
        ended = run(*arguments)
        assert ended.status == 1 and "\n01_decode: batch 1\n" in ended.stdout


@pytest.mark.parametrize("kind", ["decode", "topk", "continuous"])
def test_records_of_this_machine_are_compared_with_themselves(run, kind):
    file = sorted((RESULTS / kind / "xeon_2core").glob("*.jsonl"))[-1]
    ended = run(file, file)
    assert ended.status == 0 and ended.stderr == ""
    assert " same.\n" in ended.stdout


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["empty"]),
        ("\n\n", ["empty"]),
        ('{"a": 1}\n{"a": NaN}\n', [":2", "NaN"]),
        ('{"a": 1}\n{"a": Infinity}\n', [":2", "Infinity"]),
        ('{"a": \n', [":1", "JSON"]),
        ("[1]\n", [":1", "object"]),
        ('{"schema_version": 99}\n', [":1", "schema_version 99"]),
        ('{"a": 1}\n', ["record 1 of NEW", "dsd_bench"]),
        ('{"command": "dsd_kernels"}\n', ["dsd_kernels", "dsd_topk_bench"]),
        ('{"command": "dsd_bench", "config": {}}\n', ["record 1 of NEW", "'paths'"]),
    ],
    ids=["empty", "blank", "nan", "infinity", "json", "list", "schema", "other", "kernels", "half"],
)
def test_a_file_that_cannot_be_read_is_one_line(run, files, tmp_path, text, words):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    assert_complains(run(files["base"], path), *words, name=NAME)


@pytest.mark.parametrize("order", [1, -1])
def test_bytes_that_are_no_text_are_one_line_on_either_side(run, files, tmp_path, order):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    sides = [files["base"], path][::order]
    assert_complains(run(*sides), path, "UTF-8", name=NAME)


@pytest.mark.parametrize(
    ("new", "words"),
    [
        ("topk", ["nothing in common", "dsd_bench", "dsd_topk_bench"]),
        ("continuous", ["nothing in common", "dsd_continuous_bench"]),
        ("other", ["nothing in common", "kv_dtype", "bfloat16"]),
    ],
)
def test_as_a_process_nothing_in_common_is_one_line(files, new, words):
    assert_complains(run_script(NAME, files["base"], files[new]), *words, name=NAME)


def test_as_a_process_a_missing_file_and_a_mixed_sweep_are_one_line(files, tmp_path):
    missing = str(tmp_path / "missing.jsonl")
    assert_complains(run_script(NAME, missing, files["base"]), missing, name=NAME)
    assert_complains(run_script(NAME, files["base"], str(tmp_path)), "no results", name=NAME)
    for name in ("01_a", "02_b"):
        (tmp_path / name).mkdir()
        write_lines(tmp_path / name / "points.jsonl", [point_line("p", [1.0], f"code{name}")])
    ended = run_script(NAME, str(tmp_path), files["base"])
    assert_complains(ended, "code01_a", "code02_b", name=NAME)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["BASE"]),
        (["{base}"], ["NEW"]),
        (["{base}", "{same}", "{slow}"], ["slow"]),
        (["{base}", "{same}", "--noise", "x"], ["--noise", "x"]),
        (["{base}", "{same}", "--noise", "5"], ["noise", "5", "below 1"]),
        (["{base}", "{same}", "--noise", "-0.1"], ["noise", "-0.1"]),
        (["{base}", "{same}", "--noise", "nan"], ["noise", "nan"]),
        (["{base}", "{same}", "--json", "/missing/folder/r.json"], ["--json", "/missing/folder"]),
        (["{base}", "{same}", "--json", "{same}"], ["--json", "NEW"]),
        (["{base}", "{same}", "--json", "{base}"], ["--json", "BASE"]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_bad_arguments_are_one_line_and_overwrite_nothing(run, files, arguments, words):
    before = {name: Path(file).read_text() for name, file in files.items()}
    ended = run(*(argument.format(**files) for argument in arguments))
    assert_complains(ended, *words, name=NAME)
    assert before == {name: Path(file).read_text() for name, file in files.items()}


def test_a_closed_pipe_is_no_traceback(files):
    ended = run_script_into_closed_pipe(NAME, files["base"], files["slow"])
    assert_complains(Ended(ended.status, "", ended.stderr), "stdout", status=141, name=NAME)
