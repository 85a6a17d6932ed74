"""Figure 02: a decode step, and its part for each request, against the batch size."""

from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes

from numbadsd.plots import _labels as labels
from numbadsd.plots import _panels as panels
from numbadsd.plots._caption import caption_of
from numbadsd.plots._data import Curve, curves_of, measured_decode, places_of, speedups_of
from numbadsd.plots._main import plot_command
from numbadsd.plots._panels import TIME_KEY
from numbadsd.plots._style import PATH_LOOKS, house_style, open_figure

NAME = "02_decode_batch_scaling_sweep"
TITLE = "What does a larger batch cost, and what does each request save?"
_ABOVE_IN, _BELOW_IN, _WIDTH_IN = 2.5, 1.5, 3.2


@house_style()
def draw(points):
    """Return the figure: time of a step and per request; bandwidth and speed-up below."""
    shown = measured_decode(points, NAME)
    places = places_of(shown)
    curves = curves_of(shown, places)
    figure = open_figure(TITLE, TIME_KEY, caption_of(points, shown), _ABOVE_IN + _BELOW_IN + 0.6)
    grid = figure.add_gridspec(2, 2, height_ratios=[_ABOVE_IN, _BELOW_IN])
    steps, requests, fractions, speedups = (figure.add_subplot(cell) for cell in grid)
    batches = {places.at(point.x): point.record["data"]["requests"] for point in shown}
    each = {path: _per_request(curve, batches) for path, curve in curves.items()}
    for ax in (steps, requests, fractions, speedups):
        panels.set_x(ax, places, shown[0].x_name, _WIDTH_IN)
    for ax in (steps, requests):
        ax.set_xlabel("")
        ax.tick_params(labelbottom=False)
    _draw_times(steps, curves, "a step of the whole batch", "time of a step, ms")
    _draw_times(requests, each, "its part for one request", "step / batch, us")
    labels.label_paths([requests], [each], _ABOVE_IN)
    panels.draw_fractions(fractions, curves)
    panels.set_fraction_y([fractions], [curves])
    fractions.set_ylabel("share of measured\nbandwidth")
    _draw_speedups(speedups, curves)
    return figure


def _per_request(curve: Curve, batches: dict[float, int]) -> Curve:
    """Return the times of a curve in microseconds per request."""
    scale = np.array([1e3 / batches[x] for x in curve.x])
    names = ("median", "p5", "p95", "floor_ms")
    return replace(curve, **{name: getattr(curve, name) * scale for name in names})


def _draw_times(ax: Axes, curves: dict[str, Curve], title: str, unit: str) -> None:
    panels.draw_times(ax, curves)
    panels.set_log_y([ax], panels.times_in(curves), _ABOVE_IN)
    ax.set_title(title)
    ax.set_ylabel(unit)


def _draw_speedups(ax: Axes, curves: dict[str, Curve]) -> None:
    """Draw how many times faster sparse is than dense of the same backend."""
    ends, most = [], 1.0
    for path, (x, ratio) in speedups_of(curves).items():
        look = PATH_LOOKS[path]
        panels.draw_line(ax, x, ratio, look, **panels.SMALL_LINE)
        ends.append(labels.End(ratio[-1], look.label, look))
        most = max(most, ratio.max())
    panels.set_ratio_y(ax, most)
    ax.set_ylabel("dense / sparse time")
    if ends:
        labels.label_ends(ax, ends, _BELOW_IN)
    else:
        panels.say(ax, "only one of dense and sparse ran")


main = plot_command(NAME, draw)

if __name__ == "__main__":
    main()
