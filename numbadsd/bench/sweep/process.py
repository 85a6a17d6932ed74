"""Measuring one point: in a process of its own, with a time limit, whatever becomes of it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from threading import Lock
from time import perf_counter

from numbadsd.bench.sweep.points import code_version

RECORD_FILE = "record.json"
_LAST_WORDS_S = 10.0  # to read what a killed process left in its pipes


@dataclass(frozen=True)
class Task:
    """What measures a point.

    Attributes
    ----------
    command, argv : str, tuple of str
        The command and its arguments.
    timeout_s : float
        The longest that it may take.
    code : str
        The code version to measure; another one makes the point fail.
    launcher : tuple of str
        What starts the command: it gets this process's id, then `command` and `argv`. By default
        `sweep.child`, run by the Python that runs here.
    """

    command: str
    argv: tuple[str, ...]
    timeout_s: float
    code: str
    launcher: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What came of a point (see `records.PointResult`), and when; `stdout` has stderr behind it."""

    status: str
    reason: str | None = None
    record: dict | None = None
    wall_s: float = 0.0
    started: str | None = None
    stdout: str = ""


class Children:
    """The processes that measure now; all can be ended at once, and then none starts."""

    def __init__(self):
        self._lock = Lock()
        self._running: set[subprocess.Popen] = set()
        self._is_closed = False

    def start(self, command: Sequence[str], folder: str) -> subprocess.Popen:
        """Start a process, in a session of its own, whose folder is `folder`."""
        with self._lock:
            if self._is_closed:
                raise InterruptedError("the sweep has ended")
            process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True,
            )  # fmt: skip
            self._running.add(process)
            return process

    def forget(self, process: subprocess.Popen) -> None:
        """Leave a process that has ended alone: its id may belong to another one."""
        with self._lock:
            self._running.discard(process)

    def close(self) -> None:
        """End all processes."""
        with self._lock:
            self._is_closed = True
            for process in self._running:
                _kill(process)


def measure(task: Task, children: Children | None = None) -> Outcome:
    """Run a task to its end; every way in which it can end is an outcome."""
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    code = code_version()
    if code != task.code:
        reason = f"the code here is {code}, the sweep measures {task.code}"
        return Outcome("failed", reason, started=started)
    launcher = task.launcher or (sys.executable, "-m", "numbadsd.bench.sweep.child")
    with tempfile.TemporaryDirectory(prefix="dsd_sweep_") as folder:
        command = [*launcher, str(os.getpid()), task.command, *task.argv, "--json", RECORD_FILE]
        start = perf_counter()
        try:
            status, stdout, stderr = _run(command, folder, task.timeout_s, children or Children())
        except OSError as error:
            return Outcome("failed", f"cannot start: {error}", started=started)
        wall_s = perf_counter() - start
        record = _read_record(Path(folder) / RECORD_FILE)
    verdict, reason = _judge(status, stderr, record, task.timeout_s)
    text = stdout + (f"\n== stderr ==\n{stderr}" if stderr else "")
    return Outcome(
        verdict, reason, record if verdict == "ok" else None, round(wall_s, 3), started, text
    )


def _run(command, folder: str, timeout_s: float, children: Children):
    """Return (status, stdout, stderr); the status is None when the time was over."""
    process = children.start(command, folder)
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
        return process.returncode, stdout, stderr
    except subprocess.TimeoutExpired:
        _kill(process)
        with suppress(subprocess.TimeoutExpired):
            return None, *process.communicate(timeout=_LAST_WORDS_S)
        return None, "", ""
    finally:
        _kill(process)
        children.forget(process)


def _kill(process: subprocess.Popen) -> None:
    """Kill a process and what it started, unless it has been waited for."""
    if process.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _read_record(file: Path) -> dict | None:
    """Return the record that a command wrote, None when there is none that is whole."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _judge(
    status: int | None, stderr: str, record: dict | None, limit_s: float
) -> tuple[str, str | None]:
    """Return a point's status and, unless it is ok, the reason."""
    last_words = next((line for line in reversed(stderr.splitlines()) if line.strip()), "")
    if status is None:
        return "timed_out", f"took longer than {limit_s:g} s"
    if status < 0:
        return "killed", f"killed by {_signal_name(-status)}"
    if status:
        return "failed", last_words.strip() or f"ended with status {status}, without a word"
    if record is None:
        return "failed", "ended well, but wrote no record"
    reason = _nothing_measured(record)
    return ("ok", None) if reason is None else ("failed", reason)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _nothing_measured(record: dict) -> str | None:
    """Return why nothing at all could run, None when something did."""
    paths = record.get("paths")
    if paths:
        reasons = [path.get("reason") for path in paths.values() if not path.get("available")]
        return reasons[0] if len(reasons) == len(paths) else None
    results = record.get("results", {})
    available = [value for key, value in results.items() if key.endswith("_available")]
    return None if any(available) or not available else results.get("reason", "nothing could run")


class LocalExecutor:
    """Measures points on this machine, `jobs` at once."""

    def __init__(self, jobs: int = 1):
        self._jobs = jobs

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Outcome]]:
        """Yield (place of the task, outcome) as they end; closing it ends what still runs."""
        children = Children()
        with ThreadPoolExecutor(self._jobs) as pool:
            places = {pool.submit(measure, task, children): i for i, task in enumerate(tasks)}
            try:
                for future in as_completed(places):
                    yield places[future], future.result()
            finally:
                children.close()
                pool.shutdown(wait=False, cancel_futures=True)
