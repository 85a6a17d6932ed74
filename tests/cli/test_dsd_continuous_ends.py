"""How `dsd_continuous_bench` ends: no GPU, Ctrl-C, a backend that fails, a reader that left."""

import json
import os
import signal
import subprocess
import sys
from functools import partial

import pytest

from numbadsd.cli import dsd_continuous_bench as module
from numbadsd.cli.dsd_continuous_bench import command
from numbadsd.kernels.cuda.runtime import why_unavailable
from numbadsd.serving.backend import CacheBackend
from tests.cli.continuous import NAME, ONE_THREAD, TINY, run_measured
from tests.cli.process import (
    NO_GPU,
    Ended,
    assert_complains,
    read_record,
    run_here,
    run_script,
    run_script_into_closed_pipe,
)


@pytest.fixture
def run(capsys, tmp_path, num_threads):
    """Return a function that runs the command here; gives its lines, its record and its output."""
    return partial(run_measured, capsys, tmp_path / "record.json")


# ---- GPU modes


@pytest.mark.parametrize(("mode", "label"), [("0", "sparse"), ("1", "dense_gpu")])
def test_without_a_gpu_its_modes_say_so_and_end_well(monkeypatch, run, mode, label):
    problem = ("no GPU was found", "plug one in")
    monkeypatch.setattr("numbadsd.bench.serving_setup.why_unavailable", lambda: problem)
    lines, record, ended = run(*TINY, *"1000011", mode, "--backend", "gpu")
    assert lines[f"continuous_{label}_available"] == "0" and ended.stderr == ""
    assert lines["reason"] == "no GPU was found; plug one in"
    assert record["results"] == {f"continuous_{label}_available": 0, "reason": lines["reason"]}
    assert "no GPU was found" in run(*TINY, "--backend", "gpu", "--report")[2].stdout


def test_as_a_process_without_a_gpu_the_reason_is_printed():
    ended = run_script(NAME, *TINY, "--backend", "gpu", env=os.environ | NO_GPU)
    assert (ended.status, ended.stderr) == (0, "")
    assert "continuous_sparse_available=0\nreason=" in ended.stdout


@pytest.mark.slow
def test_gpu_modes_in_the_simulator_make_the_same_tokens(run):
    if why_unavailable():
        pytest.skip("; ".join(why_unavailable()))
    tiny = ["2", "2", "1", "5", "9", "1", "2", "7", "2", "16", "4", "1"]
    tokens = set()
    for modes in ("0000011", "1000011", "2100121", "1001121"):
        lines, _, _ = run(*tiny, *modes, "0", "--backend", "gpu", "--no-serial")
        assert lines["backend"] == "gpu"
        tokens.add(lines["total_generated_tokens"])
    assert len(tokens) == 1 and tokens == {run(*tiny)[0]["total_generated_tokens"]}


# ---- ends


# Runs the command, and interrupts itself after these steps.
INTERRUPT_ITSELF = """
import os, signal, threading
from numbadsd.serving.engine import Engine
note, steps = Engine._note, []
def note_and_interrupt(*arguments):
    note(*arguments)
    steps.append(1)
    for i in range({at}.count(len(steps) - WARM_UP)):
        if {delay_s}:
            threading.Timer({delay_s}, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            os.kill(os.getpid(), signal.SIGINT)
Engine._note = note_and_interrupt
import numbadsd.bench.serving as serving
warm_up = serving.warm_up
def warm_up_and_count(*arguments):
    global WARM_UP
    warm_up(*arguments)
    WARM_UP = len(steps)
serving.warm_up, WARM_UP = warm_up_and_count, 1000
from numbadsd.cli.dsd_continuous_bench import main
main()
"""


