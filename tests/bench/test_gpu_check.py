"""`bench_results/gpu_check.py`: the check for a borrowed GPU, rehearsed in the simulator."""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from numbadsd.kernels.cuda.runtime import why_unavailable

FOLDER = Path(__file__).parents[2] / "bench_results"
SCRIPT = FOLDER / "gpu_check.py"
MOST_FILES = 7
REHEARSED = [
    "versions",
    "reference",
    "gqa",
    "accuracy",
    "ways",
    "host",
    "topk",
    "serving",
    "topk-tune",
]
ALL_STEPS = [
    "versions", "tests", "kernels", "reference", "gqa", "accuracy", "torch", "ways", "host",
    "topk", "serving", "topk-tune", "sanitizer", "profile", "shapes",
]  # fmt: skip

# a step that tells something, starts a process, and then does as its name says
STEP = """
import subprocess, sys, time
print('RESULT {"status": "ok", "figure": "half", "data": {"n": 1}}', flush=True)
name = sys.argv[1]
if name == "tests":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print(child.pid, flush=True)
    time.sleep(60)
if name == "kernels":
    raise OSError("no such device")
print('RESULT {"status": "ok", "figure": "who', flush=True)
print('RESULT {"status": "ok", "figure": "whole", "data": {}}', flush=True)
"""


def check(*arguments, **environment):
    """Run the script to its end."""
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=300,
        env={**os.environ, **environment},
    )  # fmt: skip


def steps_of(folder):
    """Return the steps of a summary, by name and in order."""
    return {
        step["step"]: step for step in json.loads((folder / "summary.json").read_text())["steps"]
    }


