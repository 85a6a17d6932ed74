"""A sweep and its folder: order, resuming, refusals, and files that stay whole."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from numbadsd.bench.sweep import folder as folder_module
from numbadsd.bench.sweep.folder import CSV_FILE, LOCK_FILE, locked
from numbadsd.bench.sweep.points import code_version
from numbadsd.bench.sweep.process import LocalExecutor
from numbadsd.bench.sweep.records import POINTS_FILE, read_sweep
from numbadsd.bench.sweep.run import Sweep, Tally, open_tables, run_sweep
from tests.bench.sweep.builders import CODE, FAKE, FakeExecutor, make_points, outcome

BROKEN = outcome("failed", reason="it broke")
_HOLD = """
import sys
from pathlib import Path
from numbadsd.bench.sweep.folder import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def make_sweep(out, *places, code=CODE, scale="cpu", experiment="grid", **parameters):
    """Return a sweep of one experiment."""
    points = make_points(*places, experiment=experiment, **parameters)
    return Sweep({experiment: points}, out, scale, False, code)


def run(sweep, executor=None, resume=False):
    """Run a sweep; return what it counted, and its executor."""
    tally, executor = Tally(), executor or FakeExecutor()
    run_sweep(sweep, executor, resume, tally)
    return tally, executor


def files_of(out):
    """Return every file below a folder with its content."""
    return {str(f.relative_to(out)): f.read_bytes() for f in out.rglob("*") if f.is_file()}


def lines_of(out, experiment="grid"):
    """Return the lines of an experiment."""
    return [json.loads(line) for line in (out / experiment / POINTS_FILE).read_text().splitlines()]


def test_a_sweep_writes_lines_a_table_and_what_was_printed(tmp_path):
    tally, executor = run(make_sweep(tmp_path / "out", 16, 32))
    assert set(files_of(tmp_path / "out")) == {
        LOCK_FILE, f"grid/{POINTS_FILE}", f"grid/{CSV_FILE}",
        "grid/stdout/batch_2_context_16.txt", "grid/stdout/batch_2_context_32.txt",
    }  # fmt: skip
    assert (tally.total, tally.measured, tally.failed, tally.kept) == (2, 2, 0, 0)
    assert [point.x for point in read_sweep(tmp_path / "out")["grid"]] == [16, 32]
    (first, second) = lines_of(tmp_path / "out")
    assert first["stdout"] == "stdout/batch_2_context_16.txt"
    assert (tmp_path / "out" / "grid" / first["stdout"]).read_text() == "a report\n"
    assert first["point"]["argv"][:4] == ["8", "2", "16", "16"] and first["code_version"] == CODE
    assert executor.tasks[1].argv == tuple(second["point"]["argv"])
    assert len((tmp_path / "out" / "grid" / CSV_FILE).read_text().splitlines()) == 3


def test_lines_come_in_the_order_of_the_table_whenever_they_end(tmp_path):
    run(make_sweep(tmp_path, 16, 32, 64), FakeExecutor(order=[2, 0, 1]))
    assert [line["point"]["x"] for line in lines_of(tmp_path)] == [16, 32, 64]


def test_what_json_has_no_word_for_is_null_in_a_line(tmp_path):
    executor = FakeExecutor(outcomes={0: outcome(record={"a": float("nan")})})
    run(make_sweep(tmp_path, 16), executor)
    assert lines_of(tmp_path)[0]["record"] == {"a": None}


def test_a_point_that_failed_is_a_line_and_a_row_and_the_sweep_goes_on(tmp_path):
    tally, _ = run(make_sweep(tmp_path, 16, 32), FakeExecutor(outcomes={0: BROKEN}))
    assert (tally.measured, tally.failed) == (2, 1)
    assert tally.first_reason == "grid, batch 2, context 16: failed: it broke"
    assert [line["status"] for line in lines_of(tmp_path)] == ["failed", "ok"]
    row = (tmp_path / "grid" / CSV_FILE).read_text().splitlines()[1]
    assert row.startswith('grid,"batch 2, context 16",8,2,16,16,') and "it broke" in row


def test_resuming_measures_what_is_missing_and_what_failed(tmp_path):
    with pytest.raises(RuntimeError):
        run(make_sweep(tmp_path, 16, 32, 64),
            FakeExecutor([2, 0], {2: BROKEN}, error=RuntimeError()))  # fmt: skip
    assert [line["status"] for line in lines_of(tmp_path)] == ["ok", "failed"]
    before = lines_of(tmp_path)[0]
    tally, executor = run(make_sweep(tmp_path, 16, 32, 64), resume=True)
    assert [task.argv[2] for task in executor.tasks] == ["32", "64"]
    assert (tally.total, tally.measured, tally.kept) == (3, 2, 1)
    assert [line["status"] for line in lines_of(tmp_path)] == ["ok"] * 3
    assert lines_of(tmp_path)[0] == before


def test_resuming_a_whole_sweep_measures_nothing_and_resuming_none_everything(tmp_path):
    assert run(make_sweep(tmp_path, 16), resume=True)[0].measured == 1
    before = files_of(tmp_path)
    (tmp_path / "grid" / CSV_FILE).unlink()  # the table is made anew from the lines
    tally, executor = run(make_sweep(tmp_path, 16), resume=True)
    assert not executor.tasks and tally.kept == tally.total == 1
    assert files_of(tmp_path) == before


def test_a_longer_grid_takes_over_what_it_has(tmp_path):
    run(make_sweep(tmp_path, 32, 64))
    _, executor = run(make_sweep(tmp_path, 16, 32, 64, 128), resume=True)
    assert len(executor.tasks) == 2
    assert [line["point"]["x"] for line in lines_of(tmp_path)] == [16, 32, 64, 128]


