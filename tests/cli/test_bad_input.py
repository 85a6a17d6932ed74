"""Bad arguments: status 2 and one line that says what is wrong, before any work."""

import os
import re
import tracemalloc

import pytest

from numbadsd.cli import dsd_bench as module
from numbadsd.cli.dsd_bench import command
from tests.cli.process import TINY, assert_complains, run_here, run_script

NAMES = (
    "top_k_pages batch_size min_context_tokens max_context_tokens seed iterations warmup "
    "num_heads head_dim page_size"
).split()
GOOD = ["3", "2", "16", "40", "7", "1", "0", "8", "16", "16"]
MAY_BE_ZERO = ("top_k_pages", "seed", "warmup")


@pytest.fixture
def refused(monkeypatch, capsys, num_threads):
    """Return a function that runs arguments which must be refused before any work."""

    def work(*arguments):
        raise AssertionError("work was started")

    monkeypatch.setattr("numbadsd.bench.decode.fill_cache", work)
    monkeypatch.setattr("numbadsd.bench.decode.make_runs", work)

    def run(*arguments, words=()):
        ended = run_here(command, arguments, capsys)
        assert_complains(ended, *words)
        return ended.stderr

    return run


def with_argument(name, value):
    """Return good arguments but for one."""
    arguments = list(GOOD)
    arguments[NAMES.index(name)] = str(value)
    return arguments


