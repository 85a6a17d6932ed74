"""Points on the workers of a cluster: the same results, also when a worker is lost."""

import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest

from numbadsd.bench.sweep.points import code_version
from numbadsd.bench.sweep.process import LocalExecutor, Outcome, Task, measure
from numbadsd.integration.dask import ClusterUnavailable, DaskExecutor
from tests.bench.sweep.builders import FAKE
from tests.bench.sweep.test_run import lines_of, make_sweep, run

# Kills the worker that runs it, the first time or every time; its second argument is a file.
_KILLER = """
import os, signal, sys, json
parent, name, what, file, *_, option, record = sys.argv[1:]
if what == "always" or not os.path.exists(file):
    open(file, "w").close()
    os.kill(int(parent), signal.SIGKILL)
open(record, "w").write(json.dumps({"arguments": [what]}))
"""
KILLER = (sys.executable, "-S", "-c", _KILLER)

needs_dask = pytest.mark.skipif(find_spec("distributed") is None, reason="needs distributed")
# what a worker that is killed leaves open is the cluster's
pytestmark = pytest.mark.filterwarnings("ignore")


def lost(reason):
    """Return the outcome of a point that no worker could end."""
    return Outcome("killed", reason)


@pytest.fixture
def address():
    """Start a scheduler and two workers with a nanny each, which starts a killed one anew."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0",
        scheduler_port=0, silence_logs=50,
    ) as cluster:  # fmt: skip
        yield cluster.scheduler_address


def task(*arguments, launcher=FAKE):
    """Return a task that a fake command does."""
    return Task("dsd_bench", arguments, 30.0, code_version(), launcher)


@needs_dask
def test_a_cluster_makes_the_same_table(tmp_path, address):
    tables = []
    executors = {"here": LocalExecutor(), "there": DaskExecutor(address, measure, lost)}
    for name, executor in executors.items():
        sweep = make_sweep(tmp_path / name, 16, 32, 64, code=code_version())
        run(replace(sweep, launcher=FAKE), executor)
        lines = lines_of(tmp_path / name)
        tables.append([(line["point"], line["status"], line["record"]["arguments"])
                       for line in lines])  # fmt: skip
    assert tables[0] == tables[1] and len(tables[0]) == 3


@needs_dask
def test_the_points_of_a_lost_worker_run_again_and_one_that_loses_them_all_is_killed(
    tmp_path, address
):
    tasks = [
        task("once", str(tmp_path / "once"), launcher=KILLER), task("measure"),
        task("always", str(tmp_path / "always"), launcher=KILLER), task("fail"),
    ]  # fmt: skip
    found = dict(DaskExecutor(address, measure, lost).run(tasks))
    assert (tmp_path / "once").exists()
    assert [found[i].status for i in range(4)] == ["ok", "ok", "killed", "failed"]
    assert found[0].record == {"arguments": ["once"]}
    assert found[2].reason.startswith("KilledWorker: Attempted to run task")
    assert "\n" not in found[2].reason and "tcp:" not in found[2].reason


@needs_dask
def test_an_address_where_nobody_answers_is_one_line(monkeypatch):
    monkeypatch.setattr("numbadsd.integration.dask._CONNECT_S", 0.5)
    with pytest.raises(ClusterUnavailable) as error:
        list(DaskExecutor("tcp://127.0.0.1:1", measure, lost).run([task("measure")]))
    assert "no Dask scheduler at tcp://127.0.0.1:1" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ClusterUnavailable, match="no Dask scheduler at what"):
        list(DaskExecutor("what", measure, lost).run([task("measure")]))


@needs_dask
def test_a_cluster_without_workers_is_one_line(monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr("numbadsd.integration.dask._WORKERS_S", 0.5)
    with distributed.LocalCluster(
        n_workers=0, dashboard_address=":0", scheduler_port=0, silence_logs=50
    ) as cluster:
        executor = DaskExecutor(cluster.scheduler_address, measure, lost)
        with pytest.raises(ClusterUnavailable, match="has no workers"):
            list(executor.run([task("measure")]))


def test_without_distributed_the_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ClusterUnavailable, match=r"pip install 'numbadsd\[dask\]'"):
        list(DaskExecutor("tcp://127.0.0.1:1", measure, lost).run([task("measure")]))