def interrupted(*arguments, at, delay_s=0):
    """Run the command as a process that presses Ctrl-C after these steps, or a while later."""
    code = INTERRUPT_ITSELF.replace("{at}", repr(at)).replace("{delay_s}", repr(delay_s))
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, [*arguments, *ONE_THREAD])],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(("at", "cancelled"), [([2], False), ([1, 2], True), ([2, 2], True)])
def test_ctrl_c_prints_and_records_what_was_done(tmp_path, at, cancelled):
    file, timeline = tmp_path / "record.json", tmp_path / "timeline.json"
    ended = interrupted(*TINY, "--json", file, "--timeline", timeline, at=at)
    assert ended.status == 130
    lines = dict(line.split("=", 1) for line in ended.stdout.splitlines())
    serving = read_record(file)["results"]["serving"]
    names = ("completed", "cancelled", "not_started")
    assert sum(serving[name] for name in names) == 6 and serving["not_started"] > 0
    assert lines["serving_not_started"] == str(serving["not_started"])
    assert (serving["cancelled"] > 0) == cancelled
    assert json.loads(timeline.read_text())["traceEvents"]
    said = ended.stderr.splitlines()
    assert said[0] == f"{NAME}: stopping, finishing what is active"
    assert len(said) == 1 + len(at) and said[-1].startswith(f"{NAME}: stopped: ")
    assert f"{serving['not_started']} not started" in said[-1]
    assert lines["continuous_vs_serial_speedup"] == "nan"


def test_ctrl_c_ends_a_wait_for_arrivals():
    # the first request comes at once, the next one after a minute
    seed_2 = ["3", "1", "0", "4", "4", "2", "2", "2", *TINY[8:]]
    sparse = ["--request-rate", "0.02", "--burstiness", "0.1", "--clock", "wall"]
    ended = interrupted(*seed_2, *sparse, at=[2], delay_s=0.2)
    assert ended.status == 130 and "1 completed, 0 cancelled, 2 not started" in ended.stderr


class Broken(CacheBackend):
    """Fails in its third step."""

    num_decodes = 0

    def decode(self, *arguments):
        self.num_decodes += 1
        if self.num_decodes == 3:
            raise RuntimeError("the device fell off\nand broke")
        super().decode(*arguments)


def test_a_backend_that_fails_is_one_line_after_what_was_done(monkeypatch, run):
    monkeypatch.setattr("numbadsd.bench.serving.warm_up", lambda *arguments: None)
    monkeypatch.setattr("numbadsd.bench.serving_setup.CacheBackend", Broken)
    lines, record, ended = run(*TINY, status=2)
    assert ended.stderr.count("\n") == 1 and ended.stderr.startswith(f"{NAME}: step 2 failed")
    assert "the device fell off" in ended.stderr and "are lost" in ended.stderr
    assert lines["error"] == record["results"]["error"] == ended.stderr.strip()[len(NAME) + 2 :]
    assert 0 < int(lines["total_generated_tokens"]) < 20
    assert int(lines["serving_failed"]) > 0 and lines["continuous_vs_serial_speedup"] == "nan"
    assert "error: step 2 failed" in run(*TINY, "--report", status=2)[2].stdout


def test_a_full_disk_does_not_lose_what_was_measured(monkeypatch, capsys, tmp_path, num_threads):
    def fail(record, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_record", fail)
    ended = run_here(command, [*TINY, *ONE_THREAD, "--json", tmp_path / "r.json"], capsys)
    assert ended.status != 0 and "No space left" in ended.stderr
    assert "continuous_vs_serial_speedup=" in ended.stdout


def test_a_closed_stdout_is_one_line(tmp_path):
    arguments = [*TINY, *ONE_THREAD, "--json", str(tmp_path / "r.json")]
    ended = run_script_into_closed_pipe(NAME, *arguments)
    assert_complains(ended, "stdout", status=141, name=NAME)
    assert read_record(tmp_path / "r.json")["results"]["serving"]["completed"] == 6


def test_signals_do_what_they_did_before_when_the_command_has_ended(run):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run(*TINY, "--no-serial")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
