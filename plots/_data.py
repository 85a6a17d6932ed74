"""From the points of an experiment to the arrays that a figure shows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from numbadsd.analysis.crossover import Crossing, find_crossing
from numbadsd.bench.sweep.records import PointResult

PATHS = ("dense_cpu", "sparse_cpu", "dense_gpu", "sparse_gpu")
BACKENDS = ("cpu", "gpu")
STAGES = ("score", "topk", "gather", "attend", "overheads")


@dataclass(frozen=True)
class Curve:
    """Times of one path along x, ascending; what a record lacks is NaN.

    Attributes
    ----------
    x : array [n]
        Places on the axis.
    median, p5, p95 : array [n]
        Of the samples, in milliseconds.
    floor_ms : array [n]
        Time of the path's bytes at the bandwidth measured in the same run.
    fraction : array [n]
        Bandwidth reached, as a fraction of that.
    """

    x: np.ndarray
    median: np.ndarray
    p5: np.ndarray
    p95: np.ndarray
    floor_ms: np.ndarray
    fraction: np.ndarray


@dataclass(frozen=True)
class Places:
    """Where the values of x stand: on a log axis, or side by side for names and zeros."""

    values: tuple
    is_log: bool

    @property
    def is_ordered(self) -> bool:
        """Whether the values are numbers, so that a line between two means something."""
        return not any(isinstance(value, (str, bool)) for value in self.values)

    def at(self, value) -> float:
        """Return the place of a value."""
        return float(value) if self.is_log else float(self.values.index(value))


def measured_decode(points: Sequence[PointResult], name: str) -> list[PointResult]:
    """Return the points of `dsd_bench` with a path that ran; ValueError when there are none."""
    good = [p for p in points if p.ok and p.command == "dsd_bench" and available_paths([p])]
    return _not_empty(good, name)


def measured_continuous(points: Sequence[PointResult], name: str) -> list[PointResult]:
    """Return the points of `dsd_continuous_bench` that ran; ValueError when there are none."""
    good = [p for p in points if p.ok and p.command == "dsd_continuous_bench" and run_label(p)]
    return _not_empty(good, name)


def _not_empty(points: list[PointResult], name: str) -> list[PointResult]:
    if not points:
        raise ValueError(f"no measured point in {name}")
    return points


def by_series(points: Sequence[PointResult]) -> dict[str, list[PointResult]]:
    """Return the points of each series, in order."""
    groups: dict[str, list[PointResult]] = {}
    for point in points:
        groups.setdefault(point.series, []).append(point)
    return groups


def places_of(points: Sequence[PointResult]) -> Places:
    """Return where the x values of points stand; names and values not above 0 stand in order."""
    values = list(dict.fromkeys(point.x for point in points))
    places = Places(tuple(values), False)
    if not places.is_ordered:
        return places
    return Places(tuple(sorted(values)), min(values) > 0)


def available_paths(points: Sequence[PointResult]) -> list[str]:
    """Return the paths that ran in any of the points."""
    entries = [point.record["paths"] for point in points]
    return [name for name in PATHS if any(e.get(name, {}).get("available") for e in entries)]


def curve_of(points: Sequence[PointResult], path: str, places: Places) -> Curve | None:
    """Return the times of one path, or None where it never ran."""
    entries = {
        places.at(point.x): entry
        for point in points
        if (entry := point.record["paths"].get(path, {})).get("available")
    }
    if not entries:
        return None
    rows = [(x, *_times(entry)) for x, entry in sorted(entries.items())]
    return Curve(*np.array(rows, float).T)


def curves_of(points: Sequence[PointResult], places: Places) -> dict[str, Curve]:
    """Return the curve of every path that ran."""
    curves = {path: curve_of(points, path, places) for path in PATHS}
    return {path: curve for path, curve in curves.items() if curve is not None}


def _times(entry: dict) -> tuple:
    total = entry["total_ms"]
    p5, p95 = np.percentile(total["samples"], (5, 95))
    return total["median"], p5, p95, entry.get("floor_ms"), entry.get("bandwidth_fraction")


def stage_times(entry: dict) -> dict[str, float]:
    """Return the milliseconds of each stage of a path, and of its overheads together."""
    stages = {stage: entry["stages_ms"].get(stage, 0.0) for stage in STAGES[:-1]}
    return stages | {"overheads": sum(entry["overheads_ms"].values())}


def _paired(curves: dict[str, Curve], backend: str) -> np.ndarray:
    """Return x and the medians of dense and of sparse [3, n] wherever both ran on a backend."""
    pair = [curves.get(f"{kind}_{backend}") for kind in ("dense", "sparse")]
    if None in pair:
        return np.empty((3, 0))
    dense, sparse = (dict(zip(curve.x, curve.median, strict=True)) for curve in pair)
    both = sorted(dense.keys() & sparse.keys())
    return np.array([both, [dense[x] for x in both], [sparse[x] for x in both]])


def crossing_of(curves: dict[str, Curve], backend: str) -> Crossing | None:
    """Return where sparse overtakes dense on one backend; None unless both ran at some x."""
    x, dense, sparse = _paired(curves, backend)
    return find_crossing(x, dense, sparse) if len(x) else None


def speedups_of(curves: dict[str, Curve]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return x, and how many times faster sparse is than dense, for each sparse path."""
    ratios = {}
    for backend in BACKENDS:
        x, dense, sparse = _paired(curves, backend)
        if len(x):
            ratios[f"sparse_{backend}"] = (x, dense / sparse)
    return ratios


def values_of(points: Sequence[PointResult], places: Places, get) -> tuple[np.ndarray, np.ndarray]:
    """Return x and what `get` finds in each point, ascending; NaN where it finds None."""
    rows = [(places.at(point.x), get(point)) for point in points]
    rows.sort(key=lambda row: row[0])
    array = np.array(rows, float).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def quality_of(point: PointResult, name: str) -> float | None:
    """Return one number of the quality of the selection; None where it was not measured."""
    quality = point.record.get("quality")
    return None if quality is None else quality.get(name)


def run_label(point: PointResult) -> str | None:
    """Return what the keys of a continuous run begin with; None where it could not run."""
    ends = "_tokens_per_second"
    names = (key for key in point.record["results"] if key.endswith(ends))
    return next((key[: -len(ends)] for key in names if key.startswith("continuous_")), None)


def run_value(point: PointResult, name: str) -> float | None:
    """Return one result of a continuous run."""
    return point.record["results"].get(f"{run_label(point)}_{name}")


def run_path(point: PointResult) -> str:
    """Return the path that a continuous run decoded by."""
    kind = "sparse" if "sparse" in run_label(point) else "dense"
    return f"{kind}_{point.record['results']['backend']}"
