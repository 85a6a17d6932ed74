"""What a results folder holds: the newest sweep of every device, and the other records."""

import json
from dataclasses import dataclass
from pathlib import Path

from numbadsd.bench.sweep.records import POINTS_FILE, PointResult, read_lines, read_sweep
from numbadsd.report.reading import device_name, environment_of, find

SUMMARY_FILE = "summary.json"  # of bench_results/gpu_check.py


@dataclass(frozen=True)
class Sweep:
    """The newest sweep of a device: where it lies below the results, and its points."""

    device: str
    place: str
    experiments: dict[str, list[PointResult]]

    @property
    def points(self) -> list[PointResult]:
        """The points of all its experiments."""
        return [point for points in self.experiments.values() for point in points]


@dataclass(frozen=True)
class OtherRecord:
    """A record that is no point of a sweep, and where it stands."""

    place: str
    line: int
    bench: str
    device: str
    record: dict


@dataclass(frozen=True)
class Results:
    """All that a page is made from; `older` are the places of sweeps that a newer one replaces."""

    sweeps: list[Sweep]
    older: list[str]
    others: list[OtherRecord]


def collect(folder: Path) -> Results:
    """Return what is in a folder of results, or in the folder of one sweep.

    Raises
    ------
    ValueError
        When there is nothing, when a record is broken, or when a sweep mixes versions.
    """
    if not folder.is_dir():
        raise ValueError(f"no results in {folder}: it is {_what_it_is(folder)}")
    if (folder / POINTS_FILE).is_file():
        raise ValueError(f"{folder} is one experiment: give the folder of its sweep")
    found = {file.parents[1] for file in sorted(folder.rglob(POINTS_FILE))}
    by_device: dict[Path, list[Path]] = {}
    for sweep in sorted(found):
        by_device.setdefault(sweep.parent, []).append(sweep)
    newest = [max(sweeps, key=_last_start) for sweeps in by_device.values()]
    sweeps = [_read(sweep, folder) for sweep in newest]
    older = [_place(sweep, folder) for sweep in sorted(found - set(newest))]
    others = _other_records(folder, found)
    if not sweeps and not others:
        raise ValueError(f"no results in {folder}: no sweep and no record is in it")
    return Results(sweeps, older, others)


def _what_it_is(path: Path) -> str:
    return "no folder" if path.exists() else "not there"


def _place(path: Path, folder: Path) -> str:
    """Return a path as seen from the results: where those lie is nobody's business."""
    return path.relative_to(folder).as_posix() if path != folder else "."


def _last_start(sweep: Path) -> tuple[str, str]:
    """Return when the last point of a sweep was started; its name decides between equals."""
    lines = [line for file in sweep.glob(f"*/{POINTS_FILE}") for line in read_lines(file)]
    return max((str(line.get("started", "")) for line in lines), default=""), sweep.name


def _read(sweep: Path, folder: Path) -> Sweep:
    experiments = read_sweep(sweep)
    for name, points in experiments.items():
        for point in points:
            if wrong := _what_is_wrong(point):
                raise ValueError(f"{sweep / name / POINTS_FILE}: {point.variant}: {wrong}")
    place = _place(sweep, folder)
    *above, _ = place.split("/")
    if above:
        return Sweep(above[-1], place, experiments)
    environment = environment_of(point for points in experiments.values() for point in points)
    device = device_name(environment, "gpu" if environment.get("gpu") else "cpu")
    return Sweep(device, place, experiments)


def _what_is_wrong(point: PointResult) -> str | None:
    """Return why a point makes no page: the parts that every table starts from must be there."""
    if not isinstance(point.parameters, dict) or not isinstance(point.x, (int, float, str)):
        return "want parameters and a place x"
    part = "paths" if point.command == "dsd_bench" else "results"
    if point.ok and not isinstance(find(point.record, part), dict):
        return f"lacks its {part}"
    return None


def _other_records(folder: Path, sweeps: set[Path]) -> list[OtherRecord]:
    """Return the records of single runs, in the order of their files."""
    records = []
    files = sorted([*folder.rglob("*.jsonl"), *folder.rglob(SUMMARY_FILE)])
    for file in files:
        if file.is_file() and sweeps.isdisjoint(file.parents):
            bench, device = (file.relative_to(folder).parts[:-1] + ("", ""))[:2]
            for line, record in _numbered(file):
                records.append(OtherRecord(_place(file, folder), line, bench, device, record))
    return records


def _numbered(file: Path):
    """Yield (line, record) of a file; the steps of a GPU check stand for its summary."""
    if file.name != SUMMARY_FILE:
        yield from enumerate(read_lines(file), 1)
        return
    summary = _whole(file)
    head = {key: value for key, value in summary.items() if key != "steps"}
    for n, step in enumerate(summary["steps"], 1):
        yield n, head | {"step": step}


def _whole(file: Path) -> dict:
    """Return the one JSON object of a file of many lines, which must have steps."""

    def refuse(name: str):
        raise ValueError(f"{name} is no number")

    try:
        summary = json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)
    except ValueError as error:  # that, broken JSON, or no UTF-8
        raise ValueError(f"{file}: {error}") from None
    if not isinstance(summary, dict) or not isinstance(summary.get("steps"), list):
        raise ValueError(f"{file}: want a JSON object with a list of steps")
    return summary
