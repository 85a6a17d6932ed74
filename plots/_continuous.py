"""Throughput of continuous batching both ways: what 05 and own sweeps share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from numbadsd.bench.sweep.records import PointResult
from numbadsd.plots import _labels as labels
from numbadsd.plots import _panels as panels
from numbadsd.plots._columns import rows_of
from numbadsd.plots._data import Places, places_of, run_path, run_value, values_of
from numbadsd.plots._style import MUTED, PATH_LOOKS, WIDTH_IN

KEY = (
    "Solid: the serving loop only. Dashed, open markers: all included, also what was done before "
    "the loop (prompts, payloads). Speed-up: against the same requests one at a time."
)
# What a run reached, by the loop alone and with what came before it: name, end of the key, open?
WAYS = (("loop only", "", False), ("all included", "_including_admission", True))
RATE_IN, SPEEDUP_IN = 2.1, 1.5
_AXES_IN, _NAMES_IN = 0.8, 1.4  # left of the columns, and right of them


@dataclass(frozen=True)
class Line:
    """One line of a panel; open ones are dashed."""

    name: str
    x: np.ndarray
    y: np.ndarray
    path: str
    is_open: bool
    is_joined: bool

    @property
    def style(self) -> dict:
        """How it differs from the line of its path in other figures."""
        style = dict(linestyle="-")
        if self.is_open:
            style = dict(linestyle=(0, (3, 1.5)), markerfacecolor="white", markeredgewidth=1.2)
            style |= dict(markeredgecolor=PATH_LOOKS[self.path].color)
        return style if self.is_joined else style | dict(linestyle="none")


def body_in(num_series: int) -> float:
    """Return the height that the throughput panels need."""
    return rows_of(num_series)[0] * (RATE_IN + SPEEDUP_IN + 0.4)


def draw_throughput(figure: Figure, grid, groups: dict[str, list[PointResult]]) -> None:
    """Draw tokens/s and speed-up of each series both ways.

    Parameters
    ----------
    figure : Figure
    grid : SubplotSpec
        Where to.
    groups : dict
        Points of `dsd_continuous_bench` by series.
    """
    points = [point for group in groups.values() for point in group]
    places, x_name = places_of(points), points[0].x_name
    rows, columns = rows_of(len(groups))
    spec = grid.subgridspec(2 * rows, columns, height_ratios=[RATE_IN, SPEEDUP_IN] * rows)
    width_in = (WIDTH_IN - _AXES_IN - _NAMES_IN) / columns - 0.15
    rates, speedups = {}, {}
    for n, (name, group) in enumerate(groups.items()):
        row, column = divmod(n, columns)
        above = figure.add_subplot(spec[2 * row, column])
        below = figure.add_subplot(spec[2 * row + 1, column])
        above.set_title(name)
        for ax in (above, below):
            panels.set_x(ax, places, x_name, width_in)
            ax.tick_params(labelleft=column == 0)
        above.set_xlabel("")
        above.tick_params(labelbottom=False)
        if column == 0:
            above.set_ylabel("new tokens per second")
            below.set_ylabel("speed-up, times")
        rates[above] = lines_of(group, places, "tokens_per_second", WAYS)
        speedups[below] = _speedups(group, places)
    draw_lines(rates, RATE_IN)
    draw_lines(speedups, SPEEDUP_IN)
    for ax in speedups:
        ax.axhline(1, color=MUTED, linewidth=0.9, zorder=1)


def lines_of(group: Sequence[PointResult], places: Places, key: str, ends) -> list[Line]:
    """Return lines of one result: one for each path and each (name, end of the key, open?)."""
    lines = []
    paths = list(dict.fromkeys(map(run_path, group)))
    for path in paths:
        mine = [point for point in group if run_path(point) == path]
        for name, end, is_open in ends:
            x, y = values_of(mine, places, _getter(key + end))
            name = name if len(paths) == 1 else f"{PATH_LOOKS[path].label}, {name}"
            lines.append(Line(name, x, y, path, is_open, places.is_ordered))
    return lines


def _getter(key: str) -> Callable:
    return lambda point: run_value(point, key)


def _speedups(group: Sequence[PointResult], places: Places) -> list[Line]:
    """Return how many times faster than one request at a time, both ways; NaN without that run."""
    lines = []
    for name, end, is_open in WAYS:
        key = f"continuous_vs_serial_speedup{end}"
        x, y = values_of(group, places, lambda p, key=key: p.record["results"].get(key))
        lines.append(Line(name, x, y, run_path(group[0]), is_open, places.is_ordered))
    return lines


def draw_lines(content: dict[Axes, list[Line]], height_in: float) -> None:
    """Draw lines into panels that share a y axis from 0, and name them beside the last panel."""
    most = max(np.nanmax(line.y, initial=0) for lines in content.values() for line in lines)
    for ax, lines in content.items():
        for line in lines:
            panels.draw_line(ax, line.x, line.y, PATH_LOOKS[line.path], **line.style)
        ax.set_ylim(0, 1.08 * most or 1)
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        if np.isnan([value for line in lines for value in line.y]).all():
            panels.say(ax, "not measured")
    ax, lines = list(content.items())[-1]
    ends = [
        labels.End(line.y[-1], line.name, PATH_LOOKS[line.path], line.style)
        for line in lines
        if np.isfinite(line.y[-1]) and line.name
    ]
    labels.label_ends(ax, ends, height_in)
