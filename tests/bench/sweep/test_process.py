"""One point in its own process: every way in which it can end."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import psutil
import pytest

from numbadsd.bench.sweep.points import code_version
from numbadsd.bench.sweep.process import Children, LocalExecutor, Task, measure
from tests.bench.sweep.builders import FAKE, is_gone, wait_for
from tests.cli.process import TINY

ENDLESS = ["3", "2", "1000", "1000", "7", "100000000", "0"]
CPU_ONLY = ["--paths", "dense_cpu,sparse_cpu"]

# Measures one endless point, as a sweep does, in a thread that lives as long as this process.
_SWEEP = """
import sys
from numbadsd.bench.sweep.points import code_version
from numbadsd.bench.sweep.process import LocalExecutor, Task
task = Task("dsd_bench", tuple(sys.argv[1:]), 300.0, code_version())
list(LocalExecutor().run([task]))
"""


def run(*arguments, timeout_s=30.0, children=None, code=None):
    """Measure a task that the fake command does."""
    return measure(Task("dsd_bench", arguments, timeout_s, code or code_version(), FAKE), children)


def test_a_command_that_ends_well_gives_its_record_and_what_it_printed():
    found = run("measure", "1")
    assert (found.status, found.reason) == ("ok", None)
    assert found.record["arguments"] == ["measure", "1"]
    assert found.stdout == "words on stdout\n" and 0 < found.wall_s < 30
    assert found.started.endswith("+00:00")


def test_a_command_works_in_a_folder_of_its_own_that_is_removed():
    folder = run("measure").record["folder"]
    assert not os.path.exists(folder) and folder != os.getcwd()


@pytest.mark.parametrize(
    ("what", "status", "reason"),
    [
        ("fail", "failed", "the reason"),
        ("fail mutely", "failed", "ended with status 3, without a word"),
        ("die", "killed", "killed by SIGTERM"),
        ("write nothing", "failed", "ended well, but wrote no record"),
        ("broken", "failed", "ended well, but wrote no record"),
        ("no gpu", "failed", "no GPU here"),
        ("no run", "failed", "nowhere to run"),
    ],
)
def test_a_command_that_does_not_end_well_gives_its_reason(what, status, reason):
    found = run(what)
    assert (found.status, found.reason, found.record) == (status, reason, None)
    assert found.stdout.startswith("words on stdout\n") or what == "die"
    if what == "fail":
        assert "== stderr ==\nfirst line\nthe reason" in found.stdout


def test_a_record_with_one_path_that_ran_is_a_measurement():
    assert run("half").status == "ok"


def test_a_command_has_nothing_to_read():
    assert run("read", timeout_s=10.0).status == "ok"


def test_a_command_that_takes_too_long_is_killed_with_all_that_it_started():
    found = run("hang", timeout_s=0.5)
    assert (found.status, found.reason) == ("timed_out", "took longer than 0.5 s")
    grandchild = int(found.stdout.splitlines()[1])
    assert wait_for(lambda: is_gone(grandchild))


def test_a_command_that_cannot_be_started_is_a_failed_point():
    found = measure(Task("dsd_bench", (), 5.0, code_version(), ("/no/such/program",)))
    assert found.status == "failed" and "cannot start" in found.reason


def test_other_code_than_the_sweep_measures_fails():
    found = run("measure", code="0" * 12)
    assert found.status == "failed" and found.record is None
    assert code_version() in found.reason and "0" * 12 in found.reason


def test_a_command_that_is_not_installed_says_so():
    found = measure(Task("dsd_none", (), 60.0, code_version()))
    assert (found.status, "dsd_none is not installed" in found.reason) == ("failed", True)


def test_the_real_command_gives_its_record_or_its_complaint():
    task = Task("dsd_bench", (*TINY, *CPU_ONLY), 120.0, code_version())
    found = measure(task)
    assert found.status == "ok" and "== Verdict ==" in found.stdout
    assert found.record["paths"]["dense_cpu"]["available"]
    assert "/" not in found.record["command"].split("--json")[1]
    found = measure(replace(task, argv=("3", "2", "0", "0")))
    assert found.status == "failed" and found.reason.startswith("dsd_bench: min_context_tokens")


def children_here():
    """Return the processes that this one has started; other tests may have left some."""
    return set(psutil.Process().children())


def test_closing_ends_what_runs_and_lets_nothing_start():
    children, found, before = Children(), [], children_here()
    thread = threading.Thread(target=lambda: found.append(run("hang", children=children)))
    thread.start()
    assert wait_for(lambda: children_here() - before)
    children.close()
    thread.join(10)
    assert found[0].status == "killed"
    assert "the sweep has ended" in run("measure", children=children).reason


def test_tasks_side_by_side_all_end_and_say_which_they_are():
    tasks = [Task("dsd_bench", (str(i),), 30.0, code_version(), FAKE) for i in range(5)]
    found = dict(LocalExecutor(3).run(tasks))
    assert {i: outcome.record["arguments"] for i, outcome in found.items()} == {
        i: [str(i)] for i in range(5)
    }


def test_tasks_one_after_the_other_end_in_their_order():
    tasks = [Task("dsd_bench", (str(i),), 30.0, code_version(), FAKE) for i in range(3)]
    assert [place for place, _ in LocalExecutor().run(tasks)] == [0, 1, 2]
    assert not list(LocalExecutor().run([]))


def test_leaving_early_ends_what_runs():
    tasks = [Task("dsd_bench", (w,), 30.0, code_version(), FAKE) for w in ("measure", "hang")]
    outcomes, before = LocalExecutor(2).run(tasks), children_here()
    assert next(outcomes)[0] == 0
    start = time.monotonic()
    outcomes.close()
    assert time.monotonic() - start < 10
    assert not children_here() - before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux kills for it")
def test_a_point_dies_with_a_sweep_that_is_killed():
    sweep = subprocess.Popen([sys.executable, "-c", _SWEEP, *ENDLESS, *CPU_ONLY])
    try:
        assert wait_for(lambda: psutil.Process(sweep.pid).children())
        (child,) = psutil.Process(sweep.pid).children()
        assert wait_for(lambda: child.num_threads() > 1)  # it measures, with all threads
        sweep.send_signal(signal.SIGKILL)
        sweep.wait(10)
        assert wait_for(lambda: is_gone(child.pid))
    finally:
        sweep.kill()
        sweep.wait()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux kills for it")
def test_a_point_whose_sweep_was_gone_before_it_began_does_not_begin():
    child = [sys.executable, "-m", "numbadsd.bench.sweep.child", "1", "dsd_bench", *TINY]
    done = subprocess.run(child, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")
