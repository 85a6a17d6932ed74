"""The folder of a sweep: who may write into it, what it holds, and files that are always whole."""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from numbadsd.bench.record import to_json_line, write_text_atomically
from numbadsd.bench.sweep.points import Point
from numbadsd.bench.sweep.records import POINTS_FILE, read_lines
from numbadsd.bench.sweep.table import render_csv

LOCK_FILE = ".lock"
CSV_FILE = "points.csv"
_MAX_NAMED = 3  # experiments in a message


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Make a folder and hold it; ValueError while another sweep does.

    The kernel lets go of it when this process ends, in whatever way.
    """
    _make_folder(out)
    with open(out / LOCK_FILE, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another dsd_sweep is running in {out}") from None
        yield


class Results:
    """The points of one experiment in a sweep's folder, in the order of its table.

    Parameters
    ----------
    folder : Path
        Where the experiment lies.
    points : sequence of Point
        Its table.
    code : str
        The code version that is measured.
    """

    def __init__(self, folder: Path, points: Sequence[Point], code: str):
        self.folder = folder
        self.points = {point.identity(code): point for point in points}
        self._lines: dict[str, dict] = {}

    def keep(self, lines: Sequence[dict]) -> None:
        """Take over the points that were measured before."""
        known = {line["point"]["id"]: line for line in lines}
        self._lines = {point_id: known[point_id] for point_id in self.points if point_id in known}

    def missing(self) -> list[str]:
        """Return the ids of the points that are not measured yet, or were without success."""
        return [i for i in self.points if self._lines.get(i, {}).get("status") != "ok"]

    def lines(self) -> list[dict]:
        """Return the lines that there are."""
        return [self._lines[i] for i in self.points if i in self._lines]

    def add(self, line: dict, stdout: str) -> None:
        """Put the line of a point in its place, and write everything."""
        self._lines[line["point"]["id"]] = line
        file = self.folder / line["stdout"]
        _make_folder(file.parent)
        _write(stdout, file)
        self.write()

    def write(self) -> None:
        """Write the lines and the table of all points that there are."""
        lines = self.lines()
        if lines:
            _make_folder(self.folder)
            _write("".join(map(to_json_line, lines)), self.folder / POINTS_FILE)
            _write(render_csv(lines), self.folder / CSV_FILE)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot make the folder {folder}: {error.strerror or error}") from None


def _write(text: str, file: Path) -> None:
    """Write a file; OSError saying which, when it could not be: what was there is still whole."""
    try:
        write_text_atomically(text, file)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(
            f"cannot write {file}: {reason}; what was written before is whole, "
            "--resume measures the rest"
        ) from error


def read_folder(out: Path) -> dict[str, list[dict]]:
    """Return the lines of every experiment in a folder; ValueError for a file that is broken."""
    found = {}
    for file in sorted(out.glob(f"*/{POINTS_FILE}")):
        lines = read_lines(file)
        for n, line in enumerate(lines, 1):
            point = line.get("point")
            if not isinstance(point, dict) or not {"id", "variant"} <= point.keys():
                raise ValueError(f"{file}:{n}: no point of a sweep")
        found[file.parent.name] = lines
    return found


def check_folder(
    out: Path, found: dict[str, list[dict]], tables: Sequence[Results], code: str, scale: str,
    resume: bool,
) -> None:  # fmt: skip
    """Raise ValueError where a sweep would overwrite results, or mix what does not compare."""
    for name, want in (("code_version", code), ("scale", scale)):
        others = {str(line.get(name)) for lines in found.values() for line in lines} - {want}
        if others:
            what = name.replace("_", " ")
            raise ValueError(
                f"{out} holds points of {what} {', '.join(sorted(others))}, this is {want}; "
                "--out chooses another folder"
            )
    held = {table.folder.name: found.get(table.folder.name, []) for table in tables}
    held = {name: lines for name, lines in held.items() if lines}
    if held and not resume:
        count = sum(map(len, held.values()))
        names = ", ".join(list(held)[:_MAX_NAMED]) + (", ..." if len(held) > _MAX_NAMED else "")
        raise ValueError(
            f"{out} holds {count} point{'s' if count > 1 else ''} of {names}; --resume continues, "
            "--out chooses another folder"
        )
    for table in tables:
        lines = held.get(table.folder.name, [])
        strangers = [line for line in lines if line["point"]["id"] not in table.points]
        if strangers:
            raise ValueError(
                f"{out} holds points of {table.folder.name} that were made with other options, "
                f"as {strangers[0]['point']['variant']!r}; --out chooses another folder"
            )
