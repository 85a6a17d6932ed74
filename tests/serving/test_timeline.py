"""Timeline: what Chrome and Perfetto read, and a file that is whole or absent."""

import errno
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbadsd.serving.timeline import Timeline


def make_timeline():
    timeline = Timeline()
    timeline.add_step(0, 0.001, {"admit": 0.0005, "decode": 0.002}, {"active": 3, "waiting": 1})
    timeline.add_step(1, 0.004, {"decode": 0.001}, {"active": 2, "waiting": 0})
    return timeline


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_trace_holds_names_stages_and_counters(tmp_path):
    path = tmp_path / "trace.json"
    make_timeline().write_chrome_trace(path)
    trace = read(path)
    assert trace["displayTimeUnit"] == "ms"
    events = trace["traceEvents"]
    assert [e["args"]["name"] for e in events if e["ph"] == "M"] == ["numbadsd serving", "steps"]
    stages = [e for e in events if e["ph"] == "X"]
    assert [(e["name"], e["ts"], e["dur"], e["args"]["step"]) for e in stages] == [
        ("admit", 1000, 500, 0), ("decode", 1500, 2000, 0), ("decode", 4000, 1000, 1),
    ]  # fmt: skip
    assert [(e["ts"], e["args"]) for e in events if e["ph"] == "C"] == [
        (1000, {"active": 3}), (1000, {"waiting": 1}),
        (4000, {"active": 2}), (4000, {"waiting": 0}),
    ]  # fmt: skip
    assert all({"name", "ph", "pid", "tid"} <= e.keys() for e in events)
    assert os.listdir(tmp_path) == ["trace.json"] and path.stat().st_mode & 0o777 == 0o644


def test_a_timeline_without_steps_is_a_valid_trace(tmp_path):
    Timeline().write_chrome_trace(str(tmp_path / "trace.json"))
    assert [e["ph"] for e in read(tmp_path / "trace.json")["traceEvents"]] == ["M", "M"]


def test_a_step_is_copied():
    timeline, stages, counts = Timeline(), {"decode": 1.0}, {"active": 1}
    timeline.add_step(0, 0.0, stages, counts)
    stages["decode"] = counts["active"] = 5
    assert [e.get("dur") for e in timeline.events()][-1] == 1e6 and len(timeline) == 1


seconds = st.floats(0, 10)


@given(st.lists(st.tuples(seconds, st.lists(seconds, max_size=3)), max_size=6))
def test_stages_of_one_track_never_overlap(steps):
    timeline = Timeline()
    for number, (start_s, durations) in enumerate(steps):
        stages = {f"stage {i}": duration for i, duration in enumerate(durations)}
        timeline.add_step(number, start_s, stages, {"active": number})
    end_ns = 0
    for event in timeline.events():
        if event["ph"] == "X":
            start_ns = round(event["ts"] * 1e3)
            assert start_ns >= end_ns
            end_ns = start_ns + round(event["dur"] * 1e3)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused_and_leaves_nothing(tmp_path, value):
    for start_s, stage_s in ((value, 1.0), (1.0, value)):
        timeline = Timeline()
        timeline.add_step(0, start_s, {"decode": stage_s}, {})
        with pytest.raises(ValueError, match="want finite seconds"):
            timeline.write_chrome_trace(tmp_path / "trace.json")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_full_disk_keeps_the_file_that_was_there(tmp_path, monkeypatch, name):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "trace.json"
    path.write_text("old")
    monkeypatch.setattr(os, name, fail)
    with pytest.raises(OSError, match="No space left on device") as error:
        make_timeline().write_chrome_trace(path)
    assert "\n" not in str(error.value)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["trace.json"]


def test_a_folder_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        make_timeline().write_chrome_trace(tmp_path / "no" / "trace.json")
