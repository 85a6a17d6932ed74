"""`dsd_bench`: its arguments, its options, its report and its record."""

import re
import shlex
from importlib.util import find_spec

import click
import numba
import numpy as np
import pytest
from click.testing import CliRunner

from numbadsd.cli.dsd_bench import command
from numbadsd.config import DecodeBenchConfig
from tests.bench.contenders import FakeContender
from tests.cli.process import TINY, assert_complains, read_record, run_here, run_script

# As published: the order and the defaults that scripts rely on.
POSITIONALS = [
    ("top_k_pages", 8),
    ("batch_size", 16),
    ("min_context_tokens", 512),
    ("max_context_tokens", 2048),
    ("seed", 7),
    ("iterations", 5),
    ("warmup", 1),
    ("num_heads", 8),
    ("head_dim", 16),
    ("page_size", 16),
]
OPTIONS = {
    "--num-kv-heads", "--kv-dtype", "--summary", "--share", "--sink-pages", "--recent-pages",
    "--data", "--kv-file", "--layer", "--paths", "--fused", "--versus", "--threads", "--json",
}  # fmt: skip
CPU_ONLY = ["--paths", "dense_cpu,sparse_cpu"]


def test_positional_arguments_come_in_the_published_order_with_their_defaults():
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    assert [(argument.name, argument.default) for argument in arguments] == POSITIONALS
    assert not any(argument.required for argument in arguments)
    assert all(argument.type is click.INT and argument.nargs == 1 for argument in arguments)


def test_the_library_has_the_same_order_and_defaults():
    config = DecodeBenchConfig()
    fields = list(DecodeBenchConfig.__dataclass_fields__)[: len(POSITIONALS)]
    assert [(name, getattr(config, name)) for name in fields] == POSITIONALS


def test_every_option_is_there():
    names = {name for p in command.params if isinstance(p, click.Option) for name in p.opts}
    assert OPTIONS <= names


def test_each_positional_argument_reaches_its_field(invoke):
    values = [2, 3, 20, 50, 9, 2, 1, 4, 32, 8]
    _, record = invoke(*values, *CPU_ONLY)
    names = [name for name, _ in POSITIONALS]
    assert [record["config"][name] for name in names] == values
    assert record["data"]["requests"] == 3
    assert len(record["paths"]["dense_cpu"]["total_ms"]["samples"]) == 2
    assert len(record["paths"]["dense_cpu"]["warmup_ms"]) == 1


def test_arguments_that_are_left_out_have_their_defaults(invoke):
    _, record = invoke(4, 2, 16, 40, *CPU_ONLY)
    config = record["config"]
    assert [config[name] for name, _ in POSITIONALS[4:]] == [value for _, value in POSITIONALS[4:]]
    assert config["model"]["num_kv_heads"] == 8 and config["kv_dtype"] == "float32"
    assert (config["summary"], config["share"], config["data"]) == ("mean", "request", "uniform")
    assert config["fused"] is True and config["kv_file"] is None and config["layer"] is None


def test_each_option_reaches_its_field(invoke):
    options = "--num-kv-heads 2 --kv-dtype float16 --summary minmax --share kv_head --sink-pages 1"
    options += " --recent-pages 2 --data structured --staged --paths sparse_cpu,dense_cpu"
    output, record = invoke(*TINY, *options.split())
    model = record["config"]["model"]
    assert (model["num_heads"], model["num_kv_heads"], model["kv_dtype"]) == (8, 2, "float16")
    assert (model["summary"], model["share"]) == ("minmax", "kv_head")
    assert (model["num_sink_pages"], model["num_recent_pages"]) == (1, 2)
    assert record["config"]["data"] == "structured" and record["config"]["fused"] is False
    assert list(record["paths"]) == ["dense_cpu", "sparse_cpu"]
    assert record["paths"]["sparse_cpu"]["stages_ms"]["gather"] > 0
    assert "1 sink + 2 recent forced, staged" in output


def test_options_may_stand_before_and_between_the_arguments(invoke):
    _, record = invoke("--summary", "minmax", *TINY[:2], *CPU_ONLY, *TINY[2:])
    assert record["config"]["summary"] == "minmax" and record["config"]["iterations"] == 1


def test_the_seed_can_be_given_as_an_option_too(invoke):
    _, record = invoke(*TINY[:4], "--seed", 12, *CPU_ONLY)
    assert record["config"]["seed"] == 12


def test_zero_is_a_seed_a_warm_up_and_a_selection(invoke):
    output, record = invoke(0, 2, 16, 16, 0, 1, 0, *CPU_ONLY)
    assert record["quality"]["density"] == 0 and record["config"]["seed"] == 0
    assert record["quality"]["page_recall"] is None
    assert record["paths"]["dense_cpu"]["warmup_ms"] == []


def test_more_pages_than_there_are_is_dense(invoke):
    output, record = invoke(1000, *TINY[1:], *CPU_ONLY)
    assert record["accuracy"]["avg_max_abs_diff_sparse_cpu_vs_dense_cpu"] == 0.0
    assert record["quality"]["density"] == 1.0
    assert re.search(r"^density +1\.0000", output, re.MULTILINE)


