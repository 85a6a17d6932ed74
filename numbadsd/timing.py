"""Clocks: where the time of a decode step goes, and how samples are summarised."""

from time import perf_counter

import numpy as np

from numbadsd.types import StageTimes

STAGES = ("score", "topk", "gather", "attend")


class StageClock:
    """Host clock of one decode step: each lap is the time since the one before it.

    Nothing is timed twice and nothing is left out, so that laps add up to the total.
    """

    def __init__(self):
        self._laps_ms: dict[str, float] = {}
        self._start = self._last = perf_counter()

    def lap(self, name: str) -> None:
        """Add the time since the last lap to a stage (of `STAGES`) or to a named overhead."""
        now = perf_counter()
        self._laps_ms[name] = self._laps_ms.get(name, 0.0) + (now - self._last) * 1e3
        self._last = now

    def lap_parts(self, parts_ns: dict[str, int], rest: str) -> None:
        """Add the time since the last lap to parts timed inside it, and what is left to `rest`."""
        for name, part_ns in parts_ns.items():
            self._laps_ms[name] = self._laps_ms.get(name, 0.0) + part_ns / 1e6
        self._laps_ms[rest] = self._laps_ms.get(rest, 0.0) - sum(parts_ns.values()) / 1e6
        self.lap(rest)

    def times(self, kernel_ms: float = 0.0) -> StageTimes:
        """Return the times from the construction of the clock up to the last lap."""
        stages_ms = {f"{name}_ms": self._laps_ms.pop(name, 0.0) for name in STAGES}
        total_ms = (self._last - self._start) * 1e3
        return StageTimes(
            **stages_ms, total_ms=total_ms, overheads_ms=self._laps_ms, kernel_ms=kernel_ms
        )


def sample_statistics(samples) -> dict:
    """Return median, p95 (linear interpolation) and min of samples, and the samples."""
    return {
        "median": float(np.median(samples)),
        "p95": float(np.percentile(samples, 95)),
        "min": float(np.min(samples)),
        "samples": [float(sample) for sample in samples],
    }
