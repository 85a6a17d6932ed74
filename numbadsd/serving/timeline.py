"""Timeline: the steps of a run with their stages, as a trace that Chrome and Perfetto show."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from numbadsd.config import check
from numbadsd.files import replacing

PROCESS_ID = THREAD_ID = 1
NAMES = (("process_name", "numbadsd serving"), ("thread_name", "steps"))


class TimelineStep(NamedTuple):
    """One step: when it began, its stages in order, and what was counted in it."""

    number: int
    start_s: float
    stages: dict[str, float]
    counts: dict[str, float]


class Timeline:
    """Steps in the order in which they were done; written once, at the end of a run."""

    def __init__(self):
        self._steps: list[TimelineStep] = []

    def __len__(self) -> int:
        return len(self._steps)

    def add_step(
        self, number: int, start_s: float, stages: dict[str, float], counts: dict[str, float]
    ) -> None:
        """Take note of a step.

        Parameters
        ----------
        number : int
            The step's number.
        start_s : float
            When it began.
        stages : dict
            Seconds of each stage, in the order in which they were done.
        counts : dict
            What there was in the step: active and waiting requests, pages.
        """
        self._steps.append(TimelineStep(number, start_s, dict(stages), dict(counts)))

    def events(self) -> Iterator[dict]:
        """Yield the trace's events: names (M), stages (X) and counters (C), in microseconds.

        A viewer nests events of one track by their times, so that stages that overlap are drawn
        wrongly. A clock may give a step less time than its stages took; a step therefore never
        begins before the end of the one before it.
        """
        base = {"pid": PROCESS_ID, "tid": THREAD_ID}
        for name, value in NAMES:
            yield {"name": name, "ph": "M", **base, "args": {"name": value}}
        end_ns = 0
        for step in self._steps:
            start_ns = max(end_ns, _nanoseconds("start_s", step.start_s))
            for name, count in step.counts.items():
                args = {"name": name, "ph": "C", "ts": start_ns / 1e3, **base}
                yield args | {"args": {name: count}}
            end_ns = start_ns
            for name, duration_s in step.stages.items():
                duration_ns = _nanoseconds(name, duration_s)
                times = {"ts": end_ns / 1e3, "dur": duration_ns / 1e3}
                yield {"name": name, "cat": "stage", "ph": "X", **times, **base} | {
                    "args": {"step": step.number}
                }
                end_ns += duration_ns

    def write_chrome_trace(self, path: Path | str) -> None:
        """Write the trace; OSError when it cannot be, and what was at `path` is still there."""
        with replacing(Path(path)) as file:
            file.write('{"displayTimeUnit":"ms","traceEvents":[')
            separator = "\n"
            for event in self.events():  # one by one: a long run has millions
                file.write(separator + json.dumps(event, allow_nan=False))
                separator = ",\n"
            file.write("\n]}\n")


def _nanoseconds(name: str, seconds: float) -> int:
    """Return whole nanoseconds: ends and starts that are equal stay equal."""
    check(0 <= seconds < float("inf"), name, seconds, "finite seconds from 0 on")
    return round(seconds * 1e9)
