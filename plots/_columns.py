"""Time and bandwidth against x, one column a series: what 01 and own sweeps share."""

from collections.abc import Sequence
from math import ceil

from matplotlib.figure import Figure

from numbadsd.bench.sweep.records import PointResult
from numbadsd.plots import _labels as labels
from numbadsd.plots import _panels as panels
from numbadsd.plots._data import BACKENDS, available_paths, curves_of, places_of
from numbadsd.plots._style import SHADE, WIDTH_IN

TIME_IN, FRACTION_IN = 2.75, 1.25
_AXES_IN, _NAMES_IN = 0.7, 1.25  # left of the columns, and right of them
_MOST_IN_A_ROW = 4


def rows_of(num_series: int) -> tuple[int, int]:
    """Return rows and columns of panels."""
    columns = num_series if num_series <= _MOST_IN_A_ROW else ceil(num_series / 2)
    columns = min(columns, _MOST_IN_A_ROW)
    return ceil(num_series / columns), columns


def body_in(num_series: int) -> float:
    """Return the height that the columns need."""
    return rows_of(num_series)[0] * (TIME_IN + FRACTION_IN + 0.45)


def draw_columns(figure: Figure, groups: dict[str, list[PointResult]], cross: bool) -> None:
    """Draw one column for each series; with `cross`, mark where sparse overtakes dense."""
    points = [point for group in groups.values() for point in group]
    places, x_name = places_of(points), points[0].x_name
    cross = cross and places.is_log
    rows, columns = rows_of(len(groups))
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=[TIME_IN, FRACTION_IN] * rows)
    curves = [curves_of(group, places) for group in groups.values()]
    times, fractions = [], []
    for n in range(len(groups)):
        row, column = divmod(n, columns)
        times.append(figure.add_subplot(grid[2 * row, column]))
        fractions.append(figure.add_subplot(grid[2 * row + 1, column]))
    width_in = (WIDTH_IN - _AXES_IN - _NAMES_IN) / columns - 0.15
    backends = sum(f"dense_{b}" in available_paths(points) for b in BACKENDS) if cross else 0
    for ax, below, name, group in zip(times, fractions, groups, curves, strict=True):
        panels.draw_times(ax, group, places.is_ordered)
        panels.draw_fractions(below, group, places.is_ordered)
        for axes in (ax, below):
            panels.set_x(axes, places, x_name, width_in)
        ax.set_xlabel("")
        ax.tick_params(labelbottom=False)
        ax.set_title(name)
    finish_rows(times, fractions, curves, columns, backends)
    if cross:
        for ax, below, group, each in zip(times, fractions, curves, groups.values(), strict=True):
            panels.mark_crossings(ax, group, width_in, TIME_IN)
            for axes in (ax, below):
                _shade_all_read(axes, each)


def _shade_all_read(ax, points: Sequence[PointResult]) -> None:
    """Shade the contexts of which sparse reads every page: there it is dense with a detour."""
    models = [point.record["config"]["model"] for point in points]
    tokens = min(model["top_k_pages"] * model["page_size"] for model in models)
    left, right = ax.get_xlim()
    if tokens > left:
        ax.axvspan(left, min(tokens, right), color=SHADE, zorder=0, linewidth=0)


def finish_rows(times: Sequence, fractions: Sequence, curves: Sequence, columns: int, text_rows):
    """Give all columns the same axes, and name what is on them once a row."""
    everything = [times for group in curves for times in panels.times_in(group)]
    panels.set_log_y(times, everything, TIME_IN, text_rows * panels.ROWS_A_CROSSING + 0.3)
    panels.set_fraction_y(fractions, curves)
    for n, (ax, below) in enumerate(zip(times, fractions, strict=True)):
        if n % columns == 0:
            ax.set_ylabel("time of a step, ms")
            below.set_ylabel("share of measured\nbandwidth")
        else:
            ax.tick_params(labelleft=False)
            below.tick_params(labelleft=False)
    labels.label_paths(times, curves, TIME_IN)
