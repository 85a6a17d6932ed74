"""Reading what a sweep has written: points of experiments, whole or not at all."""

import json
from dataclasses import dataclass
from pathlib import Path

from numbadsd.bench.record import SCHEMA_VERSION

POINTS_FILE = "points.jsonl"
_TEXTS = (
    "experiment", "id", "variant", "series", "x_name", "command", "status", "code_version", "scale",
)  # fmt: skip


@dataclass(frozen=True)
class PointResult:
    """One point of an experiment and what came of it.

    Attributes
    ----------
    experiment, variant, series : str
        Its experiment, its name in there, and the curve that it lies on.
    x, x_name
        Its place on that curve, and what is varied along it: the name of a parameter.
    command : str
        ``"dsd_bench"`` or ``"dsd_continuous_bench"``; `parameters` are what it was given.
    status : str
        ``"ok"``, ``"failed"``, ``"timed_out"`` or ``"killed"``; `reason` says why, unless ok.
    record : dict or None
        What the command's ``--json`` wrote; None unless ok.
    """

    experiment: str
    id: str
    variant: str
    series: str
    x: int | float | str
    x_name: str
    command: str
    parameters: dict
    status: str
    reason: str | None
    wall_s: float
    code_version: str
    scale: str
    quick: bool
    record: dict | None

    @property
    def ok(self) -> bool:
        """Whether it was measured."""
        return self.status == "ok"


def read_lines(path: Path) -> list[dict]:
    """Return the records of a file, one line of JSON each.

    Raises
    ------
    ValueError
        Naming the file and the line, for what is no JSON object, holds NaN or an infinity, or was
        written by another version of the schema.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not UTF-8 text") from None
    return [_parse(line, f"{path}:{n}") for n, line in enumerate(lines, 1) if line.strip()]


def _parse(line: str, where: str) -> dict:
    def refuse(name: str):
        raise ValueError(f"{where}: {name} is no number")

    try:
        record = json.loads(line, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: broken JSON: {error.msg}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where}: want a JSON object")
    version = record.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise ValueError(f"{where}: schema_version {version}, this version reads {SCHEMA_VERSION}")
    return record


def read_experiment(folder: Path) -> list[PointResult]:
    """Return the points of one experiment; ValueError when there are none."""
    file = folder / POINTS_FILE
    if not file.is_file():
        raise ValueError(f"no results in {folder}: it has no {POINTS_FILE}")
    points = [_as_result(line, f"{file}:{n}") for n, line in enumerate(read_lines(file), 1)]
    if not points:
        raise ValueError(f"no results in {folder}: {POINTS_FILE} is empty")
    return points


def _as_result(line: dict, where: str) -> PointResult:
    point = line.get("point")
    if not isinstance(point, dict):
        raise ValueError(f"{where}: no point of a sweep: point missing")
    names = PointResult.__dataclass_fields__
    values = {name: line[name] for name in names if name in line}
    values |= {name: point[name] for name in names if name in point}
    missing = [name for name in names if name not in values]
    if missing:
        raise ValueError(f"{where}: no point of a sweep: {', '.join(missing)} missing")
    for name in _TEXTS:
        if not isinstance(values[name], str):
            raise ValueError(f"{where}: {name}: got {values[name]!r}, want a text")
    return PointResult(**values)


def read_sweep(out: Path) -> dict[str, list[PointResult]]:
    """Return the points of every experiment of a sweep, by name, in order.

    Raises
    ------
    ValueError
        When there are none, or when they were measured with different versions of the code.
    """
    folders = sorted(file.parent for file in out.glob(f"*/{POINTS_FILE}"))
    if not folders:
        raise ValueError(f"no results in {out}: no folder in it has a {POINTS_FILE}")
    sweep = {folder.name: read_experiment(folder) for folder in folders}
    check_one_version(sweep, out)
    return sweep


def check_one_version(sweep: dict[str, list[PointResult]], out: Path) -> None:
    """Raise ValueError when a folder mixes points of different code, which do not compare."""
    versions = sorted({point.code_version for points in sweep.values() for point in points})
    if len(versions) > 1:
        raise ValueError(f"{out} mixes points of code versions {' and '.join(versions)}")
