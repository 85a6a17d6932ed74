"""Time and bandwidth against x, one column a series: what 01 and own sweeps share."""

from collections.abc import Iterable, Sequence
from math import ceil

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from numbadsd.bench.sweep.records import PointResult
from numbadsd.plots import _labels as labels
from numbadsd.plots import _panels as panels
from numbadsd.plots._data import (
    BACKENDS,
    Places,
    available_paths,
    curves_of,
    places_of,
    quality_of,
    values_of,
)
from numbadsd.plots._style import BASE_PT, SHADE, SMALL_PT, WIDTH_IN, Look, wrap

TIME_IN, FRACTION_IN = 2.75, 1.25
_TITLE_PT = BASE_PT + 0.5
_MASS = Look("attention mass", "#000000", "o")
_MOST_NUMBERS = 4  # in a panel: more would touch
_AXES_IN, _NAMES_IN = 0.7, 1.25  # left of the columns, and right of them
_MOST_IN_A_ROW = 4


def rows_of(num_series: int) -> tuple[int, int]:
    """Return rows and columns of panels."""
    columns = num_series if num_series <= _MOST_IN_A_ROW else ceil(num_series / 2)
    columns = min(columns, _MOST_IN_A_ROW)
    return ceil(num_series / columns), columns


def body_in(num_series: int, kept: bool = False) -> float:
    """Return the height that the columns need."""
    return rows_of(num_series)[0] * (TIME_IN + (2 if kept else 1) * FRACTION_IN + 0.45)


def draw_columns(
    figure: Figure, groups: dict[str, list[PointResult]], cross: bool, kept: bool = False
) -> None:
    """Draw one column for each series: time, bandwidth and, with `kept`, attention mass.

    With `cross`, mark where sparse overtakes dense.
    """
    points = [point for group in groups.values() for point in group]
    places, x_name = places_of(points), points[0].x_name
    cross = cross and places.is_log
    rows, columns = rows_of(len(groups))
    heights = [TIME_IN, FRACTION_IN, FRACTION_IN][: 3 if kept else 2]
    grid = figure.add_gridspec(len(heights) * rows, columns, height_ratios=heights * rows)
    curves = [curves_of(group, places) for group in groups.values()]
    places_in = [divmod(n, columns) for n in range(len(groups))]
    times, fractions, *masses = (
        [figure.add_subplot(grid[len(heights) * row + part, column]) for row, column in places_in]
        for part in range(len(heights))
    )
    width_in = (WIDTH_IN - _AXES_IN - _NAMES_IN) / columns - 0.15
    backends = sum(f"dense_{b}" in available_paths(points) for b in BACKENDS) if cross else 0
    for ax, below, name, group in zip(times, fractions, groups, curves, strict=True):
        panels.draw_times(ax, group, places.is_ordered)
        panels.draw_fractions(below, group, places.is_ordered)
        for axes in (ax, below):
            panels.set_x(axes, places, x_name, width_in)
        _hide_x(ax)
        ax.set_title("\n".join(wrap(name, _TITLE_PT, bold=True, width_in=width_in)))
    for row in masses:
        draw_masses(row, groups.values(), places, columns)
        for ax, above in zip(row, fractions, strict=True):
            panels.set_x(ax, places, x_name, width_in)
            _hide_x(above)
    finish_rows(times, fractions, curves, columns, backends)
    if cross:
        for ax, below, group, each in zip(times, fractions, curves, groups.values(), strict=True):
            panels.mark_crossings(ax, group, width_in, TIME_IN)
            for axes in (ax, below):
                _shade_all_read(axes, each)


def _hide_x(ax: Axes) -> None:
    """Leave the x axis to the panel below."""
    ax.set_xlabel("")
    ax.tick_params(labelbottom=False)


def draw_masses(
    row: Sequence[Axes], groups: Iterable[Sequence[PointResult]], places: Places, columns: int
) -> None:
    """Draw the softmax mass on the selected tokens, one panel a series, so many in a row."""
    for n, (ax, group) in enumerate(zip(row, groups, strict=True)):
        x, y = values_of(group, places, lambda point: quality_of(point, "attention_mass"))
        ax.set_ylim(0, 1.05)
        ax.set_ylabel("" if n % columns else "attention mass\nkept, 0 to 1")
        ax.tick_params(labelleft=n % columns == 0)
        if not np.isfinite(y).any():
            panels.say(ax, panels.NO_QUALITY)
            continue
        panels.draw_line(ax, x, y, _MASS, **panels.SMALL_LINE)
        for place, mass in zip(x, y, strict=True):
            if np.isfinite(mass) and len(x) <= _MOST_NUMBERS:
                ax.annotate(
                    f"{mass:.2f}", (place, mass), (0, 5 if mass < 0.8 else -12),
                    textcoords="offset points", ha="center", size=SMALL_PT,
                )  # fmt: skip


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
