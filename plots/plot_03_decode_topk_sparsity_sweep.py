"""Figure 03: what each selected page costs, and what the selection keeps."""

import numpy as np
from matplotlib.axes import Axes

from numbadsd.plots import _labels as labels
from numbadsd.plots import _panels as panels
from numbadsd.plots._caption import caption_of
from numbadsd.plots._data import (
    Curve,
    Places,
    curves_of,
    measured_decode,
    places_of,
    quality_of,
    speedups_of,
    values_of,
)
from numbadsd.plots._main import plot_command
from numbadsd.plots._panels import TIME_KEY
from numbadsd.plots._style import INK, SMALL_PT, Look, house_style, open_figure

NAME = "03_decode_topk_sparsity_sweep"
TITLE = "What does each selected page cost, and what does it keep?"
_ABOVE_IN, _BELOW_IN, _WIDTH_IN = 2.8, 1.5, 3.0
_QUALITIES = {
    "attention_mass": Look("attention mass", "#000000", "o"),
    "page_recall": Look("page recall", "#56B4E9", "s", (0, (4, 1.1))),
    "density": Look("density", "#6e6e6e", "", (0, (1, 1.2))),
}
_ERROR = Look("", "#D55E00", "D")
_WORDS = (
    "Attention mass: softmax mass on the selected tokens. Page recall: share of the true top-k "
    "pages that was selected. Density: tokens read / context. Output error: ||sparse - dense|| / "
    "||dense||."
)


@house_style()
def draw(points):
    """Return the figure: time and bandwidth left, what is kept and the error right."""
    shown = measured_decode(points, NAME)
    places = places_of(shown)
    curves = curves_of(shown, places)
    key = f"{TIME_KEY} Numbers: how many times faster than dense."
    caption = caption_of(points, shown, [_WORDS])
    figure = open_figure(TITLE, key, caption, _ABOVE_IN + _BELOW_IN + 0.6)
    grid = figure.add_gridspec(2, 2, height_ratios=[_ABOVE_IN, _BELOW_IN])
    times, kept, fractions, errors = (figure.add_subplot(cell) for cell in grid)
    for ax in (times, kept, fractions, errors):
        panels.set_x(ax, places, shown[0].x_name, _WIDTH_IN)
    for ax in (times, kept):
        ax.set_xlabel("")
        ax.tick_params(labelbottom=False)
    _draw_times(times, curves)
    panels.draw_fractions(fractions, curves)
    panels.set_fraction_y([fractions], [curves])
    fractions.set_ylabel("share of measured\nbandwidth")
    _draw_kept(kept, shown, places)
    _draw_errors(errors, shown, places)
    return figure


def _draw_times(ax: Axes, curves: dict[str, Curve]) -> None:
    panels.draw_times(ax, curves)
    panels.set_log_y([ax], panels.times_in(curves), _ABOVE_IN)
    labels.label_paths([ax], [curves], _ABOVE_IN)
    ax.set_title("speed")
    ax.set_ylabel("time of a step, ms")
    for path, (x, ratios) in speedups_of(curves).items():
        sparse = dict(zip(curves[path].x, curves[path].median, strict=True))
        for n, (place, ratio) in enumerate(zip(x, ratios, strict=True)):
            aside = -4 if n > 1 else 0  # of the curve, where it rises
            ax.annotate(
                panels.times_text(ratio), (place, sparse[place]), (aside, 6), color=INK,
                textcoords="offset points", ha="center", va="bottom", size=SMALL_PT - 0.5,
            )  # fmt: skip


def _draw_kept(ax: Axes, shown, places: Places) -> None:
    """Draw shares from 0 to 1 of what dense attends to."""
    ax.set_title("quality")
    ends = []
    for name, look in _QUALITIES.items():
        x, y = values_of(shown, places, lambda point, name=name: quality_of(point, name))
        if np.isfinite(y).any():
            panels.draw_line(ax, x, y, look)
            ends.append(labels.End(y[np.isfinite(y)][-1], look.label, look))
    if not ends:
        return panels.say(ax, panels.NO_QUALITY)
    ax.set_ylim(0, 1.05)
    ax.set_ylabel("share, 0 to 1")
    return labels.label_ends(ax, ends, _ABOVE_IN)


def _draw_errors(ax: Axes, shown, places: Places) -> None:
    """Draw the relative error of the output, from 0."""
    x, y = values_of(shown, places, lambda point: quality_of(point, "output_relative_error"))
    if not np.isfinite(y).any():
        return panels.say(ax, panels.NO_QUALITY)
    panels.draw_line(ax, x, y, _ERROR, **panels.SMALL_LINE)
    panels.set_ratio_y(ax, max(1.0, np.nanmax(y)))
    return ax.set_ylabel("relative error\nof the output")


main = plot_command(NAME, draw)

if __name__ == "__main__":
    main()
