"""Figure 04: where the time of a sparse step goes at each page size, and what it keeps."""

import numpy as np
from matplotlib.axes import Axes

from numbadsd.bench.sweep.records import PointResult
from numbadsd.plots import _labels as labels
from numbadsd.plots import _panels as panels
from numbadsd.plots._caption import caption_of
from numbadsd.plots._columns import draw_masses
from numbadsd.plots._data import (
    BACKENDS,
    Places,
    available_paths,
    by_series,
    curves_of,
    measured_decode,
    places_of,
    stage_times,
)
from numbadsd.plots._main import plot_command
from numbadsd.plots._style import (
    INK,
    PATH_LOOKS,
    SMALL_PT,
    STAGE_LOOKS,
    WIDTH_IN,
    Look,
    house_style,
    open_figure,
)

NAME = "04_decode_page_size_sweep"
TITLE = "Which page size, at as many pages or at as many tokens?"
_KEY = (
    "Stacked: medians of the stages of a sparse step. Dot: median of the whole step, with its p5 "
    "to p95; above it in ms and, bold, how many times faster than dense. Dotted dash: floor, the "
    "time of its bytes at the bandwidth measured in the same run."
)
_STACK_IN, _LOW_IN = 2.6, 1.15
_BAR, _ROOM = 0.56, 1.32  # width of a bar; axis above the highest, for what is written there
_FAR = 1.6  # a dense step so much longer than any sparse one is named, not drawn
_WHOLE = Look("whole step", INK, "o", "none")
_GROUND = dict(facecolor="white", edgecolor="none", alpha=0.8, pad=0.4)  # a dash may lie behind


@house_style()
def draw(points):
    """Return the figure: a column for each series; stages, then bandwidth and attention mass."""
    shown = measured_decode(points, NAME)
    groups, places = by_series(shown), Places(places_of(shown).values, False)
    backends = [b for b in BACKENDS if f"sparse_{b}" in available_paths(shown)]
    if not backends:
        raise ValueError(f"no measured point of a sparse path in {NAME}")
    heights = [_STACK_IN] * len(backends) + [_LOW_IN, _LOW_IN]
    figure = open_figure(TITLE, _KEY, caption_of(points, shown), sum(heights) + 0.6)
    grid = figure.add_gridspec(len(heights), len(groups), height_ratios=heights)
    cells = np.array([[figure.add_subplot(grid[r, c]) for c in range(len(groups))]
                      for r in range(len(heights))])  # fmt: skip
    for r, row in enumerate(cells):
        is_last = r == len(cells) - 1
        for n, ax in enumerate(row):
            panels.set_x(ax, places, shown[0].x_name, (WIDTH_IN - 2) / len(groups))
            ax.tick_params(labelleft=n == 0, labelbottom=is_last)
            ax.set_xlabel(ax.get_xlabel() if is_last else "")
    for row, backend in zip(cells, backends, strict=False):
        _draw_stacks(row, groups, places, backend)
    for ax, name in zip(cells[0], groups, strict=True):
        ax.set_title(f"{name} selected" if name else "")
    _draw_fractions(cells[-2], groups, places)
    draw_masses(cells[-1], groups.values(), places, len(groups))
    return figure


def _draw_stacks(row, groups: dict[str, list[PointResult]], places: Places, backend: str) -> None:
    """Draw the stages of one backend's sparse path, a panel for each series."""
    path = f"sparse_{backend}"
    tops, dense = [0.0], []
    for ax, group in zip(row, groups.values(), strict=True):
        curves = curves_of(group, places)
        ran = [p for p in group if available_paths([p]) and path in available_paths([p])]
        dense += list(curves[f"dense_{backend}"].median) if f"dense_{backend}" in curves else []
        for point in ran:
            entry = point.record["paths"][path]
            tops.append(_stack(ax, places.at(point.x), stage_times(entry)))
        if path in curves:
            tops += [*curves[path].p95, *curves[path].median]
            _draw_totals(ax, curves, backend)
    high = _ROOM * max(tops)
    for n, ax in enumerate(row):
        ax.set_ylim(0, max(high, 1e-6))
        if n == 0:
            ax.set_ylabel(f"{PATH_LOOKS[path].label} step, ms")
    ends = _draw_dense(row, groups, places, f"dense_{backend}", high)
    ends += _stage_ends(list(groups.values())[-1], path)
    labels.label_ends(row[-1], ends, _STACK_IN)