@pytest.fixture
def module(monkeypatch):
    """Return an importer of the scripts."""
    monkeypatch.syspath_prepend(FOLDER)
    yield import_module
    for name in ("gpu_check", "_gpu_cases", "_gpu_tools"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_the_steps_run_in_the_simulator(tmp_path):
    if why_unavailable():
        pytest.skip("; ".join(why_unavailable()))
    out = tmp_path / "new" / "folder"
    ended = check(
        "--tiny", "--only", ",".join(REHEARSED), "--out", out, "--commit", "abc",
        NUMBA_ENABLE_CUDASIM="1",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    steps = steps_of(out)
    assert {name: step["status"] for name, step in steps.items()} == dict.fromkeys(REHEARSED, "ok")
    assert str(out) in ended.stdout and all(step["figure"] for step in steps.values())
    assert {file.name for file in out.iterdir()} == {
        "log.txt", "summary.json", "decode.jsonl", "topk.jsonl", "serving.jsonl",
        "topk_tuning.json",
    }  # fmt: skip
    records = [json.loads(line) for line in (out / "decode.jsonl").read_text().splitlines()]
    assert [list(r["config"]["paths"])[-2:] for r in records] == [["dense_gpu", "sparse_gpu"]] * 3
    assert None not in records[-1]["accuracy"].values() and records[-1]["quality"]
    assert [row["path"] for row in steps["host"]["data"]["steps"]] == [
        "dense_gpu",
        "sparse_gpu",
    ] * 4
    served = [json.loads(line) for line in (out / "serving.jsonl").read_text().splitlines()]
    modes = [(r["config"]["benchmark_mode"], r["config"]["preadmit_prompts"]) for r in served]
    assert modes == [("sparse", 1), ("dense_gpu", 0), ("sparse", 1)]
    assert {r["results"]["backend"] for r in served} == {"gpu"}
    assert steps["serving"]["data"]["modes"][-1]["speedup"] > 0
    log = (out / "log.txt").read_text()
    assert log.count("==== ") == len(REHEARSED) and log.count("== Verdict ==") == len(records)


def test_without_time_every_step_is_named_and_none_runs(tmp_path):
    ended = check("--minutes", "0", "--out", tmp_path, "--commit", "abc")
    assert ended.returncode == 0
    steps = steps_of(tmp_path)
    assert list(steps) == ALL_STEPS
    assert {step["status"] for step in steps.values()} == {"skipped"}
    assert all("no time" in step["figure"] for step in steps.values())


def test_the_list_has_the_steps_in_order():
    lines = check("--list").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ALL_STEPS


def test_verify_and_measure_are_all_steps(module):
    gpu_check = module("gpu_check")
    verify, measure = (
        [step.name for step in gpu_check.chosen_steps(None, None, name)]
        for name in ("verify", "measure")
    )
    assert sorted({*verify, *measure}) == sorted(ALL_STEPS) and verify[0] == measure[0]
    assert not set(verify[1:]) & set(measure[1:])


def test_a_step_that_does_not_exist_is_refused():
    ended = check("--only", "versions,nothing")
    assert ended.returncode == 2 and "nothing" in ended.stderr


def test_a_late_or_broken_step_stops_no_other(tmp_path, module, monkeypatch):
    gpu_check = module("gpu_check")
    (tmp_path / "step.py").write_text(STEP)
    monkeypatch.setattr(gpu_check, "STEPS_FILE", tmp_path / "step.py")
    late, broken, well = (gpu_check.Step(n, 2, 1, "") for n in ("tests", "kernels", "host"))
    outcomes = list(gpu_check.run_all((late, broken, well), 1, [], tmp_path, {"commit": "abc"}))
    assert [o.status for o in outcomes] == ["late", "failed", "ok"]
    assert "half" in outcomes[0].figure and outcomes[0].data == {"n": 1}
    assert 2 <= outcomes[0].seconds < 4
    assert "no such device" in outcomes[1].figure
    assert outcomes[2].figure == "whole"
    assert list(steps_of(tmp_path)) == ["tests", "kernels", "host"]
    log = (tmp_path / "log.txt").read_text()
    child = next(line for line in log.splitlines() if line.isdigit())
    assert not is_running(child), "a process of the late step is still there"


def is_running(pid: str) -> bool:
    """Tell whether a process is there and no zombie."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(
    ("left_s", "seconds"),
    # all of its limit, what the others can spare, the least it needs, or nothing
    [(100, 40), (65, 35), (30, 10), (12, 10), (10, 10), (9, 0), (-1, 0)],
)
def test_a_step_leaves_time_for_those_after_it(module, left_s, seconds):
    gpu_check = module("gpu_check")
    step = gpu_check.Step("gqa", 40, 10, "")
    later = (gpu_check.Step("host", 40, 10, ""), gpu_check.Step("torch", 40, 20, ""))
    assert gpu_check.time_for(step, later, left_s) == seconds


@pytest.mark.parametrize(
    ("status", "output", "says"),
    [
        (0, "========= ERROR SUMMARY: 0 errors\n", "0 errors"),
        (0, "========= ERROR SUMMARY: 12 errors\n", "12 errors"),
        (0, "========= RACECHECK SUMMARY: 3 hazards displayed (2 errors, 1 warning)", "3 errors"),
        (1, "========= ERROR SUMMARY: 0 errors\n", "0 errors but status 1"),
        (1, "========= Error: Device not supported\n", "no summary, status 1: Error: Device"),
        (None, "========= ERROR SUMMARY: 0 errors\n", "late"),
    ],
)
def test_what_the_sanitizer_counted_is_read(module, status, output, says):
    assert module("_gpu_tools")._errors(status, output).startswith(says)


def test_what_ncu_read_is_read(module):
    tools = module("_gpu_tools")
    names = ["ID", "Kernel Name", *tools.METRICS]
    rows = [
        names,
        ["", "", "ns", "%", "byte", "%", "register/thread", ""],
        ["0", "a::_3clocals_3e::attend_splits[v1](int)", "1,250", "91.5", "2e9", "45", "96", "9"],
        ["1", "_ZN1a12_3clocals_3e12merge_splitsB2v1", "10", "n/a", "1e3", "20", "32", "4"],
    ]  # fmt: skip
    text = "\n".join(",".join(f'"{cell}"' for cell in row) for row in rows)
    first, second = tools._kernels(f"==PROF== Connected\n{text}\ndecoded\n")
    assert first == {
        "kernel": "attend_splits", "us": 1.25, "dram_percent": 91.5, "read_mb": 2000,
        "occupancy_percent": 45, "registers": 96, "blocks": 9,
    }  # fmt: skip
    assert second["kernel"] == "merge_splits" and second["dram_percent"] != second["dram_percent"]
