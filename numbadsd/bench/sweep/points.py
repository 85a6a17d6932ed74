"""A point of a sweep: its configuration, its command line, and what makes it the same point."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numbadsd
from numbadsd.bench.sweep.commands import COMMANDS

_MAX_SLUG = 120  # file names end at 255 bytes

# What only draws, writes or tells of what was measured: a change there makes no other measurement.
_NOT_MEASURING = (
    "analysis/crossover", "bench/demo", "bench/kernels", "bench/regress", "bench/report",
    "bench/serving_report", "bench/sweep", "bench/topk", "integration/dask",
    "integration/selectors", "plots", "report",
)  # fmt: skip
_MEASURING_COMMANDS = ("cli/_arguments", "cli/dsd_bench", "cli/dsd_continuous_bench")


@dataclass(frozen=True)
class Point:
    """One measurement of an experiment.

    Attributes
    ----------
    experiment, variant : str
        Its experiment, and its name in there.
    series, x, x_name
        The curve that it lies on, its place there, and the parameter that varies along the curve.
    command : str
        The command that measures it.
    parameters : dict
        What the command gets: field names of its configuration, and `commands.BOTH`.
    """

    experiment: str
    variant: str
    series: str
    x: int | float | str
    x_name: str
    command: str
    parameters: Mapping

    @property
    def argv(self) -> list[str]:
        """The arguments of its command; ValueError where the parameters are no configuration."""
        return COMMANDS[self.command].argv(self.parameters)

    @property
    def slug(self) -> str:
        """Its name as a file name."""
        slug = re.sub(r"[^A-Za-z0-9.]+", "_", self.variant).strip("_.")
        if len(slug) <= _MAX_SLUG:
            return slug
        return f"{slug[:_MAX_SLUG]}_{hashlib.sha256(self.variant.encode()).hexdigest()[:8]}"

    def identity(self, code: str) -> str:
        """Return its identity: points that are alike in all that is hashed here are the same."""
        what = [self.experiment, self.variant, self.command, dict(self.parameters), code]
        text = json.dumps(what, sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_points(points: list[Point]) -> None:
    """Raise ValueError, naming the point, for the first that its command would refuse."""
    slugs = {}
    for point in points:
        try:
            COMMANDS[point.command].config(point.parameters)
        except ValueError as error:
            raise ValueError(f"point {point.variant!r}: {error}") from None
        other = slugs.setdefault((point.experiment, point.slug), point.variant)
        if other != point.variant:
            raise ValueError(f"points {other!r} and {point.variant!r} have the same file name")


def code_version() -> str:
    """Return a digest of the sources that can change a measurement, wherever they are installed."""
    digest = hashlib.sha256()
    for name, file in sorted(_sources().items()):
        digest.update(f"{name}\n".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


@cache
def _folders() -> dict[str, Path]:
    """Return the folders of the sources; those of the commands may lie elsewhere in a checkout."""
    package = Path(numbadsd.__file__).parent
    commands = find_spec("numbadsd.cli")
    places = {"": package}
    if commands is not None and commands.origin:
        places["cli/"] = Path(commands.origin).parent
    return places


def _sources() -> dict[str, Path]:
    """Return the files that count, by their path in an installed package."""
    files = {}
    for prefix, folder in _folders().items():
        for file in folder.rglob("*.*"):
            name = prefix + file.relative_to(folder).as_posix()
            if file.suffix in (".py", ".json") and _counts(name):
                files[name] = file
    return files


def _counts(name: str) -> bool:
    if name.startswith("cli/"):
        return name.removesuffix(".py") in _MEASURING_COMMANDS
    return not name.removesuffix(".py").startswith(_NOT_MEASURING)
