"""The table of an experiment, as CSV: one row a point, or one a path of each point."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import NamedTuple

import numpy as np

from numbadsd.bench.sweep.columns import columns_of, has_row_per_path
from numbadsd.bench.sweep.commands import COMMANDS


class Row(NamedTuple):
    """What one row of the table is made of: a line, its configuration and, maybe, one path."""

    line: dict
    config: dict
    path: str | None = None


def _dig(value, keys):
    """Return what lies below the keys, None where one is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _of_path(row: Row, path: str | None, *keys):
    """Return a value of a path that ran: its record's, or one that is computed here."""
    entry = _dig(row.line, ("record", "paths", path))
    if not entry or not entry.get("available"):
        return None
    return _COMPUTED[keys[0]](row, entry) if keys[0] in _COMPUTED else _dig(entry, keys)


def _p5_ms(row: Row, entry: dict) -> float:
    return float(np.percentile(entry["total_ms"]["samples"], 5))


def _overhead_ms(row: Row, entry: dict) -> float | None:
    overheads = entry.get("overheads_ms")
    return sum(overheads.values()) if overheads else None


def _kernel_other_ms(row: Row, entry: dict) -> float | None:
    """Return the kernels' time that belongs to no stage."""
    if entry.get("kernel_ms") is None:
        return None
    return max(0.0, entry["kernel_ms"] - sum((entry.get("stages_ms") or {}).values()))


def _speedup(row: Row, entry: dict) -> float | None:
    dense_ms = _of_path(row, "dense_cpu", "total_ms", "median")
    return None if dense_ms is None else dense_ms / entry["total_ms"]["median"]


_COMPUTED = {
    "p5_ms": _p5_ms,
    "overhead_ms": _overhead_ms,
    "kernel_other_ms": _kernel_other_ms,
    "speedup": _speedup,
}


def _label(row: Row, kind: str) -> str | None:
    """Return the label of a continuous run, or that of the serial one beside it."""
    results = _dig(row.line, ("record", "results")) or {}
    names = [n.removesuffix("_available") for n in results if n.endswith("_available")]
    return names[0].replace("continuous", kind, 1) if names else None


def _of_run(row: Row, name: str, kind: str = "continuous"):
    return _dig(row.line, ("record", "results", f"{_label(row, kind)}_{name}"))


def _of_overheads(row: Row):
    """Return what the runtime adds to a mean step, as `dsd_bench` sums it up."""
    names = ("h2d", "d2h", "launch", "sync", "prepare_sparse_layout")
    times = [_of_run(row, f"avg_{name}_ms") for name in names]
    return None if None in times else sum(times)


PLACES = {
    "line": lambda row, *keys: _dig(row.line, keys),
    "config": lambda row, name: row.config.get(name),
    "record": lambda row, *keys: _dig(row.line, ("record", *keys)),
    "path": _of_path,
    "this path": lambda row, *keys: _of_path(row, row.path, *keys),
    "path name": lambda row: row.path,
    "path reason": lambda row: _dig(row.line, ("record", "paths", row.path, "reason")),
    "run": _of_run,
    "serial run": lambda row, name: _of_run(row, name, "serial"),
    "run overheads": _of_overheads,
}


def render_csv(lines: Sequence[dict]) -> str:
    """Return the table of the points of one experiment, failed ones with what is known."""
    if not lines:
        return ""
    experiment, command = lines[0]["experiment"], lines[0]["point"]["command"]
    columns = columns_of(experiment, command)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([name for name, _ in columns])
    for line in lines:
        for row in _rows(line, has_row_per_path(experiment)):
            values = (PLACES[place](row, *keys) for _, (place, *keys) in columns)
            writer.writerow(["" if value is None else value for value in values])
    return out.getvalue()


def _rows(line: dict, by_path: bool) -> Iterator[Row]:
    """Yield the rows of a line: one, or one for each path that its record has."""
    point = line["point"]
    config = COMMANDS[point["command"]].config(point["parameters"])
    values = asdict(config) | asdict(config.model)
    paths = _dig(line, ("record", "paths")) if by_path else None
    for path in paths or (None,):
        yield Row(line, values, path)
