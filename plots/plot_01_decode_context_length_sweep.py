"""Figure 01: time of a decode step against the context, and where sparse overtakes dense."""

from numbadsd.plots._caption import caption_of
from numbadsd.plots._columns import body_in, draw_columns
from numbadsd.plots._data import by_series, measured_decode
from numbadsd.plots._main import plot_command
from numbadsd.plots._panels import TIME_KEY
from numbadsd.plots._style import house_style, open_figure

NAME = "01_decode_context_length_sweep"
TITLE = "From which context is sparse decode faster than dense?"


@house_style()
def draw(points):
    """Return the figure: a column for each batch, the achieved bandwidth below."""
    shown = measured_decode(points, NAME)
    groups = by_series(shown)
    notes = [
        "Ring: where the medians of sparse and dense cross, interpolated.",
        *_break_even(shown),
        "Grey ground: contexts of at most k pages, all of which sparse reads as well.",
    ]
    figure = open_figure(TITLE, TIME_KEY, caption_of(points, shown, notes), body_in(len(groups)))
    draw_columns(figure, groups, cross=True)
    return figure


def _break_even(shown) -> list[str]:
    """Say where sparse would break even if bytes alone decided, when all points agree on it."""
    verdicts = [point.record.get("verdict") or {} for point in shown]
    tokens = {verdict.get("break_even_context_tokens") for verdict in verdicts}
    if len(tokens) != 1 or None in tokens:
        return []
    return [f"If bytes alone decided, it would be at {tokens.pop():,.0f} tokens."]


main = plot_command(NAME, draw)

if __name__ == "__main__":
    main()
