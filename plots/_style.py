"""One look for every figure: colours that survive greyscale, sizes, frame and caption."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path

# Shown 900 pixels wide, as in a README, a point of type is 1.4 pixels.
WIDTH_IN = 9.0
BASE_PT, SMALL_PT, CAPTION_PT, TITLE_PT = 9.0, 8.0, 7.6, 13.0
_LINE_SPACING = 1.32
_SIDE_IN, _TOP_IN, _GAP_IN = 0.14, 0.12, 0.1

BLUE = "#005B8F"
PNG_DPI = 200
INK, MUTED, GRID, SHADE = "#1a1a1a", "#555555", "#dddddd", "#f0f0f0"

_STYLE = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same everywhere
    "font.size": BASE_PT,
    "text.parse_math": False,  # reasons and names are plain text, also with a $
    "text.color": INK,
    "figure.facecolor": "white",
    "figure.dpi": PNG_DPI,
    "axes.facecolor": "white",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": BASE_PT,
    "axes.titlesize": BASE_PT + 0.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "xtick.labelsize": SMALL_PT + 0.5,
    "ytick.labelsize": SMALL_PT + 0.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.0,
    "hatch.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": SMALL_PT + 0.5,
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "numbadsd",  # the same bytes every time
}


_INK_LUMINANCE = 0.15  # has a contrast of 5 to white


@dataclass(frozen=True)
class Look:
    """How one role is drawn: by its colour, its lightness, its marker and its line."""

    label: str
    color: str
    marker: str
    line: object = "-"
    hatch: str = ""

    @property
    def ink(self) -> str:
        """Its colour, dark enough for small type on white."""
        factor = min(1.0, (_INK_LUMINANCE / max(luminance(self.color), 0.01)) ** 0.45)
        return to_hex([factor * part for part in to_rgb(self.color)])


# Okabe and Ito's colours, safe for colour-blind readers; those of one group differ in lightness.
# Their blue is darkened here: in greyscale it would equal their green.
PATH_LOOKS = {
    "dense_cpu": Look("dense CPU", BLUE, "o", "-"),
    "sparse_cpu": Look("sparse CPU", "#E69F00", "s", (0, (4, 1.1))),
    "dense_gpu": Look("dense GPU", "#000000", "^", "-"),
    "sparse_gpu": Look("sparse GPU", "#009E73", "D", (0, (3, 1.4))),
    "torch_sdpa": Look("torch SDPA", "#6e6e6e", "X", (0, (6, 1.5, 1, 1.5))),
    "torch_sdpa_gpu": Look("torch SDPA, GPU", "#6e6e6e", "X", (0, (6, 1.5, 1, 1.5))),
}
# Other colours where a figure shows both.
STAGE_LOOKS = {
    "score": Look("score", "#56B4E9", "v"),
    "topk": Look("top-k", "#000000", "P", (0, (5, 1.5))),
    "gather": Look("gather", "#F0E442", "s"),
    "attend": Look("attend", "#D55E00", "o"),
    "overheads": Look("overheads", "#ffffff", "x", (0, (1, 1.2)), "/////"),
}


def luminance(color: str) -> float:
    """Return how light a colour is in greyscale, 0 to 1 (the relative luminance of sRGB)."""
    parts = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in to_rgb(color)]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))


@contextmanager
def house_style() -> Iterator[None]:
    """Draw or save with this style, whatever the user's own settings are; they come back after."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def open_figure(title: str, subtitle: str, caption: Sequence[str], body_in: float) -> Figure:
    """Return a figure with its title, what it shows, and its caption, as high as these need.

    Parameters
    ----------
    title : str
        The question.
    subtitle : str
        How to read the picture.
    caption : sequence of str
        Paragraphs below: what was measured, and on what.
    body_in : float
        Height left for the panels; their places are found when the figure is drawn.
    """
    heads, notes = wrap(title, TITLE_PT, bold=True), wrap(subtitle, BASE_PT)
    lines = [line for paragraph in caption for line in wrap(paragraph, CAPTION_PT)]
    title_in, notes_in, lines_in = (
        len(texts) * size * _LINE_SPACING / 72
        for texts, size in ((heads, TITLE_PT), (notes, BASE_PT), (lines, CAPTION_PT))
    )
    above, below = _TOP_IN + title_in + notes_in + _GAP_IN, lines_in + 2 * _GAP_IN
    height = above + body_in + below
    figure = Figure(figsize=(WIDTH_IN, height), layout="constrained")
    side = _SIDE_IN / WIDTH_IN
    figure.get_layout_engine().set(
        rect=(side / 2, below / height, 1 - side, body_in / height), w_pad=0.06, h_pad=0.05
    )
    place = dict(va="top", ha="left", linespacing=_LINE_SPACING)
    y = 1 - _TOP_IN / height
    figure.text(side, y, "\n".join(heads), size=TITLE_PT, weight="bold", **place)
    figure.text(side, y - title_in / height, "\n".join(notes), color=MUTED, **place)
    y = (below - _GAP_IN) / height
    figure.text(side, y, "\n".join(lines), size=CAPTION_PT, color=MUTED, **place)
    rule = dict(color=GRID, linewidth=0.8, transform=figure.transFigure)
    figure.add_artist(Line2D([side, 1 - side], [y + 0.04 / height] * 2, **rule))
    return figure


def wrap(text: str, size_pt: float, bold: bool = False, width_in: float | None = None) -> list[str]:
    """Return the lines of a text that fit into a width, by default that of a figure.

    As few as possible, and of these shorter ones: no word is left alone on the last.
    """
    if width_in is None:
        width_in = WIDTH_IN - 2 * _SIDE_IN
    words = [(word, text_width_in(word, size_pt, bold)) for word in text.split()]
    space_in = text_width_in("a a", size_pt, bold) - text_width_in("aa", size_pt, bold)
    fewest = _fill(words, space_in, width_in)
    for share in (0.8, 0.9):
        lines = _fill(words, space_in, share * width_in)
        if len(lines) == len(fewest):
            return lines
    return fewest


def _fill(words: list[tuple[str, float]], space_in: float, width_in: float) -> list[str]:
    lines: list[str] = []
    left_in = 0.0
    for word, wide_in in words:
        if lines and wide_in + space_in <= left_in:
            lines[-1] += f" {word}"
            left_in -= wide_in + space_in
        else:
            lines.append(word)
            left_in = width_in - wide_in
    return lines


def text_width_in(text: str, size_pt: float, bold: bool = False) -> float:
    """Return how wide a line of text becomes, with a little to spare for hinting."""
    font = FontProperties(family="DejaVu Sans", size=size_pt, weight="bold" if bold else "normal")
    width_pt, _, _ = text_to_path.get_text_width_height_descent(text, font, False)
    return 1.03 * width_pt / 72
