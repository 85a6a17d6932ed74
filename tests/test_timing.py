"""The clock of a decode step: laps leave nothing out; statistics of samples."""

import json

import numpy as np
import pytest

from numbadsd import timing
from numbadsd.timing import STAGES, StageClock, sample_statistics
from numbadsd.types import StageTimes


@pytest.fixture
def clock_at(monkeypatch):
    """Return a function that sets the time, in seconds, which the clock reads."""
    now = [100.0]
    monkeypatch.setattr(timing, "perf_counter", lambda: now[0])
    return lambda seconds: now.__setitem__(0, 100.0 + seconds)


def test_a_lap_is_the_time_since_the_one_before(clock_at):
    clock = StageClock()
    for seconds, name in ((0.001, "page_table"), (0.003, "score"), (0.006, "attend")):
        clock_at(seconds)
        clock.lap(name)
    times = clock.times()
    assert times.score_ms == pytest.approx(2.0)
    assert times.attend_ms == pytest.approx(3.0)
    assert times.overheads_ms == pytest.approx({"page_table": 1.0})
    assert times.topk_ms == times.gather_ms == 0.0
    assert times.total_ms == pytest.approx(6.0)


def test_laps_of_one_name_add_up(clock_at):
    clock = StageClock()
    for seconds, name in ((1, "malloc"), (2, "score"), (4, "malloc"), (8, "score")):
        clock_at(seconds)
        clock.lap(name)
    times = clock.times()
    assert times.overheads_ms == pytest.approx({"malloc": 3000.0})
    assert times.score_ms == pytest.approx(5000.0)


def test_parts_timed_inside_a_lap_leave_the_rest_of_it_to_a_name(clock_at):
    clock = StageClock()
    clock_at(1)
    clock.lap("malloc")
    clock_at(3)
    clock.lap_parts({"score": 300_000_000, "attend": 1_200_000_000}, rest="launch")
    times = clock.times()
    assert (times.score_ms, times.attend_ms) == pytest.approx((300.0, 1200.0))
    assert times.overheads_ms == pytest.approx({"malloc": 1000.0, "launch": 500.0})
    assert times.total_ms == pytest.approx(3000.0)


def test_the_total_ends_with_the_last_lap(clock_at):
    clock = StageClock()
    clock_at(1)
    clock.lap("attend")
    clock_at(9)
    assert clock.times().total_ms == pytest.approx(1000.0)


def test_a_clock_without_laps_has_measured_nothing(clock_at):
    clock = StageClock()
    clock_at(5)
    assert clock.times() == StageTimes()


def test_real_laps_add_up_to_the_total():
    clock = StageClock()
    for name in (*STAGES, "malloc", "page_table") * 50:
        clock.lap(name)
    times = clock.times()
    parts = [getattr(times, f"{name}_ms") for name in STAGES]
    assert min(parts) > 0
    assert sum(parts) + sum(times.overheads_ms.values()) == pytest.approx(times.total_ms)


def test_stages_come_in_the_order_of_a_step():
    assert STAGES == ("score", "topk", "gather", "attend")


def test_statistics_interpolate_between_samples():
    statistics = sample_statistics([4.0, 1.0, 3.0, 2.0])
    assert statistics.pop("samples") == [4.0, 1.0, 3.0, 2.0]
    assert statistics == pytest.approx({"median": 2.5, "p95": 3.85, "min": 1.0})


def test_statistics_of_one_sample_are_that_sample():
    assert sample_statistics([7.0]) == {"median": 7.0, "p95": 7.0, "min": 7.0, "samples": [7.0]}


def test_statistics_are_plain_numbers_that_json_can_hold():
    statistics = sample_statistics(np.array([1, 2, 4], np.float32))
    assert json.loads(json.dumps(statistics)) == statistics
