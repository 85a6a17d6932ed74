"""Points, lines and commands that are quick to make: what the tests of sweeps share."""

import sys
import time

import psutil

from numbadsd.bench.sweep.points import Point
from numbadsd.bench.sweep.process import Outcome
from tests.bench.records import decode_record

CODE = "0123456789ab"

# Stands for a command: does what its first argument says. It is started as `sweep.child` is.
_COMMAND = """
import json, os, signal, subprocess, sys, time
parent, name, *arguments, option, file = sys.argv[1:]
what = arguments[0]
print("words on stdout")
if what == "fail":
    sys.exit("first line\\nthe reason\\n")
if what == "fail mutely":
    sys.exit(3)
if what == "die":
    os.kill(os.getpid(), signal.SIGTERM)
if what == "hang":
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print(grandchild.pid, flush=True)
    time.sleep(60)
if what == "read":
    sys.stdin.read()
records = {
    "no gpu": {"paths": {"sparse_gpu": {"available": False, "reason": "no GPU here"}}},
    "half": {"paths": {"a": {"available": False, "reason": "no"}, "b": {"available": True}}},
    "no run": {"results": {"continuous_sparse_available": 0, "reason": "nowhere to run"}},
}
if what == "broken":
    open(file, "w").write("{")
elif what != "write nothing":
    record = records.get(what, {"arguments": arguments, "folder": os.getcwd()})
    open(file, "w").write(json.dumps(record))
"""
FAKE = (sys.executable, "-S", "-c", _COMMAND)


def make_point(x=16, experiment="grid", **parameters):
    """Return a point of `dsd_bench` along the context."""
    values = {"batch_size": 2, "context_tokens": x} | parameters
    name = f"batch 2, context {x}"
    return Point(experiment, name, "batch 2", x, "context_tokens", "dsd_bench", values)


def make_points(*places, **parameters):
    """Return points along the context."""
    return [make_point(x, **parameters) for x in places]


def outcome(status="ok", **values):
    """Return an outcome; its record is that of a run on the CPU."""
    values = {"wall_s": 1.5, "started": "2026-01-02T03:04:05+00:00", "stdout": "a report\n"} | (
        values
    )
    if status == "ok":
        return Outcome("ok", record=values.pop("record", decode_record()), **values)
    return Outcome(status, values.pop("reason", "it broke"), **values)


class FakeExecutor:
    """Ends tasks in an order of its own, without running them; may raise instead."""

    def __init__(self, order=None, outcomes=None, error=None):
        self.order, self.outcomes, self.error = order, outcomes or {}, error
        self.tasks, self.is_closed = [], False

    def run(self, tasks):
        """Yield an outcome for each task."""
        self.tasks = list(tasks)
        try:
            for place in self.order or range(len(tasks)):
                yield place, self.outcomes.get(place, outcome())
            if self.error is not None:
                raise self.error
        finally:
            self.is_closed = True


def wait_for(condition, timeout_s=60.0):
    """Wait until a condition holds; return whether it does."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def is_gone(pid):
    """Tell whether a process has ended, waited for or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
