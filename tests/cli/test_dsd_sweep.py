"""`dsd_sweep`: its arguments, a sweep that is killed and resumed, and how runs end."""

import csv
import json
import re
import shlex
import signal
import sys
from pathlib import Path

import psutil
import pytest

from numbadsd.bench.sweep import folder as folder_module
from numbadsd.bench.sweep import place
from numbadsd.cli import dsd_bench, dsd_continuous_bench
from numbadsd.cli.dsd_sweep import command
from tests.bench.sweep.builders import is_gone, wait_for
from tests.bench.sweep.test_experiments import NAMES
from tests.cli.process import assert_complains, run_here, run_script, start

NAME = "dsd_sweep"
# three points of a second each
TINY = ["--device", "cpu", "--quick", "--grid",
        "context=16..64:x2,batch=2,heads=2,head_dim=16,top_k=2,iterations=1,warmup=0"]  # fmt: skip
ENDLESS = ["--device", "cpu", "--grid", "context=1000,batch=2,iterations=100000000,warmup=0"]


def lines_of(out, experiment="grid"):
    """Return the lines of an experiment, none before there are any."""
    file = Path(out) / experiment / "points.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def table_of(out):
    """Return what is the same in every run of a sweep."""
    return [(line["point"]["id"], line["point"]["variant"], line["status"])
            for line in lines_of(out)]  # fmt: skip


def children_of(process):
    """Return the points that a sweep measures now."""
    try:
        return psutil.Process(process.pid).children()
    except psutil.NoSuchProcess:
        return []


@pytest.fixture
def endless(tmp_path):
    """Start a sweep whose point never ends; yields its process and its point's id."""
    process = start(NAME, "run", *ENDLESS, "--out", str(tmp_path / "out"), text=True)
    try:
        assert wait_for(lambda: children_of(process))
        yield process, children_of(process)[0].pid
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("arguments", [["--help"], ["run", "-h"], ["plot", "-h"], ["list", "-h"]])
def test_help_goes_to_stdout(arguments, capsys):
    ended = run_here(command, arguments, capsys)
    assert ended.status == 0 and "Usage:" in ended.stdout and ended.stderr == ""


def test_the_list_names_every_experiment_with_its_points(capsys):
    counts = {}
    for arguments in (["--device", "cpu"], ["--device", "cpu", "--quick"]):
        ended = run_here(command, ["list", *arguments], capsys)
        rows = re.findall(r"^(\d\d)  (\S+) +(\S.*\?) +(\d+)$", ended.stdout, re.MULTILINE)
        assert [row[1] for row in rows] == NAMES
        counts[arguments[-1]] = [int(row[3]) for row in rows]
        assert re.search(rf" all +{sum(counts[arguments[-1]])}$", ended.stdout, re.MULTILINE)
    assert all(quick < full for quick, full in zip(counts["--quick"], counts["cpu"], strict=True))


