"""Commands as a shell would run them, and inside this process where that says the same."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

import pytest

from numbadsd.cli._run import run_command

# k, requests, contexts of 16 .. 40 tokens, seed, one iteration, no warm-up
TINY = ["3", "2", "16", "40", "7", "1", "0"]


# A child process inherits the simulator from the tests; these hide every GPU as well.
NO_GPU = {"NUMBA_ENABLE_CUDASIM": "0", "CUDA_VISIBLE_DEVICES": ""}


class Ended(NamedTuple):
    """What a command left: its status and what it wrote."""

    status: int
    stdout: str
    stderr: str


def script(name):
    """Return the installed console script."""
    path = Path(sysconfig.get_path("scripts")) / name
    assert path.exists(), f"{name} is not installed beside {sys.executable}"
    return str(path)


def start(name, *arguments, **options):
    """Start a console script in which Ctrl-C works, whatever it does here."""
    options = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) | (
        options
    )
    restore = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    return subprocess.Popen([script(name), *arguments], preexec_fn=restore, **options)


def run_script(name, *arguments, **options):
    """Run a console script to its end."""
    process = start(name, *arguments, text=True, **options)
    stdout, stderr = process.communicate(timeout=300)
    return Ended(process.returncode, stdout or "", stderr or "")


def run_script_into_closed_pipe(name, *arguments, **options):
    """Run a console script whose stdout is a pipe that nobody reads."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        return run_script(name, *arguments, stdout=write_end, **options)
    finally:
        os.close(write_end)


def run_here(command, arguments, capsys):
    """Run a command in this process, as its console script does."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run_command(command, [str(argument) for argument in arguments])
    return Ended(ended.value.code, *capsys.readouterr())


def assert_complains(ended, *words, status=2, name="dsd_bench"):
    """Fail unless a command ended with one line on stderr that holds all the words."""
    assert ended.status == status, ended
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1 and ended.stderr.endswith("\n"), ended.stderr
    assert ended.stderr.startswith(f"{name}: ")
    assert "Traceback" not in ended.stderr
    for word in words:
        assert str(word) in ended.stderr


def refuser(monkeypatch, capsys, command, *work):
    """Return a function that runs arguments which must be refused before any of `work` starts."""

    def start(*arguments, **options):
        raise AssertionError("work was started")

    for name in work:
        monkeypatch.setattr(name, start)

    def run_refused(*arguments, words=()):
        ended = run_here(command, arguments, capsys)
        assert_complains(ended, *words, name=command.name)
        return ended.stderr

    return run_refused


def read_record(path):
    """Return the record in a file, which must be one line of JSON."""
    text = Path(path).read_text(encoding="utf-8")
    assert text.endswith("\n") and text.count("\n") == 1
    return json.loads(text)
