"""Figure 00: time of one decode step by every path, at a few contexts."""

from matplotlib.axes import Axes

from numbadsd.plots import _labels as labels
from numbadsd.plots import _panels as panels
from numbadsd.plots._caption import caption_of
from numbadsd.plots._data import BACKENDS, Curve, Places, curves_of, measured_decode, places_of
from numbadsd.plots._main import plot_command
from numbadsd.plots._style import (
    GRID,
    INK,
    PATH_LOOKS,
    SMALL_PT,
    WIDTH_IN,
    house_style,
    open_figure,
)

NAME = "00_backend_total_time"
TITLE = "How long does one decode step take, by path?"
_KEY = (
    "Marker: median of a step; bar through it: p5 to p95 of its samples. Dotted dash: floor, the "
    "time of the path's bytes at the bandwidth measured in the same run. Bold: how many times "
    "faster sparse is than dense on the same backend."
)
_TIME_IN, _FRACTION_IN = 3.6, 1.2
_ASIDE = 0.22  # from the middle of a context to its CPU or GPU column, when there are both


@house_style()
def draw(points):
    """Return the figure: for each context the paths on a log axis, the bandwidth below."""
    shown = measured_decode(points, NAME)
    places = Places(places_of(shown).values, False)
    curves = curves_of(shown, places)
    figure = open_figure(TITLE, _KEY, caption_of(points, shown), _TIME_IN + _FRACTION_IN + 0.4)
    grid = figure.add_gridspec(2, 1, height_ratios=[_TIME_IN, _FRACTION_IN])
    times, fractions = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
    for ax in (times, fractions):
        panels.set_x(ax, places, shown[0].x_name, WIDTH_IN - 2)
    times.set_xlabel("")
    times.tick_params(labelbottom=False)
    _draw_times(times, curves)
    times.set_ylabel("time of a step, ms")
    labels.label_paths([times], [curves], _TIME_IN)
    for path, curve in curves.items():
        look = PATH_LOOKS[path]
        x = curve.x + _aside(path, curves)
        panels.draw_line(fractions, x, curve.fraction, look, linestyle="none")
    panels.set_fraction_y([fractions], [curves])
    fractions.set_ylabel("share of measured\nbandwidth")
    return figure


def _aside(path: str, curves: dict[str, Curve]) -> float:
    """Return how far from the middle of a context a path stands."""
    if len({name.split("_")[1] for name in curves}) < 2:
        return 0.0
    return -_ASIDE if path.endswith("cpu") else _ASIDE


def _draw_times(ax: Axes, curves: dict[str, Curve]) -> None:
    panels.set_log_y([ax], panels.times_in(curves), _TIME_IN, 1)
    for path, curve in curves.items():
        look, x = PATH_LOOKS[path], curve.x + _aside(path, curves)
        ax.vlines(x, curve.p5, curve.p95, color=look.color, linewidth=4, alpha=0.35, zorder=3)
        dash = dict(color=look.color, linewidth=1.6, linestyle=(0, (1, 1)), zorder=2)
        ax.hlines(curve.floor_ms, x - 0.08, x + 0.08, **dash)
        panels.draw_line(ax, x, curve.median, look, linestyle="none", markersize=7)
    for backend in BACKENDS:
        pair = [(n, curves[n]) for n in (f"dense_{backend}", f"sparse_{backend}") if n in curves]
        _label(ax, pair, _aside(backend, curves))


def _label(ax: Axes, pair: list[tuple[str, Curve]], aside: float) -> None:
    """Write the times of a backend's paths beside their markers, and the speed-up between them."""
    for place in sorted({x for _, curve in pair for x in curve.x}):
        marks = {p: t for p, c in pair for x, t in zip(c.x, c.median, strict=True) if x == place}
        notes = [
            (time, panels.three_digits(time), PATH_LOOKS[path].ink) for path, time in marks.items()
        ]
        if len(marks) == 2:
            dense, sparse = marks.values()
            ax.vlines(place + aside, *sorted((dense, sparse)), color=GRID, zorder=1)
            notes.insert(1, ((dense * sparse) ** 0.5, panels.times_text(dense / sparse), INK))
        wanted = [labels.y_fraction(ax, y) for y, _, _ in notes]
        heights = labels.spread(wanted, labels.LABEL_IN / _TIME_IN)
        for (_, text, color), y in zip(notes, heights, strict=True):
            ax.text(
                place + aside + 0.1, y, text, transform=ax.get_xaxis_transform(), color=color,
                va="center", size=SMALL_PT + 1, weight="bold" if color == INK else "normal",
            )  # fmt: skip


main = plot_command(NAME, draw)

if __name__ == "__main__":
    main()