@pytest.mark.parametrize("value", ["x", "1.5", "", "1e3", "nan", "0x10", "3 4", "3\n4"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_integer_is_refused_by_name(refused, name, value):
    message = refused(*with_argument(name, value))
    assert name in message.lower()


@pytest.mark.parametrize("name", NAMES)
def test_a_negative_number_is_refused(refused, name):
    refused(*with_argument(name, -1), words=["-1"])
    refused("--", *with_argument(name, -1), words=["-1", name])


@pytest.mark.parametrize("name", [name for name in NAMES if name not in MAY_BE_ZERO])
def test_zero_is_refused_where_it_makes_no_sense(refused, name):
    refused(*with_argument(name, 0), words=[name, "got 0"])


@pytest.mark.parametrize("value", [10**30, 2**63, 2**31])
@pytest.mark.parametrize("name", NAMES)
def test_a_number_that_no_field_holds_is_refused(refused, name, value):
    if name == "seed" and value < 2**32:
        return  # that one is a seed
    refused(*with_argument(name, value), words=[value])


def test_a_minimum_over_the_maximum_is_refused(refused):
    refused("3", "2", "41", "40", words=["min_context_tokens", "41", "40"])


@pytest.mark.parametrize("heads", [3, 0, -2, 9, 10**30, "x"])
def test_kv_heads_that_do_not_divide_the_heads_are_refused(refused, heads):
    refused(*TINY, "--num-kv-heads", heads, words=["kv", heads])


@pytest.mark.parametrize("head_dim", [1, 8, 17, 24, 520, 1024])
def test_a_head_dim_that_no_kernel_takes_is_refused(refused, head_dim):
    refused(*with_argument("head_dim", head_dim), words=["head_dim", head_dim])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--unknown"], ["--unknown"]),
        (["-x"], ["-x"]),
        (["--kv-dtype", "int8"], ["kv-dtype", "int8", "bfloat16"]),
        (["--summary", "median"], ["summary", "median", "minmax"]),
        (["--share", "none"], ["share", "none", "kv_head"]),
        (["--data", "random"], ["data", "random", "structured"]),
        (["--paths", "dense"], ["paths", "dense", "sparse_cpu"]),
        (["--paths", ""], ["paths"]),
        (["--paths", "dense_cpu,,sparse_cpu"], ["paths"]),
        (["--json"], ["--json"]),
        (["--layer", "1"], ["--layer", "--kv-file"]),
        (["--threads", "x"], ["threads", "x"]),
        (["--threads", "0"], ["threads", "0"]),
        (["--threads", "-1"], ["threads", "-1"]),
        (["--threads", str(10**6)], ["threads", 10**6]),
        (["--threads", str(10**30)], ["threads", 10**30]),
        (["--sink-pages", "-1"], ["num_sink_pages", "-1"]),
        (["--recent-pages", str(10**30)], ["num_recent_pages", 10**30]),
        (["--sink-pages", "2", "--recent-pages", "2"], ["4", "top_k_pages = 3"]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_a_bad_option_is_refused(refused, arguments, words):
    refused(*TINY, *arguments, words=words)


def test_too_many_arguments_are_refused(refused):
    refused(*GOOD, "17", words=["17"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["8", "1000", "2000000000", "2000000000"],
        ["8", "1048576", "2147483647", "2147483647", "7", "1", "0", "4096", "512"],
        ["2147483647", "4096", "16", "16", "7", "1", "0", "4096"],
    ],
    ids=["contexts", "everything", "selection"],
)
def test_a_size_beyond_memory_is_refused_with_its_bytes(refused, arguments):
    tracemalloc.start()
    message = refused(*arguments)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    needed = int(re.search(r"([\d,]+) bytes", message)[1].replace(",", ""))
    k, batch, tokens = (int(argument) for argument in arguments[:3])
    heads = int(arguments[7]) if len(arguments) > 7 else 8
    head_dim = int(arguments[8]) if len(arguments) > 8 else 16
    assert needed > 2 * 4 * batch * tokens * heads * head_dim
    assert needed > 4 * batch * min(k, 2**31)
    assert peak_bytes < 100 << 20


def test_a_page_beyond_memory_is_refused_with_its_bytes(refused):
    message = refused("1", "1", "1", "1", "7", "1", "0", "4096", "512", "65536")
    assert f"{2 * 4 * 4096 * 512 * 65536:,}"[:3] in message and "bytes" in message


@pytest.mark.parametrize("where", ["missing/r.json", "", "file/r.json", "x" * 300])
def test_a_record_that_cannot_be_written_is_refused_before_any_work(refused, tmp_path, where):
    (tmp_path / "file").touch()
    before = sorted(tmp_path.iterdir())
    refused(*TINY, "--json", tmp_path / where, words=["--json"])
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_record_in_a_read_only_folder_is_refused(refused, tmp_path):
    tmp_path.chmod(0o500)
    refused(*TINY, "--json", tmp_path / "r.json", words=["--json", "ermission"])
    tmp_path.chmod(0o700)


def test_a_pipe_is_refused_as_a_record_and_stays_a_pipe(refused, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    try:
        refused(*TINY, "--json", tmp_path / "pipe", words=["--json"])
    finally:
        assert (tmp_path / "pipe").is_fifo()


def test_a_record_that_cannot_be_written_in_the_end_is_one_line_after_the_report(
    monkeypatch, capsys, tmp_path
):
    def fail(record, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numbadsd.cli.dsd_bench.write_record", fail)
    arguments = [*TINY, "--paths", "dense_cpu", "--json", tmp_path / "r.json"]
    ended = run_here(command, arguments, capsys)
    assert ended.status != 0
    assert ended.stderr.count("\n") == 1 and "No space left" in ended.stderr
    assert "== Verdict ==" in ended.stdout  # what was measured is not lost


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-1"], ["-1"]),
        (["8", str(10**30)], ["batch_size"]),
        (["8", "1000", "2000000000", "2000000000"], ["bytes"]),
        (["--unknown"], ["--unknown"]),
        (["--threads", "0"], ["threads"]),
        (["--json", "/missing/folder/r.json"], ["/missing/folder/r.json"]),
        (["--kv-file", "/missing/file.npz"], ["/missing/file.npz"]),
    ],
    ids=["negative", "overflow", "memory", "unknown", "threads", "json", "kv-file"],
)
def test_as_a_process_bad_input_is_one_line_too(arguments, words):
    assert_complains(run_script("dsd_bench", *arguments), *words)


def test_an_error_of_our_own_is_no_traceback(monkeypatch, capsys, num_threads):
    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr(module, "run_decode_bench", fail)
    assert_complains(run_here(command, TINY, capsys), "MemoryError")
