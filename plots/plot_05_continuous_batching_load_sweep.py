"""Figure 05: throughput of continuous batching both ways, and what arrivals change."""

from matplotlib.figure import Figure

from numbadsd.bench.sweep.records import PointResult
from numbadsd.plots import _panels as panels
from numbadsd.plots._caption import caption_of
from numbadsd.plots._continuous import (
    KEY,
    SPEEDUP_IN,
    WAYS,
    body_in,
    draw_lines,
    draw_throughput,
    lines_of,
)
from numbadsd.plots._data import by_series, measured_continuous, places_of
from numbadsd.plots._main import plot_command
from numbadsd.plots._style import house_style, open_figure

NAME = "05_continuous_batching_load_sweep"
TITLE = "What does decoding many requests together bring?"
_ARRIVALS_IN = SPEEDUP_IN + 0.7
_PANEL_IN = 2.2
_STEP_WAYS = (("p50", "p50_step_ms", False), ("p95", "p95_step_ms", True))


@house_style()
def draw(points):
    """Return the figure: throughput and speed-up for each prompt length; arrivals below."""
    shown = measured_continuous(points, NAME)
    arrivals = [point for point in shown if point.x_name == "arrival_window"]
    loads = by_series([point for point in shown if point.x_name != "arrival_window"])
    heights = [body_in(len(loads)) if loads else 0, _ARRIVALS_IN if arrivals else 0]
    notes = ["Arrival window: requests arrive at random within so many steps; 0: all at once."]
    caption = caption_of(points, shown, notes if arrivals else [])
    figure = open_figure(TITLE, KEY, caption, sum(heights))
    parts = [height for height in heights if height]
    grid = figure.add_gridspec(len(parts), 1, height_ratios=parts)
    if loads:
        draw_throughput(figure, grid[0], loads)
    if arrivals:
        _draw_arrivals(figure, grid[-1], arrivals)
    return figure


def _draw_arrivals(figure: Figure, cell, points: list[PointResult]) -> None:
    """Draw throughput, time of a step, and requests per step against the arrival window."""
    places, spec = places_of(points), cell.subgridspec(1, 3)
    active = (("", "avg_active_batch_size", False),)
    for column, (title, unit, key, ends) in enumerate(
        (
            ("arrivals: throughput", "new tokens per second", "tokens_per_second", WAYS),
            ("arrivals: a step", "time of a step, ms", "", _STEP_WAYS),
            ("arrivals: batch", "mean of active requests", "", active),
        )
    ):
        ax = figure.add_subplot(spec[column])
        panels.set_x(ax, places, points[0].x_name, _PANEL_IN)
        draw_lines({ax: lines_of(points, places, key, ends)}, SPEEDUP_IN)
        ax.set_title(title)
        ax.set_ylabel(unit)


main = plot_command(NAME, draw)

if __name__ == "__main__":
    main()