def test_a_context_of_one_token_is_measured(invoke):
    _, record = invoke(1, 1, 1, 1, 7, 1, 0, *CPU_ONLY)
    assert record["data"]["context_tokens"] == record["data"]["pages"] == 1


@pytest.mark.parametrize("threads", [1, numba.config.NUMBA_NUM_THREADS])
def test_threads_are_used_and_recorded(invoke, threads):
    output, record = invoke(*TINY, *CPU_ONLY, "--threads", threads)
    assert record["environment"]["num_threads"] == record["config"]["threads"] == threads
    assert f", {threads} threads" in output
    assert numba.get_num_threads() == threads


def test_threads_do_not_change_a_result(invoke):
    _, one = invoke(*TINY, *CPU_ONLY, "--threads", 1)
    _, all_of_them = invoke(*TINY, *CPU_ONLY, "--threads", numba.config.NUMBA_NUM_THREADS)
    assert one["accuracy"] == all_of_them["accuracy"] and one["quality"] == all_of_them["quality"]


@pytest.mark.parametrize("paths", ["dense_cpu", "sparse_cpu", "sparse_cpu,dense_cpu", "dense_gpu"])
def test_only_the_chosen_paths_run(invoke, paths):
    output, record = invoke(*TINY, "--paths", paths)
    assert set(record["paths"]) == set(paths.split(","))
    section = output.split("== End-to-End ==")[1].split("==")[0]
    assert set(re.findall(r"^(?:dense|sparse)_[cg]pu", section, re.MULTILINE)) == {*record["paths"]}


def test_another_librarys_attention_is_measured_when_it_is_asked_for(invoke, monkeypatch):
    monkeypatch.setattr("numbadsd.cli.dsd_bench.find_attention", FakeContender)
    output, record = invoke(*TINY, *CPU_ONLY, "--versus", "torch")
    assert list(record["paths"]) == ["dense_cpu", "sparse_cpu", "torch_sdpa"]
    assert record["config"]["versus"] == "torch"
    assert re.search(
        r"^dense_cpu against torch_sdpa: [\d.]+x \(as one batch;", output, re.MULTILINE
    )
    _, record = invoke(*TINY, *CPU_ONLY)
    assert list(record["paths"]) == ["dense_cpu", "sparse_cpu"]


def test_another_librarys_attention_gets_captured_tensors_too(invoke, monkeypatch, tmp_path):
    monkeypatch.setattr("numbadsd.cli.dsd_bench.find_attention", FakeContender)
    arrays = {"q": np.ones((2, 4, 16)), "k": np.ones((20, 2, 16)), "v": np.ones((20, 2, 16))}
    np.savez(tmp_path / "kv.npz", **{name: a.astype(np.float32) for name, a in arrays.items()})
    _, record = invoke("--kv-file", tmp_path / "kv.npz", *CPU_ONLY, "--versus", "torch")
    assert record["paths"]["torch_sdpa"]["available"] and record["data"]["requests"] == 2


def test_without_torch_its_row_says_so_as_a_process(tmp_path):
    path = tmp_path / "record.json"
    ended = run_script("dsd_bench", *TINY, *CPU_ONLY, "--versus", "torch", "--json", str(path))
    assert ended.status == 0 and ended.stderr == ""
    entry = read_record(path)["paths"]["torch_sdpa"]
    assert entry["available"] is (find_spec("torch") is not None)
    assert ("torch_sdpa unavailable: torch is not installed" in ended.stdout) is (
        not entry["available"]
    )


@pytest.mark.parametrize("value", ["jax", "", "Torch"])
def test_a_library_that_it_does_not_know_is_refused(capsys, value):
    ended = run_here(command, [*TINY, "--versus", value], capsys)
    assert_complains(ended, "--versus", value, "torch")


def test_a_name_with_spaces_is_a_file_like_any_other(tmp_path, num_threads):
    path = tmp_path / "a b ü.json"
    result = CliRunner().invoke(command, [*TINY, *CPU_ONLY, "--json", str(path)])
    assert result.exit_code == 0
    assert read_record(path)["schema_version"] == 1
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_as_a_process_the_report_goes_to_stdout_and_nothing_to_stderr(tmp_path):
    path = tmp_path / "record.json"
    ended = run_script("dsd_bench", *TINY, "--json", str(path))
    assert ended.status == 0 and ended.stderr == ""
    titles = re.findall(r"^== (.+) ==$", ended.stdout, re.MULTILINE)
    assert titles[0] == "Decode Benchmark" and titles[-1] == "Verdict"
    record = read_record(path)
    assert record["command"] == shlex.join(["dsd_bench", *TINY, "--json", str(path)])
    assert ended.stdout.rstrip().endswith(record["verdict"]["sentence"])


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_every_argument_with_its_default_and_every_option(flag):
    ended = run_script("dsd_bench", flag)
    assert ended.status == 0 and ended.stderr == ""
    lines = [line.split() for line in ended.stdout.splitlines()]
    for name, default in POSITIONALS:
        assert [name, str(default)] in lines
    assert all(option in ended.stdout for option in OPTIONS)
    assert "-h, --help" in ended.stdout
