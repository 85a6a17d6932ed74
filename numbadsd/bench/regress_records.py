"""What `dsd_compare` takes from records: what was measured, in which setting, and its figures."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from math import isfinite
from numbers import Real
from pathlib import Path
from typing import NamedTuple

from numbadsd.bench.sweep.records import (
    POINTS_FILE,
    check_one_version,
    read_experiment,
    read_lines,
    read_sweep,
)
from numbadsd.config import ContinuousBenchConfig, DecodeBenchConfig, TopkBenchConfig
from numbadsd.decode.path import PATHS

LABEL = "label"  # key of a record: what a sweep calls it


class Metric(NamedTuple):
    """Something that has a figure in every run."""

    name: str
    unit: str
    higher_is_better: bool = False


@dataclass(frozen=True)
class Run:
    """One record, as far as it can be compared.

    Attributes
    ----------
    setting : dict
        What was measured; runs with the same `key` were measured alike.
    figures : dict
        The samples of each metric, or its one figure.
    rates : dict
        What the machine did between the samples: memory and arithmetic, by the record's names.
    """

    kind: str
    label: str
    setting: Mapping[str, object]
    figures: Mapping[Metric, list[float]]
    environment: Mapping[str, object]
    rates: Mapping[str, float]

    @property
    def key(self) -> str:
        """The setting as text."""
        return json.dumps([self.kind, self.setting], sort_keys=True, default=str)


def _decode_figures(record: Mapping) -> Iterator[tuple[Metric, object]]:
    """Yield the samples of our paths; what another library did is no change of ours."""
    for name, path in record["paths"].items():
        if name in PATHS and path["available"]:
            total_ms = path["total_ms"]
            yield Metric(name, "ms"), total_ms.get("samples") or total_ms["median"]


def _topk_figures(record: Mapping) -> Iterator[tuple[Metric, object]]:
    """Yield the samples of our top-k at every case."""
    for case in record["cases"]:
        name = f"{case['device']} {case['lengths']} {case['values']}"
        yield Metric(name, "ms"), case["ms"].get("samples") or case["ms"]["median"]


def _continuous_figures(record: Mapping) -> Iterator[tuple[Metric, object]]:
    """Yield throughput, times and what users waited for; nothing of a run that failed."""
    results = record["results"]
    if "error" in results:
        return
    rate = "_tokens_per_second"
    for label in [key.removesuffix(rate) for key in results if key.endswith(rate)]:
        in_loop, in_all = results[label + rate], results.get(f"{label}{rate}_including_admission")
        yield Metric(label, "tokens/s", True), in_loop
        if in_all != in_loop:  # something was done before the loop
            yield Metric(f"{label} with admission", "tokens/s", True), in_all
        yield Metric(f"{label} total", "ms"), results.get(f"{label}_total_ms")
        yield Metric(f"{label} step p95", "ms"), results.get(f"{label}_p95_step_ms")
    for name in ("ttft", "tpot"):
        yield Metric(f"{name} median", "ms"), results.get("serving", {}).get(f"median_{name}_ms")


class _Kind(NamedTuple):
    """A command that writes records. `names` are its fields that metrics tell by their names."""

    config_class: type
    names: tuple[str, ...]
    figures: Callable[[Mapping], Iterator[tuple[Metric, object]]]


KINDS = {
    "dsd_bench": _Kind(DecodeBenchConfig, ("paths", "versus"), _decode_figures),
    "dsd_continuous_bench": _Kind(ContinuousBenchConfig, (), _continuous_figures),
    "dsd_topk_bench": _Kind(
        TopkBenchConfig, ("cases", "lengths", "values", "device"), _topk_figures
    ),
}


def as_run(record: Mapping, where: str) -> Run:
    """Return a record as a run; ValueError, with `where` it stands, for what is none."""
    words = str(record.get("command") or "").split()
    kind = Path(words[0]).name if words else ""
    if kind not in KINDS:
        raise ValueError(f"{where} is none of {', '.join(KINDS)}: got {kind or 'no command'!r}")
    try:
        figures = {
            metric: values
            for metric, value in KINDS[kind].figures(record)
            if (values := _positive(value))
        }
        setting = _setting(record, KINDS[kind])
        rates = {
            name: float(measured["median"] if isinstance(measured, dict) else measured)
            for name, measured in record.get("bandwidth", {}).items()
            if measured
        }
        environment = dict(record["environment"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{where} is no record of {kind}: {_reason(error)}") from None
    label = record.get(LABEL) or _line(record["command"])
    return Run(kind, label, setting, figures, environment, rates)


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _positive(value: object) -> list[float]:
    """Return a figure, or samples, as a list; empty for what was not measured."""
    values = [v for v in (value if isinstance(value, list) else [value]) if v is not None]
    for number in values:
        if isinstance(number, bool) or not isinstance(number, Real) or not isfinite(number):
            raise TypeError(f"{number!r} is no number")
    return [float(number) for number in values if number > 0]


def _setting(record: Mapping, kind: _Kind) -> dict[str, object]:
    """Return all that decides what was measured; a field that is newer has its default."""
    setting = {f.name: f.default for f in fields(kind.config_class) if f.default is not MISSING}
    setting |= record["config"]
    results = record.get("results", {})
    setting |= {"backend": results["backend"]} if "backend" in results else {}
    setting |= {f"workload_{key}": value for key, value in record.get("workload", {}).items()}
    left_out = {"model", *kind.names}  # the model follows from the other fields
    return {k: v for k, v in setting.items() if k not in left_out and v is not None}


def _line(command: str) -> str:
    """Return a command line without the file that its record went to."""
    return re.sub(r" --json[= ]('[^']*'|\S+)", "", command)


class _Point(NamedTuple):
    """A point of a sweep; the record is None where nothing was measured."""

    label: str
    code_version: str
    record: dict | None


def read_records(path: Path) -> list[dict]:
    """Return the records of a file, of an experiment's folder, or of a whole sweep.

    Raises
    ------
    ValueError
        When there are none, when a line cannot be read, or when a sweep mixes versions of the code.
    """
    if path.is_dir():
        is_experiment = (path / POINTS_FILE).is_file()
        sweep = {path.name: read_experiment(path)} if is_experiment else read_sweep(path)
        results = [result for results in sweep.values() for result in results]
        points = [
            _Point(f"{r.experiment}: {r.variant}", r.code_version, r.record if r.ok else None)
            for r in results
        ]
        return _measured(points, path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    lines = read_lines(path)
    if not lines:
        raise ValueError(f"{path} is empty: no records")
    if any("point" in line for line in lines):
        return _measured([_as_point(line, f"{path}:{n}") for n, line in enumerate(lines, 1)], path)
    return lines


def _as_point(line: dict, where: str) -> _Point:
    try:
        label = f"{line['experiment']}: {line['point']['variant']}"
        record = line["record"] if line["status"] == "ok" else None
        return _Point(label, line["code_version"], record)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{where}: no point of a sweep: {_reason(error)}") from None


def _measured(points: list[_Point], path: Path) -> list[dict]:
    """Return the records of the points that were measured, each with its label."""
    check_one_version({path.name: points}, path)
    records = [point.record | {LABEL: point.label} for point in points if point.record]
    if not records:
        raise ValueError(f"{path}: none of its {len(points)} points was measured")
    return records
