"""Curves and experiments as values, and the points that they stand for."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from numbadsd.bench.sweep.commands import merge, short_name
from numbadsd.bench.sweep.points import Point

SCALES = ("cpu", "gpu")

# What every point of a command gets unless its experiment says otherwise, by scale and quickness.
_DECODE = {
    "top_k_pages": 8, "batch_size": 16, "context_tokens": 4096, "seed": 7, "iterations": 20,
    "warmup": 3, "num_heads": 32, "head_dim": 128, "page_size": 16, "data": "uniform",
    "paths": "dense_gpu,sparse_gpu",
}  # fmt: skip
_SERVING = {
    "num_requests": 128, "max_active_requests": 32, "arrival_window": 64,
    "min_prompt_tokens": 1024, "max_prompt_tokens": 4096, "min_decode_steps": 16,
    "max_decode_steps": 64, "seed": 7, "num_heads": 32, "head_dim": 128, "page_size": 16,
    "top_k_pages": 8, "preadmit_prompts": 1, "precompute_decode_payloads": 1, "lazy_release": 1,
    "backend": "gpu",
}  # fmt: skip
_ON_CPU = {"num_heads": 8, "head_dim": 64}
_DECODE_ON_CPU = _ON_CPU | {
    "iterations": 15, "warmup": 2, "data": "structured", "paths": "dense_cpu,sparse_cpu",
}  # fmt: skip
_QUICK_DECODE = {"iterations": 5, "warmup": 1}
_QUICK_SERVING = {
    "num_requests": 64, "max_active_requests": 16, "arrival_window": 16, "min_prompt_tokens": 512,
    "max_prompt_tokens": 1024, "min_decode_steps": 8, "max_decode_steps": 16,
}  # fmt: skip


def base_parameters(command: str, scale: str, quick: bool) -> dict:
    """Return what a point of a command gets at a scale when nothing else is said."""
    if command == "dsd_bench":
        base = _DECODE | (_DECODE_ON_CPU if scale == "cpu" else {})
        return base | (_QUICK_DECODE if quick else {})
    base = _SERVING | (_ON_CPU | {"backend": "cpu"} if scale == "cpu" else {})
    return base | (_QUICK_SERVING if quick else {})


@dataclass(frozen=True)
class Series:
    """A curve: what varies along it, and the parameters of each place.

    Attributes
    ----------
    name, x_name : str
        Its name, and the parameter that varies along it.
    places : dict
        Place on the axis -> parameters there.
    quick : bool or None
        Whether it belongs to the quick grid alone, or to the full one alone; None: to both.
    scale : str or None
        The scale that has it; None: both.
    """

    name: str
    x_name: str
    places: Mapping
    quick: bool | None = None
    scale: str | None = None


@dataclass(frozen=True)
class Experiment:
    """One experiment: the question it answers, and its curves."""

    name: str
    question: str
    command: str
    series: tuple[Series, ...]

    @property
    def code(self) -> str:
        """Its number."""
        return self.name[:2]

    def points(self, scale: str, quick: bool, more: Mapping | None = None) -> list[Point]:
        """Return its points at a scale, in order; the parameters `more` go to every one."""
        base = base_parameters(self.command, scale, quick)
        return [
            make_point(self.name, self.command, series, x, merge(base, own, more or {}))
            for series in self.series
            if series.quick in (None, quick) and series.scale in (None, scale)
            for x, own in series.places.items()
        ]


def make_point(experiment: str, command: str, series: Series, x, parameters: Mapping) -> Point:
    """Return one point of a curve."""
    place = str(x).lower() if isinstance(x, bool) else x
    what = place if series.x_name == "variant" else f"{short_name(series.x_name)} {place}"
    variant = f"{series.name}, {what}"
    return Point(experiment, variant, series.name, place, series.x_name, command, parameters)


def along(name: str, x_name: str, values: Iterable, *, quick=None, scale=None, **fixed) -> Series:
    """Return a curve along one parameter."""
    places = {x: fixed | {x_name: x} for x in values}
    return Series(name, x_name, places, quick, scale)
