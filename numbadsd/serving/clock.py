"""Clocks: what "now" means to arrivals, and what time it is to metrics."""

import time
from bisect import bisect_left
from collections.abc import Callable
from math import ceil
from typing import Protocol

from numbadsd.config import check
from numbadsd.serving.request import Request

MAX_SLEEP_S = 0.05  # so that a `sleep` that watches for a stop signal is soon asked again


class Clock(Protocol):
    """What the engine asks a clock, and tells it.

    `now` is in the units of `Request.arrival`; `time_s` is in seconds, for metrics. Both start at
    0 and never go back.
    """

    name: str

    def now(self) -> float:
        """Return the time that arrivals are compared with."""

    def time_s(self) -> float:
        """Return the time that metrics are made of."""

    def after_step(self, duration_s: float) -> None:
        """Take note that a step was done, and how long it took."""

    def wait_until(self, arrival: float) -> None:
        """Let the time pass until `now` has reached an arrival."""

    def arrival_time_s(self, request: Request) -> float:
        """Return when a request arrived, in the seconds of `time_s`."""


class StepClock:
    """Logical steps: a request arrives before a step, however long steps take.

    `time_s` is the sum of the steps' durations; waiting takes none.
    """

    name = "steps"

    def __init__(self):
        self._steps = [0]  # ascending; `_steps[i]` was first reached at `_times_s[i]`
        self._times_s = [0.0]
        self._time_s = 0.0

    def now(self) -> float:
        """Return the number of steps that are over."""
        return float(self._steps[-1])

    def time_s(self) -> float:
        """Return how long the steps took together."""
        return self._time_s

    def after_step(self, duration_s: float) -> None:
        """Count a step."""
        _check_duration(duration_s)
        self._time_s += duration_s
        self._reach(self._steps[-1] + 1)

    def wait_until(self, arrival: float) -> None:
        """Jump to the first step that an arrival can take part in."""
        if arrival > self._steps[-1]:
            self._reach(ceil(arrival))

    def arrival_time_s(self, request: Request) -> float:
        """Return when `now` first reached a request's arrival; it must have."""
        position = bisect_left(self._steps, request.arrival)
        if position == len(self._steps):
            raise ValueError(
                f"request {request.request_id} arrives at step {request.arrival:g}, "
                f"it is step {self._steps[-1]}"
            )
        return self._times_s[position]

    def _reach(self, step: int) -> None:
        self._steps.append(step)
        self._times_s.append(self._time_s)


class VirtualClock:
    """Seconds that pass only in steps: by what was measured, or by so much exactly.

    Parameters
    ----------
    step_ms : float | None
        Duration of every step; None for the measured one. Given, a run is deterministic.
    """

    name = "virtual"

    def __init__(self, step_ms: float | None = None):
        if step_ms is not None:
            check(0 < step_ms < float("inf"), "step_ms", step_ms, "a finite number above 0")
        self._step_s = None if step_ms is None else step_ms * 1e-3
        self._now_s = 0.0

    def now(self) -> float:
        """Return the seconds that passed."""
        return self._now_s

    def time_s(self) -> float:
        """Return the seconds that passed."""
        return self._now_s

    def after_step(self, duration_s: float) -> None:
        """Let a step's time pass."""
        _check_duration(duration_s)
        self._now_s += duration_s if self._step_s is None else self._step_s

    def wait_until(self, arrival: float) -> None:
        """Jump to an arrival."""
        self._now_s = max(self._now_s, arrival)

    def arrival_time_s(self, request: Request) -> float:
        """Return the request's arrival."""
        return request.arrival


class WallClock:
    """Real seconds since the first question.

    Parameters
    ----------
    sleep : callable
        Waits so many seconds, or fewer; asked again until the time has come. What it raises ends
        the wait.
    timer : callable
        Returns seconds that never go back.
    """

    name = "wall"

    def __init__(
        self,
        sleep: Callable[[float], None] = time.sleep,
        timer: Callable[[], float] = time.perf_counter,
    ):
        self._sleep = sleep
        self._timer = timer
        self._start_s: float | None = None

    def now(self) -> float:
        """Return the seconds that passed."""
        return self.time_s()

    def time_s(self) -> float:
        """Return the seconds that passed."""
        time_s = self._timer()
        if self._start_s is None:
            self._start_s = time_s
        return time_s - self._start_s

    def after_step(self, duration_s: float) -> None:
        """Do nothing: the time has passed."""
        _check_duration(duration_s)

    def wait_until(self, arrival: float) -> None:
        """Sleep until an arrival."""
        while (missing_s := arrival - self.now()) > 0:
            self._sleep(min(missing_s, MAX_SLEEP_S))

    def arrival_time_s(self, request: Request) -> float:
        """Return the request's arrival."""
        return request.arrival


def _check_duration(duration_s: float) -> None:
    check(0 <= duration_s < float("inf"), "duration_s", duration_s, "a finite number from 0 on")