def test_a_dry_run_prints_commands_that_the_real_ones_take_and_writes_nothing(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["run", "all", "--device", "cpu", "--quick", "--dry-run", "--out", out]
    ended = run_here(command, arguments, capsys)
    assert ended.status == 0 and not out.exists()
    real = {"dsd_bench": dsd_bench, "dsd_continuous_bench": dsd_continuous_bench}
    lines = [shlex.split(line) for line in ended.stdout.splitlines()]
    assert {name for name, *_ in lines} == set(real) and len(lines) > 40
    for name, *rest in lines:
        with real[name].command.make_context(name, rest):
            pass


def test_threads_reach_every_point(tmp_path, capsys, num_threads):
    arguments = ["run", *TINY, "--dry-run", "--out", tmp_path, "--threads", "1"]
    ended = run_here(command, arguments, capsys)
    assert all(line.endswith("--threads 1") for line in ended.stdout.splitlines())


def test_kill_9_of_a_point_and_of_the_sweep_then_resume_gives_the_same_table(tmp_path):
    whole, broken = str(tmp_path / "whole"), str(tmp_path / "broken")
    ended = run_script(NAME, "run", *TINY, "--out", whole)
    assert ended.status == 0 and ended.stderr == "", ended
    first, second = ended.stdout.splitlines()
    assert first == f"3 of 3 points measured: {whole}"
    assert second == f"next: dsd_sweep plot {whole}; dsd_report {whole}"

    process = start(NAME, "run", *TINY, "--out", broken)
    try:
        assert wait_for(lambda: children_of(process))
        (child,) = children_of(process)
        child.send_signal(signal.SIGKILL)
        assert wait_for(lambda: lines_of(broken))
        assert wait_for(lambda: children_of(process) and children_of(process) != [child])
        (child,) = children_of(process)
    finally:
        process.kill()
        process.communicate()
    assert wait_for(lambda: is_gone(child.pid))
    (line,) = lines_of(broken)
    assert (line["status"], line["reason"], line["record"]) == (
        "killed", "killed by SIGKILL", None,
    )  # fmt: skip

    ended = run_script(NAME, "run", *TINY, "--out", broken)
    assert_complains(ended, broken, "1 point of grid", "--resume", name=NAME)
    ended = run_script(NAME, "run", *TINY, "--out", broken, "--resume")
    assert ended.status == 0 and ended.stdout.startswith("3 of 3 points measured: ")
    assert table_of(broken) == table_of(whole) and len(table_of(whole)) == 3
    files = [sorted(f.relative_to(out).as_posix() for f in Path(out).rglob("*"))
             for out in (whole, broken)]  # fmt: skip
    assert files[0] == files[1]
    with open(Path(broken) / "grid" / "points.csv", newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["ok"] * 3


def test_a_point_that_fails_is_counted_in_one_line_and_the_others_go_on(tmp_path):
    grid = TINY[-1].replace("16..64:x2", "16,64M")  # 64M tokens do not fit in memory
    ended = run_script(NAME, "run", *TINY[:-1], grid.replace("batch=2", "batch=64"),
                       "--out", str(tmp_path / "out"))  # fmt: skip
    assert ended.status == 1 and ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("dsd_sweep: 1 of 2 points failed; the first: grid, ")
    assert ended.stdout.startswith("1 of 2 points measured: ")
    ok, failed = lines_of(tmp_path / "out")
    assert (ok["status"], failed["status"]) == ("ok", "failed")
    assert failed["reason"].startswith("dsd_bench: ") and "bytes" in failed["reason"]


def test_ctrl_c_ends_the_point_keeps_the_folder_and_says_how_to_go_on(endless, tmp_path):
    process, child = endless
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130 and stdout == ""
    assert stderr == "dsd_sweep: interrupted after 0 of 1 points; the same with --resume goes on\n"
    assert wait_for(lambda: is_gone(child))
    assert [file.name for file in (tmp_path / "out").iterdir()] == [".lock"]


def test_a_second_sweep_on_the_folder_is_refused_while_the_first_runs(endless, tmp_path, capsys):
    process, child = endless
    ended = run_here(command, ["run", *TINY, "--resume", "--out", tmp_path / "out"], capsys)
    assert_complains(ended, "another dsd_sweep is running in", tmp_path / "out", name=NAME)
    assert process.poll() is None and not is_gone(child)


def test_a_point_that_takes_too_long_is_a_line(tmp_path):
    out = str(tmp_path / "out")
    ended = run_script(NAME, "run", *ENDLESS, "--timeout", "1.5", "--out", out)
    assert ended.status == 1
    (line,) = lines_of(out)
    assert (line["status"], line["reason"]) == ("timed_out", "took longer than 1.5 s")
    assert "timed out: took longer than 1.5 s" in ended.stderr


def test_a_full_disk_is_one_line(tmp_path, capsys, monkeypatch):
    def fail(text, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_module, "write_text_atomically", fail)
    ended = run_here(command, ["run", *TINY, "--out", tmp_path / "out"], capsys)
    assert_complains(ended, "No space left on device", "--resume", name=NAME)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["list, run or plot"]),
        (["rerun"], ["rerun"]),
        (["run"], ["nothing to run"]),
        (["run", "08"], ["experiment", "'08'", "00 .. 07"]),
        (["run", "00", "nope"], ["experiment", "'nope'"]),
        (["run", "00", "--grid", "batch=1"], ["--grid", "no experiments"]),
        (["run", "--grid", "batch=1,1"], ["--grid", "1 twice"]),
        (["run", "--grid", "page=0"], ["page_size"]),
        (["run", "--grid", "batch=1", "--bench", "dsd_demo"], ["--bench", "dsd_demo"]),
        (["run", "00", "--bench", "dsd_bench"], ["--bench goes with --grid"]),
        (["run", "00", "--jobs", "0"], ["--jobs"]),
        (["run", "00", "--jobs", "2", "--dask", "x"], ["--jobs and --dask"]),
        (["run", "00", "--timeout", "0"], ["--timeout"]),
        (["run", "00", "--device", "tpu"], ["--device", "tpu"]),
        (["run", "00", "--threads", "9999"], ["threads", "9999"]),
        (["run", "--grid", "head_dim=16,16k"], ["'grid, head_dim 16384'", "[1, 512]"]),
        (["list", "00"], ["unexpected", "00"]),
        (["plot", "no/such/folder"], ["no results in"]),
        (["plot"], ["no results in", "dsd_sweep run"]),
    ],
)
def test_bad_arguments_are_one_line(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_complains(run_here(command, arguments, capsys), *words, name=NAME)
    assert not list(tmp_path.iterdir())


def test_a_gpu_that_is_missing_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(place, "why_unavailable", lambda: ("no driver", "get one"))
    ended = run_here(command, ["run", "00", "--device", "gpu", "--dry-run"], capsys)
    assert_complains(ended, "no driver; get one", name=NAME)


def test_the_list_of_the_gpu_needs_none(capsys, monkeypatch):
    monkeypatch.setattr(place, "why_unavailable", lambda: ("no driver", "get one"))
    assert "gpu points" in run_here(command, ["list", "--device", "gpu"], capsys).stdout


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_a_cluster_without_its_package_is_one_line(device, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    arguments = ["run", "02", "--device", device, "--dask", "tcp://127.0.0.1:1", "--out", tmp_path]
    ended = run_here(command, arguments, capsys)
    assert_complains(ended, "--dask", "pip install 'numbadsd[dask]'", name=NAME)


def test_plot_draws_a_sweep_and_says_what_it_could_not(tmp_path, capsys):
    out = tmp_path / "out"
    assert run_script(NAME, "run", *TINY, "--out", str(out)).status == 0
    ended = run_here(command, ["plot", out], capsys)
    assert ended.status == 0, ended
    figures = [out / "grid" / "figures" / f"grid.{kind}" for kind in ("png", "svg")]
    assert ended.stdout.split() == [str(figure) for figure in figures]
    assert all(figure.stat().st_size > 1000 for figure in figures)
    ended = run_here(command, ["plot", out, "--out", tmp_path / "figures"], capsys)
    assert ended.status == 0 and (tmp_path / "figures" / "grid.svg").exists()
    (out / "other").mkdir()
    (out / "other" / "points.jsonl").write_text((out / "grid" / "points.jsonl").read_text())
    ended = run_here(command, ["plot", out], capsys)
    assert ended.status == 1 and ended.stderr.startswith("dsd_sweep: not drawn: other: ")
