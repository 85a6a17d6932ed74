"""Clocks: arrivals, and the seconds that metrics are made of."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbadsd.serving.clock import MAX_SLEEP_S, StepClock, VirtualClock, WallClock
from numbadsd.serving.request import Request


def arriving(arrival):
    return Request(3, arrival, 1, 1)


class FakeTime:
    """A timer that only moves when somebody sleeps."""

    def __init__(self, start_s=100.0, wakes_early=False):
        self.now_s, self.wakes_early, self.naps = start_s, wakes_early, []

    def timer(self):
        return self.now_s

    def sleep(self, seconds):
        self.naps.append(seconds)
        self.now_s += max(1e-3, seconds * (0.6 if self.wakes_early else 1.0))


def test_names():
    assert [c.name for c in (StepClock, VirtualClock, WallClock)] == ["steps", "virtual", "wall"]


@pytest.mark.parametrize("clock", [StepClock(), VirtualClock(), WallClock(timer=lambda: 9.0)])
def test_a_clock_starts_at_zero(clock):
    assert clock.time_s() == clock.now() == 0.0


def test_steps_are_counted_and_their_durations_added():
    clock = StepClock()
    clock.after_step(0.5)
    clock.after_step(0.25)
    assert (clock.now(), clock.time_s()) == (2.0, 0.75)
    clock.wait_until(7)
    clock.wait_until(4)  # over already
    assert (clock.now(), clock.time_s()) == (7.0, 0.75)
    clock.after_step(1.0)
    assert [clock.arrival_time_s(arriving(a)) for a in (0, 1, 1.5, 2, 3, 7, 7.5, 8)] == [
        0, 0.5, 0.75, 0.75, 0.75, 0.75, 1.75, 1.75,
    ]  # fmt: skip


def test_a_fraction_of_a_step_arrives_with_the_next_step():
    clock = StepClock()
    clock.wait_until(2.3)
    assert clock.now() == 3.0


def test_a_step_that_has_not_come_has_no_time():
    with pytest.raises(ValueError, match="request 3 arrives at step 1, it is step 0"):
        StepClock().arrival_time_s(arriving(1))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=30))
def test_an_arrival_has_the_time_of_the_first_step_that_reached_it(moves):
    clock, history = StepClock(), [(0, 0.0)]
    for is_wait, value in moves:
        if is_wait:
            clock.wait_until(value)
        else:
            clock.after_step(value / 4)
        history.append((clock.now(), clock.time_s()))
    for arrival in range(int(clock.now()) + 1):
        want = next(time_s for now, time_s in history if now >= arrival)
        assert clock.arrival_time_s(arriving(arrival)) == want


def test_virtual_seconds_pass_as_measured_or_as_told():
    measured, exact = VirtualClock(), VirtualClock(step_ms=250)
    for clock in (measured, exact):
        clock.after_step(0.5)
    assert (measured.now(), exact.now()) == (0.5, 0.25)
    for clock in (measured, exact):
        clock.wait_until(0.375)
        assert clock.arrival_time_s(arriving(0.125)) == 0.125
    assert (measured.time_s(), exact.time_s()) == (0.5, 0.375)


@pytest.mark.parametrize("step_ms", [0, -1.0, float("inf"), float("nan")])
def test_a_wrong_step_is_refused(step_ms):
    with pytest.raises(ValueError, match="^step_ms: got"):
        VirtualClock(step_ms)


@pytest.mark.parametrize("clock", [StepClock(), VirtualClock(), WallClock()])
@pytest.mark.parametrize("duration_s", [-1e-9, float("nan"), float("inf")])
def test_a_wrong_duration_is_refused(clock, duration_s):
    with pytest.raises(ValueError, match="^duration_s: got"):
        clock.after_step(duration_s)


@pytest.mark.parametrize("wakes_early", [False, True])
def test_real_time_is_slept_through_in_short_naps(wakes_early):
    fake = FakeTime(wakes_early=wakes_early)
    clock = WallClock(fake.sleep, fake.timer)
    assert clock.now() == 0.0
    clock.wait_until(0.22)
    assert clock.now() == pytest.approx(0.22, abs=2e-3) and max(fake.naps) == MAX_SLEEP_S
    num_naps = len(fake.naps)
    clock.wait_until(0.1)
    clock.after_step(5.0)
    assert len(fake.naps) == num_naps and clock.time_s() == pytest.approx(0.22, abs=2e-3)
    assert clock.arrival_time_s(arriving(0.1)) == 0.1


def test_a_sleep_may_end_the_wait():
    def stop(seconds):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        WallClock(stop, lambda: 1.0).wait_until(5)


def test_real_time_passes():
    clock = WallClock()
    clock.now()
    clock.wait_until(0.002)
    assert clock.now() >= 0.002
