"""How a run ends before its end: Ctrl-C, a reader that left, and how much memory it took."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from tests.cli.process import (
    TINY,
    Ended,
    assert_complains,
    read_record,
    run_script_into_closed_pipe,
    script,
    start,
)

ENDLESS = ["3", "2", "1000", "1000", "7", "100000000", "0"]

# Runs the command, and presses Ctrl-C at the second sample.
INTERRUPT_ITSELF = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
import numbadsd.bench.sampling as sampling
measure, calls = sampling.measure_read_gbps, []
def measure_and_interrupt(*arrays):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGINT)
    return measure(*arrays)
sampling.measure_read_gbps = measure_and_interrupt
from numbadsd.cli.dsd_bench import main
main()
"""


# Prints the most memory, in KiB, that a command had. A process counts what its parent had when it
# was forked as its own: a small parent stands between it and the tests, which may be large.
PEAK_OF_A_CHILD = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def read_until(descriptor, word, timeout_s=120):
    """Read a terminal until a word appears or the other side closes; return what was read."""
    text, deadline = b"", time.monotonic() + timeout_s
    while word not in text and time.monotonic() < deadline:
        if select.select([descriptor], [], [], 1.0)[0]:
            try:
                part = os.read(descriptor, 4096)
            except OSError:  # how Linux says that a terminal was closed
                break
            if not part:
                break
            text += part
    return text


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_stdout_is_one_line_and_the_record_is_written_all_the_same(tmp_path, unbuffered):
    path = tmp_path / "record.json"
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    ended = run_script_into_closed_pipe("dsd_bench", *TINY, "--json", str(path), env=environment)
    assert_complains(ended, "stdout", status=141)
    assert read_record(path)["verdict"]["sentence"]
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]


def test_help_into_a_closed_stdout_is_one_line_too():
    assert_complains(run_script_into_closed_pipe("dsd_bench", "--help"), "stdout", status=141)


def test_an_interrupt_is_one_line_and_leaves_no_record(tmp_path):
    arguments = [*ENDLESS, "--json", str(tmp_path / "record.json")]
    process = subprocess.run(
        [sys.executable, "-c", INTERRUPT_ITSELF, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    ended = Ended(process.returncode, process.stdout, process.stderr)
    assert_complains(ended, "interrupted", status=130)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_in_a_terminal_ends_the_progress_with_one_line(tmp_path):
    terminal, stderr = pty.openpty()
    fcntl.ioctl(stderr, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    arguments = [*ENDLESS, "--json", str(tmp_path / "record.json")]
    process = start("dsd_bench", *arguments, stdout=subprocess.DEVNULL, stderr=stderr)
    os.close(stderr)
    try:
        progress = read_until(terminal, b"measuring")
        assert b"measuring" in progress
        process.send_signal(signal.SIGINT)
        rest = read_until(terminal, b"no such text").decode()
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    assert "Traceback" not in rest
    assert rest.rstrip().splitlines()[-1].split("\r")[-1] == "dsd_bench: interrupted"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_peak_memory_stays_near_the_pool():
    # 4 requests of 12208 tokens, K and V of 8 heads of 128 float32: 8192 bytes a token
    pool_bytes = 4 * 12208 * 8192
    shape = ["8", "4", "12208", "12208", "7", "1", "0", "8", "128", "16"]
    done = subprocess.run(
        [sys.executable, "-c", PEAK_OF_A_CHILD, script("dsd_bench"), *shape],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert pool_bytes < int(done.stdout) * 1024 < 1.3 * pool_bytes + (250 << 20)