def _stack(ax: Axes, x: float, stages: dict[str, float]) -> float:
    """Draw the stages of one step on top of each other; returns how high they reach."""
    bottom = 0.0
    for stage, time in stages.items():
        if time > 0:
            style = labels.bar_style(STAGE_LOOKS[stage])
            ax.bar(x, time, _BAR, bottom, **style, zorder=2)
            bottom += time
    return bottom


def _draw_totals(ax: Axes, curves, backend: str) -> None:
    """Draw spread and floor of the whole step, and write its time and the speed-up above."""
    curve, dense = curves[f"sparse_{backend}"], curves.get(f"dense_{backend}")
    ax.vlines(curve.x, curve.p5, curve.p95, color=INK, linewidth=1.2, zorder=4)
    panels.draw_line(ax, curve.x, curve.median, _WHOLE, zorder=5)
    dash = dict(color=INK, linewidth=1.5, linestyle=(0, (1, 1)), zorder=4)
    ax.hlines(curve.floor_ms, curve.x - 0.36, curve.x + 0.36, **dash)
    speedups = {} if dense is None else dict(zip(dense.x, dense.median, strict=True))
    for x, median, p95 in zip(curve.x, curve.median, curve.p95, strict=True):
        above = (x, max(median, p95))
        style = dict(textcoords="offset points", ha="center", va="bottom", zorder=6, bbox=_GROUND)
        ax.annotate(panels.three_digits(median), above, (0, 3), size=SMALL_PT, **style)
        if x in speedups:
            text = panels.times_text(speedups[x] / median)
            ax.annotate(text, above, (0, 14), size=SMALL_PT, weight="bold", **style)


def _draw_dense(row, groups, places: Places, path: str, high: float) -> list[labels.End]:
    """Draw the dense step as a dash where it is near, or write how long it takes."""
    look = PATH_LOOKS[path]
    curves = [curves_of(group, places).get(path) for group in groups.values()]
    times = [time for curve in curves if curve is not None for time in curve.median]
    if not times:
        return []
    if max(times) > _FAR * high:
        ends = " to ".join(dict.fromkeys(panels.three_digits(t) for t in (min(times), max(times))))
        row[0].text(
            0.02, 0.99, f"{look.label}: {ends} ms, above this scale", color=look.ink, va="top",
            transform=row[0].transAxes, size=SMALL_PT,
        )  # fmt: skip
        return []
    for ax, curve in zip(row, curves, strict=True):
        ax.set_ylim(0, max(high, 1.1 * max(times)))
        if curve is not None:
            ends = (curve.x - _BAR / 2 - 0.1, curve.x + _BAR / 2 + 0.1)
            ax.hlines(curve.median, *ends, color=look.color, linewidth=2, zorder=4)
    return [labels.End(times[-1], look.label, look, dict(marker="", linestyle="-", linewidth=2))]


def _stage_ends(group: list[PointResult], path: str) -> list[labels.End]:
    """Return the names of the stages, as high as they stand in the last bar."""
    entries = [p.record["paths"].get(path, {}) for p in group]
    stages = [stage_times(entry) for entry in entries if entry.get("available")]
    bottom, ends = 0.0, []
    for stage, look in STAGE_LOOKS.items():
        if any(times[stage] > 0 for times in stages):
            time = stages[-1][stage]
            ends.append(labels.End(bottom + time / 2, look.label, look, is_bar=True))
            bottom += time
    return ends


def _draw_fractions(row, groups, places: Places) -> None:
    curves = [curves_of(group, places) for group in groups.values()]
    for ax, group in zip(row, curves, strict=True):
        panels.draw_fractions(ax, group)
    panels.set_fraction_y(row, curves)
    row[0].set_ylabel("share of meas.\nbandwidth")
    labels.label_paths(row, curves, _LOW_IN, "fraction")


main = plot_command(NAME, draw)

if __name__ == "__main__":
    main()
