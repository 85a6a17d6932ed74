"""A sweep: its points, one after the other or side by side, into its folder."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from numbadsd.bench.record import SCHEMA_VERSION
from numbadsd.bench.sweep.folder import Results, check_folder, locked, read_folder
from numbadsd.bench.sweep.points import Point
from numbadsd.bench.sweep.process import Outcome, Task


class Executor(Protocol):
    """What measures points: processes here, or the workers of a cluster."""

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Outcome]]:
        """Yield (place of the task, outcome) as they end."""
        ...


@dataclass(frozen=True)
class Sweep:
    """What a sweep measures, and where it goes.

    Attributes
    ----------
    tables : dict
        Name of an experiment -> its points.
    out : Path
        The folder of the sweep.
    scale, quick : str, bool
        Which grids these are.
    code : str
        The code version.
    timeout_s : float
        The longest that a point may take.
    launcher : tuple of str
        What starts a point (see `process.Task`).
    """

    tables: dict[str, list[Point]]
    out: Path
    scale: str
    quick: bool
    code: str
    timeout_s: float = 300.0
    launcher: tuple[str, ...] = ()

    def task(self, point: Point) -> Task:
        """Return what measures a point."""
        return Task(point.command, tuple(point.argv), self.timeout_s, self.code, self.launcher)

    def line(self, point: Point, outcome: Outcome) -> dict:
        """Return a point and what came of it, as a line of the results."""
        return {
            "schema_version": SCHEMA_VERSION,
            "experiment": point.experiment,
            "point": {
                "id": point.identity(self.code),
                "variant": point.variant,
                "series": point.series,
                "x": point.x,
                "x_name": point.x_name,
                "command": point.command,
                "parameters": dict(point.parameters),
                "argv": point.argv,
            },
            "status": outcome.status,
            "reason": outcome.reason,
            "wall_s": outcome.wall_s,
            "started": outcome.started,
            "code_version": self.code,
            "scale": self.scale,
            "quick": self.quick,
            "stdout": f"stdout/{point.slug}.txt",
            "record": outcome.record,
        }


@dataclass
class Tally:
    """How far a sweep came; it counts while points end, so that Ctrl-C finds it, too."""

    measured: int = 0
    failed: int = 0
    kept: int = 0
    total: int = 0
    first_reason: str | None = None


def open_tables(sweep: Sweep, resume: bool) -> list[Results]:
    """Return the results that the folder has of each experiment; ValueError where it refuses."""
    tables = [Results(sweep.out / name, p, sweep.code) for name, p in sweep.tables.items()]
    found = read_folder(sweep.out)
    check_folder(sweep.out, found, tables, sweep.code, sweep.scale, resume)
    for table in tables:
        table.keep(found.get(table.folder.name, []))
    return tables


def run_sweep(sweep: Sweep, executor: Executor, resume: bool, tally: Tally) -> None:
    """Measure the points that are missing; every one that ends is written at once.

    Raises
    ------
    ValueError
        When another sweep holds the folder, or the folder refuses (see `check_folder`).
    OSError
        When a file cannot be written; those that were written before are whole.
    """
    with locked(sweep.out):
        tables = open_tables(sweep, resume)
        work = [(table, point_id) for table in tables for point_id in table.missing()]
        tally.total = sum(len(table.points) for table in tables)
        tally.kept = tally.total - len(work)
        for table in tables:
            table.write()
        tasks = [sweep.task(table.points[point_id]) for table, point_id in work]
        with (
            tqdm(total=tally.total, initial=tally.kept, desc="points", disable=None) as bar,
            closing(executor.run(tasks)) as outcomes,
        ):
            _show_next(bar, work, set())
            ended = set()
            for place, outcome in outcomes:
                table, point_id = work[place]
                point = table.points[point_id]
                table.add(sweep.line(point, outcome), outcome.stdout)
                _count(tally, point, outcome)
                ended.add(place)
                bar.update()
                _show_next(bar, work, ended)


def _show_next(bar: tqdm, work: list[tuple[Results, str]], ended: set[int]) -> None:
    """Show the first point that has not ended: with one job it is the one that is measured."""
    place = next((i for i in range(len(work)) if i not in ended), None)
    if place is not None:
        table, point_id = work[place]
        point = table.points[point_id]
        bar.set_postfix_str(f"{_number(point)} {point.variant}")


def _count(tally: Tally, point: Point, outcome: Outcome) -> None:
    tally.measured += 1
    if outcome.status != "ok":
        tally.failed += 1
        name = f"{_number(point)}, {point.variant}"
        what = outcome.status.replace("_", " ")
        tally.first_reason = tally.first_reason or f"{name}: {what}: {outcome.reason}"


def _number(point: Point) -> str:
    return point.experiment.split("_")[0]
