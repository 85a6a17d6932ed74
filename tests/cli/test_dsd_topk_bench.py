"""`dsd_topk_bench`: arguments, one line for what is wrong, its table and its record."""

import os
import re
import shlex
import subprocess
import sys
import tracemalloc
from pathlib import Path

import click
import pytest

from numbadsd.bench import topk_contenders
from numbadsd.cli import dsd_topk_bench as module
from numbadsd.cli.dsd_topk_bench import command
from numbadsd.kernels.cuda import sim_driver
from tests.cli.process import (
    NO_GPU,
    Ended,
    assert_complains,
    read_record,
    refuser,
    run_here,
    run_script,
    run_script_into_closed_pipe,
)

NAME = "dsd_topk_bench"
README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
NAMES = "rows length k seed iterations warmup".split()
DEFAULTS = [32, 65536, 128, 7, 10, 2]
OPTIONS = {
    "device": "auto", "dtype": "float32", "order": "position", "lengths": None, "values": None,
}  # fmt: skip
TINY = ["3", "40", "4", "7", "1", "0"]
MAY_BE_ZERO = ("seed", "warmup")


@pytest.fixture(autouse=True)
def small_caches(monkeypatch):
    """Read little between samples."""
    monkeypatch.setattr(topk_contenders, "FEWEST_FLUSH_BYTES", 1 << 20)
    monkeypatch.setattr(topk_contenders, "MOST_FLUSH_BYTES", 1 << 20)


@pytest.fixture
def run(tmp_path, capsys, num_threads):
    """Return a function that runs the command with --json; gives its output and its record."""

    def run_measured(*arguments):
        path = tmp_path / "record.json"
        ended = run_here(command, [*arguments, "--json", path], capsys)
        assert ended.status == 0 and ended.stderr == "", ended
        return ended.stdout, read_record(path)

    return run_measured


@pytest.fixture
def refused(monkeypatch, capsys, num_threads):
    """Return a function that runs arguments which must be refused before any work."""
    work = ("numbadsd.bench.topk.make_case", "numbadsd.bench.topk.Memory")
    return refuser(monkeypatch, capsys, command, *work)


def with_argument(name, value):
    """Return good arguments but for one."""
    arguments = list(TINY)
    arguments[NAMES.index(name)] = str(value)
    return arguments


def test_arguments_have_this_order_and_these_defaults():
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    values = command.make_context(NAME, []).params
    assert [p.name for p in arguments] == NAMES and [values[name] for name in NAMES] == DEFAULTS
    assert not any(p.required for p in arguments)


def test_options_have_these_names_and_defaults():
    values = command.make_context(NAME, []).params
    assert {name: values[name] for name in OPTIONS} == OPTIONS
    flags = {flag for p in command.params if isinstance(p, click.Option) for flag in p.opts}
    assert flags == {
        "--device", "--dtype", "--sorted", "--lengths", "--values", "--threads", "--json",
    }  # fmt: skip


def test_arguments_and_options_reach_the_benchmark(monkeypatch, capsys):
    configs = []

    def stop(config, line, others):
        configs.append(config)
        raise ValueError("stopped")

    monkeypatch.setattr(module, "run_topk_bench", stop)
    chosen = "--device cpu --dtype bfloat16 --sorted score --lengths mix --values equal".split()
    run_here(command, ["1", "2", "3", "4", "5", "6", *chosen], capsys)
    run_here(command, [], capsys)
    run_here(command, ["--values", " low_bits,normal ,low_bits"], capsys)
    given, default, listed = configs
    assert [getattr(given, name) for name in NAMES] == [1, 2, 3, 4, 5, 6]
    got = given.device, given.dtype, given.order, given.lengths, given.values
    assert got == ("cpu", "bfloat16", "score", ("mix",), ("equal",))
    assert [getattr(default, name) for name in NAMES] == DEFAULTS
    assert {name: getattr(default, name) for name in OPTIONS} == OPTIONS
    assert listed.values == ("normal", "low_bits")


def test_the_table_and_the_record_of_every_case(run):
    output, record = run(*TINY)
    titles = ["Top-k Benchmark", "Time per Call", "Reading Guide"]
    assert re.findall(r"^== (.+) ==$", output, re.MULTILINE) == titles
    rows = re.findall(r"^(uniform|mix) +(\w+) ", output, re.MULTILINE)
    assert [list(row) for row in rows] == record["config"]["cases"] and len(rows) == 6
    assert "cold caches" in output and re.search("^numpy: argpartition", output, re.MULTILINE)
    assert all(len(line) <= 132 for line in output.splitlines())
    assert {case["device"] for case in record["cases"]} == {"cpu"}  # the simulator is not asked
    names = {name for case in record["cases"] for name in case["comparators"]}
    assert names == {"numpy", "torch"}


def test_a_gpu_that_is_named_is_the_simulator_here(run):
    output, record = run(*TINY, "--device", "gpu", "--values", "normal")
    assert [case["device"] for case in record["cases"]] == ["gpu", "gpu"]
    assert "simulator: its times mean nothing" in output
    assert set(record["cases"][0]["comparators"]) == {"numpy", "torch", "cupy"}
    assert record["cases"][0]["comparators"]["numpy"]["agrees"]


def test_threads_are_those_that_are_asked_for(run):
    assert run(*TINY, "--threads", "1", "--values", "equal")[1]["config"]["threads"] == 1


