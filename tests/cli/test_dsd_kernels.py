"""`dsd_kernels`: its options, its table and record, its status, and what it says without CUDA."""

import os
import subprocess
import sys

import click
import pytest

from numbadsd.bench.kernels import SWEEP
from numbadsd.cli import dsd_kernels as module
from numbadsd.cli.dsd_kernels import command
from tests.bench.kernel_records import kernel_entry, kernel_record, needs_compiler
from tests.cli.process import (
    Ended,
    assert_complains,
    read_record,
    run_here,
    run_script,
    run_script_into_closed_pipe,
)

DEFAULTS = {
    "arch": "sm_90",
    "num_heads": 32,
    "num_kv_heads": 8,
    "head_dim": 128,
    "page_size": 16,
    "kv_dtype": "float16",
    "summary": "mean",
    "share": "kv_head",
}
NAME = "dsd_kernels"
TOO_MANY_HEADS = ["--num-heads", "4096", "--num-kv-heads", "1"]
COMPILING = os.environ | {"NUMBA_ENABLE_CUDASIM": "0"}


@pytest.fixture
def run(monkeypatch, capsys):
    """Return a function that runs the command on made-up kernels; gives its end and its calls."""

    def run_made_up(*arguments, kernels=(), **entry):
        calls = []
        record = kernel_record(*(kernels or [kernel_entry(**entry)]))
        monkeypatch.setattr(module, "run_kernels", lambda *call: calls.append(call) or record)
        return run_here(command, arguments, capsys), calls

    return run_made_up


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Return how a real run ended, and its record."""
    path = tmp_path_factory.mktemp("kernels") / "record.json"
    ended = run_script(NAME, "--arch", "sm_80", "--json", str(path), env=COMPILING)
    assert ended.status in (0, 1), ended.stderr
    return ended, read_record(path)


def test_options_have_these_names_and_defaults():
    assert all(isinstance(parameter, click.Option) for parameter in command.params)
    defaults = {parameter.name: parameter.default for parameter in command.params}
    assert {name: defaults[name] for name in DEFAULTS} == DEFAULTS
    options = {name for parameter in command.params for name in parameter.opts}
    assert options == {f"--{name.replace('_', '-')}" for name in DEFAULTS} | {"--all", "--json"}


def test_the_shape_reaches_the_compiler(run):
    shape = "--num-heads 16 --num-kv-heads 4 --head-dim 64 --page-size 32".split()
    choices = "--kv-dtype bfloat16 --summary minmax --share request --arch sm_100".split()
    ended, [([config], arch, line)] = run(*shape, *choices)
    assert ended.status == 0 and arch == "sm_100" and line.startswith(NAME)
    assert (config.num_heads, config.num_kv_heads) == (16, 4)
    assert (config.head_dim, config.page_size) == (64, 32)
    assert (config.kv_dtype, config.summary, config.share) == ("bfloat16", "minmax", "request")


def test_all_compiles_the_sweep(run):
    ended, [(configs, arch, _)] = run("--all")
    assert ended.status == 0 and configs == SWEEP and arch == "sm_90"


def test_within_budget_the_table_is_all_that_is_written(run):
    ended, _ = run(name="attend-1")
    assert ended.status == 0 and ended.stderr == ""
    assert "attend-1" in ended.stdout and "OVER" not in ended.stdout


def test_over_budget_is_status_1_with_one_line_after_the_table(run, tmp_path):
    path = tmp_path / "record.json"
    bad = kernel_entry(name="attend-2", stack_bytes=8, faults=["8 bytes of stack"])
    ended, _ = run("--json", path, kernels=[kernel_entry(), bad])
    assert ended.status == 1
    assert ended.stderr == "dsd_kernels: over budget: attend-2: 8 bytes of stack\n"
    assert "OVER BUDGET: 8 bytes of stack" in ended.stdout
    assert read_record(path)["kernels"][1]["faults"] == ["8 bytes of stack"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arch", "sm_99"], ["--arch", "sm_99", "sm_90"]),
        (["--arch", "90"], ["--arch", "90"]),
        (["--arch", "sm_60"], ["--arch", "sm_60"]),
        (["--arch", ""], ["--arch"]),
        (["--num-kv-heads", "3"], ["num_kv_heads", "3", "32"]),
        (["--num-heads", "0"], ["num_heads", "0"]),
        (["--num-heads", "x"], ["num-heads", "x"]),
        (["--head-dim", "24"], ["head_dim", "24"]),
        (["--page-size", "0"], ["page_size", "0"]),
        (["--kv-dtype", "int8"], ["kv-dtype", "int8"]),
        (["--summary", "median"], ["summary", "median"]),
        (["--share", "none"], ["share", "none"]),
        (["--all", "--head-dim", "64"], ["--all", "--head-dim"]),
        (["--json", "/missing/folder/r.json"], ["--json", "/missing/folder/r.json"]),
        (["3"], ["3"]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_bad_arguments_are_one_line_before_any_work(run, arguments, words):
    ended, calls = run(*arguments)
    assert_complains(ended, *words, name=NAME)
    assert not calls


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_one_screen_and_names_every_option(flag):
    ended = run_script(NAME, flag)
    assert ended.status == 0 and ended.stderr == ""
    assert len(ended.stdout.splitlines()) < 36
    assert all(name in ended.stdout for p in command.params for name in p.opts)


def run_without_numba_cuda(*arguments):
    """Run the command where numba-cuda cannot be imported."""
    code = "import sys; sys.modules['numba_cuda'] = None\n"
    code += "from numbadsd.cli.dsd_kernels import main; main()"
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=COMPILING,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Ended(process.returncode, process.stdout, process.stderr)


def test_without_numba_cuda_it_is_one_line_with_the_remedy():
    words = "numba-cuda is not installed", "pip install 'numbadsd[cuda]'"
    assert_complains(run_without_numba_cuda(), *words, name=NAME)


def test_without_numba_cuda_there_is_help_all_the_same():
    ended = run_without_numba_cuda("--help")
    assert ended.status == 0 and "--arch" in ended.stdout


def test_in_the_simulator_it_is_one_line_with_the_remedy():
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
    assert_complains(run_script(NAME, env=environment), "NUMBA_ENABLE_CUDASIM", name=NAME)


def test_help_into_a_closed_stdout_is_one_line():
    ended = run_script_into_closed_pipe(NAME, "--help")
    assert_complains(ended, "stdout", status=141, name=NAME)


@needs_compiler
def test_an_architecture_that_this_compiler_does_not_know_is_refused():
    # CUDA 12 has sm_72 alone, CUDA 13 sm_110 alone; the heads end the run where there is one
    ends = [
        run_script(NAME, "--arch", arch, *TOO_MANY_HEADS, env=COMPILING)
        for arch in ("sm_72", "sm_110")
    ]
    for ended in ends:
        assert_complains(ended, name=NAME)
    assert sorted("arch: got" in ended.stderr for ended in ends) == [False, True]


@needs_compiler
@pytest.mark.parametrize(
    ("shape", "words"),
    [(TOO_MANY_HEADS, ["num_heads", "4096"]), (["--head-dim", "512"], ["head_dim", "512"])],
    ids=["heads on a kv head", "head_dim"],
)
def test_a_shape_that_no_gpu_kernel_takes_is_refused(shape, words):
    assert_complains(run_script(NAME, *shape, env=COMPILING), *words, name=NAME)


@needs_compiler
def test_the_status_says_whether_a_kernel_is_over_its_budget(compiled):
    ended, record = compiled
    faulty = [kernel["name"] for kernel in record["kernels"] if kernel["faults"]]
    assert ended.status == (1 if faulty else 0)
    assert ended.stderr.count("\n") == ended.status
    assert all(name in ended.stderr for name in faulty)


@needs_compiler
def test_the_record_says_what_was_compiled_and_with_what(compiled):
    _, record = compiled
    assert record["schema_version"] == 1 and record["command"].startswith(
        "dsd_kernels --arch sm_80"
    )
    assert record["arch"] == "sm_80" and record["multiprocessor"]["compute_capability"] == [8, 0]
    assert record["environment"]["numba_cuda"] and record["environment"]["nvjitlink"]
    [shape] = record["shapes"]
    assert shape == {name: DEFAULTS[name] for name in shape} and len(shape) == 7


@needs_compiler
def test_every_kernel_was_compiled_within_the_registers_that_it_declares(compiled):
    _, record = compiled
    names = [kernel["name"] for kernel in record["kernels"]]
    assert len(names) == len(set(names)) >= 2
    for kernel in record["kernels"]:
        assert 0 < kernel["registers"] <= kernel["max_registers"] <= 255
        assert 0 <= kernel["shared_bytes"] <= 48 * 1024
        assert 0 < kernel["occupancy_fraction"] <= 1


@needs_compiler
def test_the_table_shows_the_record(compiled):
    ended, record = compiled
    rows = {line.split()[0]: line.split() for line in ended.stdout.splitlines() if line.strip()}
    columns = "num_threads registers max_registers stack_bytes shared_bytes".split()
    for kernel in record["kernels"]:
        row = rows[kernel["name"]]
        assert row[1:6] == [str(kernel[name]) for name in columns]
        assert float(row[6]) == pytest.approx(kernel["occupancy_fraction"], abs=5.1e-4)
        assert row[7] == str(kernel["load_bytes"])
