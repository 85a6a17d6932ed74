"""Figure of an own sweep: dense and sparse along its x, or what continuous batching reached."""

from numbadsd.plots import _columns as columns
from numbadsd.plots import _continuous as continuous
from numbadsd.plots._caption import caption_of
from numbadsd.plots._data import by_series, measured_continuous, measured_decode, quality_of
from numbadsd.plots._main import plot_command
from numbadsd.plots._panels import TIME_KEY
from numbadsd.plots._style import house_style, open_figure

NAME = "grid"
TITLE = "Own sweep: dense or sparse?"
_MOST_SERIES = 6


@house_style()
def draw(points):
    """Return the figure: a column for each series, six at most; the rest are named below it."""
    is_serving = next((p.command for p in points if p.ok), "") == "dsd_continuous_bench"
    measured = (measured_continuous if is_serving else measured_decode)(points, NAME)
    groups = by_series(measured)
    drawn = dict(list(groups.items())[:_MOST_SERIES])
    shown = [point for group in drawn.values() for point in group]
    rest = [name for name in groups if name not in drawn]
    notes = [f"Not drawn, more than {_MOST_SERIES} series: {'; '.join(rest)}."] if rest else []
    cross = not is_serving and shown[0].x_name == "context_tokens"
    if cross:
        notes.insert(0, "Ring: where the medians of sparse and dense cross, interpolated.")
    caption = caption_of([p for p in points if p.series not in rest], shown, notes)
    if is_serving:
        figure = open_figure(TITLE, continuous.KEY, caption, continuous.body_in(len(drawn)))
        continuous.draw_throughput(figure, figure.add_gridspec(1, 1)[0], drawn)
    else:
        kept = any(quality_of(point, "attention_mass") is not None for point in shown)
        figure = open_figure(TITLE, TIME_KEY, caption, columns.body_in(len(drawn), kept))
        columns.draw_columns(figure, drawn, cross, kept)
    return figure


main = plot_command(NAME, draw)

if __name__ == "__main__":
    main()