def test_an_executor_is_closed_however_the_sweep_ends(tmp_path, monkeypatch):
    executor = FakeExecutor(error=KeyboardInterrupt())
    tally = Tally()
    with pytest.raises(KeyboardInterrupt):
        run_sweep(make_sweep(tmp_path / "a", 16, 32), executor, False, tally)
    assert executor.is_closed and tally.measured == 2
    executor = FakeExecutor()
    monkeypatch.setattr(folder_module, "write_text_atomically", _raise_full)
    with pytest.raises(OSError):
        run(make_sweep(tmp_path / "b", 16, 32), executor)
    assert executor.is_closed


@pytest.mark.parametrize(
    ("other", "resume", "words"),
    [
        ({}, False, ["holds 2 points of grid", "--resume", "--out"]),
        ({"code": "f" * 12}, False, ["code version", CODE, "f" * 12, "--out"]),
        ({"code": "f" * 12}, True, ["code version", CODE, "f" * 12, "--out"]),
        ({"scale": "gpu"}, True, ["scale cpu", "this is gpu", "--out"]),
        ({"seed": 9}, True, ["grid", "other options", "'batch 2, context 16'", "--out"]),
        ({"experiment": "01_decode_context_length_sweep", "code": "f" * 12}, False,
         ["code version"]),
    ],
)  # fmt: skip
def test_a_folder_that_does_not_fit_is_refused_and_left_alone(tmp_path, other, resume, words):
    run(make_sweep(tmp_path, 16, 32))
    before, executor = files_of(tmp_path), FakeExecutor()
    with pytest.raises(ValueError) as error:
        run(make_sweep(tmp_path, 16, 32, **other), executor, resume)
    text = str(error.value)
    assert "\n" not in text and all(word in text for word in [str(tmp_path), *words])
    assert not executor.tasks and files_of(tmp_path) == before


def test_another_experiment_of_the_same_code_goes_into_the_folder(tmp_path):
    run(make_sweep(tmp_path, 16))
    run(make_sweep(tmp_path, 16, experiment="01_decode_context_length_sweep"))
    assert len(read_sweep(tmp_path)) == 2


@pytest.mark.parametrize("text", ["{", "[]", '{"schema_version": 1}', '{"point": 3}', '{"a": NaN}'])
def test_a_results_file_that_is_broken_is_refused_and_left_alone(tmp_path, text):
    run(make_sweep(tmp_path, 16))
    file = tmp_path / "grid" / POINTS_FILE
    file.write_text(text)
    before = files_of(tmp_path)
    with pytest.raises(ValueError, match=f"{POINTS_FILE}:1"):
        run(make_sweep(tmp_path, 16), resume=True)
    assert files_of(tmp_path) == before


def test_only_one_sweep_holds_a_folder(tmp_path):
    with locked(tmp_path), pytest.raises(ValueError, match=f"is running in {tmp_path}"):
        run(make_sweep(tmp_path, 16))
    assert run(make_sweep(tmp_path, 16))[0].measured == 1


def test_a_sweep_that_was_killed_lets_go_of_its_folder(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match="another dsd_sweep is running"):
            run(make_sweep(tmp_path, 16))
    finally:
        holder.kill()
        holder.communicate()
    assert run(make_sweep(tmp_path, 16))[0].measured == 1


def _raise_full(*arguments):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("written", range(3))
def test_a_full_disk_leaves_what_was_there_whole(tmp_path, monkeypatch, written):
    run(make_sweep(tmp_path, 16))
    before, replaced = files_of(tmp_path), []
    replace = os.replace

    def replace_until_full(source, target):
        if len(replaced) == 2 + written:  # the resumed sweep begins by writing both files
            _raise_full()
        replaced.append(target)
        replace(source, target)

    monkeypatch.setattr("os.replace", replace_until_full)
    with pytest.raises(OSError, match="cannot write .*: No space left on device; .*--resume"):
        run(make_sweep(tmp_path, 16, 32), resume=True)
    monkeypatch.undo()
    after = files_of(tmp_path)
    assert not [name for name in after if name.split("/")[-1].startswith(".points")]
    changed = [name for name in before if after[name] != before[name]]
    assert changed == ([f"grid/{POINTS_FILE}"] if written == 2 else [])
    assert len(lines_of(tmp_path)) == (2 if written == 2 else 1)
    run(make_sweep(tmp_path, 16, 32), resume=True)
    assert [line["status"] for line in lines_of(tmp_path)] == ["ok", "ok"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot make the folder .*file/out: Not a directory"):
        run(make_sweep(tmp_path / "file" / "out", 16))


def test_the_tables_show_what_would_run_without_touching_the_folder(tmp_path):
    (table,) = open_tables(make_sweep(tmp_path / "none", 16, 32), False)
    assert len(table.missing()) == 2 and not (tmp_path / "none").exists()


def test_processes_side_by_side_make_the_same_table(tmp_path):
    sweeps = [make_sweep(tmp_path / name, 16, 32, 64, 128, code=code_version()) for name in "ab"]
    for sweep, jobs in zip(sweeps, (1, 3), strict=True):
        run(replace(sweep, launcher=FAKE), LocalExecutor(jobs))
    tables = [[(line["point"]["id"], line["status"], line["record"]["arguments"])
               for line in lines_of(sweep.out)] for sweep in sweeps]  # fmt: skip
    assert tables[0] == tables[1] and len(tables[0]) == 4
