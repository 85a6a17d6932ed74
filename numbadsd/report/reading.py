"""Single figures of a point or a record; None where they were not measured."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from numbadsd.bench.sweep.records import PointResult

BACKENDS = ("cpu", "gpu")
_RATE = "_tokens_per_second"


@dataclass(frozen=True)
class PathFigures:
    """Times of one path: median and percentiles of a step, its floor, and how near it came."""

    median_ms: float
    p5_ms: float | None
    p95_ms: float | None
    floor_ms: float | None
    fraction: float | None


@dataclass(frozen=True)
class Pair:
    """Dense and sparse of one backend at one point; either may be missing."""

    backend: str
    dense: PathFigures | None
    sparse: PathFigures | None

    @property
    def speedup(self) -> float | None:
        """How many times faster sparse is than dense."""
        if self.dense is None or self.sparse is None or not self.sparse.median_ms:
            return None
        return self.dense.median_ms / self.sparse.median_ms


def find(record, *keys: str):
    """Return what lies under nested keys of a record, or None."""
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    return record


def find_number(record, *keys: str) -> float | None:
    """Return a number under nested keys of a record, or None when there is none."""
    value = find(record, *keys)
    return value if _is_number(value) else None


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def path_figures(record: dict | None, path: str) -> PathFigures | None:
    """Return the times of a path, or None where it did not run."""
    entry = find(record, "paths", path)
    median = find_number(entry, "total_ms", "median")
    if median is None:
        return None
    samples = find(entry, "total_ms", "samples")
    known = isinstance(samples, list) and samples and all(map(_is_number, samples))
    return PathFigures(
        median,
        float(np.percentile(samples, 5)) if known else None,
        find_number(entry, "total_ms", "p95"),
        find_number(entry, "floor_ms"),
        find_number(entry, "bandwidth_fraction"),
    )


def pair_of(point: PointResult, backend: str) -> Pair | None:
    """Return dense and sparse of a backend, or None where neither ran."""
    dense, sparse = (
        path_figures(point.record, f"{kind}_{backend}") for kind in ("dense", "sparse")
    )
    return Pair(backend, dense, sparse) if dense or sparse else None


def pairs_of(points: Iterable[PointResult], backend: str) -> list[tuple[PointResult, Pair]]:
    """Return the points at which both paths of a backend ran, with their times."""
    found = ((point, pair_of(point, backend)) for point in points)
    return [(point, pair) for point, pair in found if pair and pair.speedup is not None]


def parameter(point: PointResult, name: str):
    """Return what a parameter was; a minimum stands for a range."""
    for source in (point.parameters, find(point.record, "config")):
        for key in (name, f"min_{name}"):
            if find(source, key) is not None:
                return source[key]
    return None


def parameter_number(point: PointResult, name: str) -> float | None:
    """Return a parameter that is a number, else None."""
    value = parameter(point, name)
    return value if _is_number(value) else None


def run_labels(record: dict | None) -> list[str]:
    """Return what the keys of the continuous runs of a record begin with."""
    results = find(record, "results") or {}
    keys = [key for key in results if key.endswith(_RATE)]
    return [key.removesuffix(_RATE) for key in keys if key.startswith("continuous_")]


def run_number(record: dict | None, label: str, name: str) -> float | None:
    """Return one number of a continuous run."""
    return find_number(record, "results", f"{label}_{name}")


def environment_of(points: Iterable[PointResult], backend: str | None = None) -> dict:
    """Return the environment of the first point that was measured, on a backend if one is given."""
    for point in points:
        environment = find(point.record, "environment")
        if isinstance(environment, dict) and (backend != "gpu" or environment.get("gpu")):
            return environment
    return {}


def device_name(environment: dict, backend: str) -> str:
    """Return how a reader calls the machine."""
    if backend == "gpu":
        return str(environment.get("gpu") or "GPU")
    name = str(environment.get("cpu") or "CPU")
    for mark in ("(R)", "(TM)", "(tm)"):
        name = name.replace(mark, "")
    threads = environment.get("num_threads")
    return " ".join(name.split()) + (f", {threads} threads" if threads else "")