@pytest.mark.parametrize("value", ["x", "1.5", "", "1e3", "nan", "3 4"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_integer_is_refused_by_name(refused, name, value):
    assert name in refused(*with_argument(name, value)).lower()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_positive_is_refused(refused, name):
    refused("--", *with_argument(name, -1), words=["-1", name])
    if name not in MAY_BE_ZERO:
        refused(*with_argument(name, 0), words=[name, "got 0"])


@pytest.mark.parametrize("value", [10**30, 2**63])
@pytest.mark.parametrize("name", NAMES)
def test_a_number_that_no_field_holds_is_refused(refused, name, value):
    refused(*with_argument(name, value), words=[name, value])


@pytest.mark.parametrize(("name", "limit"), [("length", 1 << 20), ("k", 2048)])
def test_what_the_kernels_do_not_take_is_refused(refused, name, limit):
    refused(*with_argument(name, limit + 1), words=[f"{name}: got {limit + 1}", limit])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--unknown"], ["--unknown"]),
        (["--device", "tpu"], ["--device", "tpu", "gpu"]),
        (["--dtype", "int8"], ["--dtype", "int8", "bfloat16"]),
        (["--sorted", "random"], ["--sorted", "random", "score"]),
        (["--lengths", "long"], ["lengths", "long", "uniform, mix"]),
        (["--values", "normal,"], ["values", "''", "low_bits"]),
        (["--values", ""], ["values"]),
        (["--threads", "0"], ["threads", "0"]),
        (["--json", "/missing/folder/r.json"], ["--json", "/missing/folder/r.json"]),
        (["17"], ["17"]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_a_bad_option_is_refused(refused, arguments, words):
    refused(*TINY, *arguments, words=words)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_scores_beyond_memory_are_refused_with_their_bytes(refused, dtype):
    tracemalloc.start()
    arguments = [str(2**31 - 1), str(1 << 20), "8", "--dtype", dtype]
    message = refused(*arguments, words=["rows x length", f"{2**31 - 1} x {1 << 20}"])
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    needed = int(re.search(r"([\d,]+) bytes of", message)[1].replace(",", ""))
    assert needed > (2**31 - 1) * (1 << 20) * (4 if dtype == "float32" else 2)
    assert peak_bytes < 100 << 20


def test_scores_beyond_the_device_are_refused_with_their_bytes(refused, monkeypatch):
    monkeypatch.setattr(sim_driver, "MEMORY_BYTES", 1 << 12)
    arguments = ["32", "1000", "8", "7", "1", "0", "--device", "gpu"]
    refused(*arguments, words=["rows x length", "32 x 1000", "bytes of 2,048"])


def test_a_gpu_that_is_named_and_missing_is_one_line_with_the_remedy(refused, monkeypatch):
    problem = ("no GPU was found", "plug one in")
    monkeypatch.setattr("numbadsd.bench.topk.why_unavailable", lambda: problem)
    refused(*TINY, "--device", "gpu", words=["no GPU was found; plug one in"])


def test_as_a_process_without_a_gpu_the_reason_and_the_remedy_are_told():
    ended = run_script(NAME, *TINY, "--device", "gpu", env=os.environ | NO_GPU)
    assert_complains(ended, name=NAME)
    reason, remedy = ended.stderr.removeprefix(f"{NAME}: ").split("; ", 1)
    assert re.search("not installed|driver|device", reason)
    assert "install CUDA support" in remedy or "the CPU paths run anywhere" in remedy


def test_as_a_process_auto_is_the_cpu_without_a_gpu():
    ended = run_script(NAME, *TINY, "--values", "equal", env=os.environ | NO_GPU)
    assert ended.status == 0 and ended.stderr == ""
    assert re.search(r"^uniform +equal ", ended.stdout, re.MULTILINE)


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_every_argument_and_option(flag):
    ended = run_script(NAME, flag)
    assert ended.status == 0 and ended.stderr == ""
    assert len(ended.stdout.splitlines()) < 50
    assert all(name in ended.stdout for p in command.params[6:] for name in p.opts)
    for name, default in zip(NAMES, DEFAULTS, strict=True):
        assert re.search(rf"^  +{name} +{default}$", ended.stdout, re.MULTILINE)


def test_a_full_disk_does_not_lose_what_was_measured(monkeypatch, capsys, tmp_path):
    def fail(record, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_record", fail)
    ended = run_here(command, [*TINY, "--json", tmp_path / "r.json"], capsys)
    assert ended.status == 2 and "== Time per Call ==" in ended.stdout
    assert ended.stderr.count("\n") == 1 and "No space left" in ended.stderr


def test_a_closed_stdout_is_one_line_and_the_record_is_written_all_the_same(tmp_path):
    path = tmp_path / "record.json"
    arguments = [*TINY, "--values", "equal", "--json", str(path)]
    ended = run_script_into_closed_pipe(NAME, *arguments)
    assert_complains(ended, "stdout", status=141, name=NAME)
    assert read_record(path)["cases"]


def readme_blocks(kind):
    """Return the blocks of one kind in the README's section on top-k."""
    section = README.split("\n## Top-k on its own\n")[1].split("\n## ")[0]
    return re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL)


def test_the_commands_of_the_readme_run():
    [lines] = readme_blocks("sh")
    for line in filter(None, lines.splitlines()):
        name, *arguments = shlex.split(line)
        assert name == NAME
        assert "== Time per Call ==" in run_script(name, *arguments, env=os.environ | NO_GPU).stdout


def test_the_python_of_the_readme_runs_as_it_stands():
    [source] = readme_blocks("py")
    check = "\nassert pages.shape == (4, 64) and pages.dtype == np.int32 and pages[0, -1] >= 63"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source + check], capture_output=True, text=True
    )
    assert Ended(done.returncode, "", done.stderr) == (0, "", "")
