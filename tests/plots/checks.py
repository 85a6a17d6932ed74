"""What a reader needs of every figure: words in their places, and none over another."""

from matplotlib.text import Text


def texts_of(figure) -> list[Text]:
    """Return every text that can be seen, tick labels included, after laying out the figure."""
    if not getattr(figure, "is_laid_out", False):  # it takes a while
        figure.draw_without_rendering()
        figure.is_laid_out = True
    hidden = _not_drawn(figure)
    return [
        text
        for text in figure.findobj(Text)
        if text.get_text().strip() and text.get_visible() and id(text) not in hidden
    ]


def _not_drawn(figure) -> set[int]:
    """Return the texts of axes that are off, and of ticks outside of what an axis shows."""
    hidden = set()
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            hidden |= set() if ax.axison else {id(axis.label)}
            for tick in axis.get_major_ticks() + axis.get_minor_ticks():
                if not (ax.axison and low <= tick.get_loc() <= high):
                    hidden |= {id(tick.label1), id(tick.label2)}
    return hidden


def words_of(figure) -> list[str]:
    """Return what can be read."""
    return [text.get_text() for text in texts_of(figure)]


def caption(figure) -> str:
    """Return the caption, its lines joined."""
    return " ".join(figure.texts[2].get_text().split())


def faults(figure) -> list[tuple[str, ...]]:
    """Return the texts that are cut off at the edge, and the pairs that lie over each other."""
    width, height = figure.bbox.size
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts_of(figure)]
    cut_off = [
        (text,)
        for text, box in boxes
        if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height
    ]
    return cut_off + [
        (first, second)
        for i, (first, a) in enumerate(boxes)
        for second, b in boxes[i + 1 :]
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 2 and min(a.y1, b.y1) - max(a.y0, b.y0) > 3
    ]
