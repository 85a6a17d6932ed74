"""Names beside what they name: a piece of the line or bar, then its name, none over another."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.transforms import ScaledTranslation

from numbadsd.plots._data import Curve
from numbadsd.plots._style import MUTED, PATH_LOOKS, SMALL_PT, STAGE_LOOKS, Look

LABEL_IN = 0.17  # height of a line of small type
_SAMPLE_IN = (0.07, 0.37)  # the piece of line or bar, right of the panel
_TEXT_IN = 0.43


@dataclass(frozen=True)
class End:
    """Where a line or a bar ends, and how it is called; `style` is what differs from its look."""

    y: float
    name: str
    look: Look
    style: dict = field(default_factory=dict)
    is_bar: bool = False


def y_fraction(ax: Axes, y: float) -> float:
    """Return how high a value stands in its panel, 0 to 1; its limits must be final."""
    transform = ax.transScale + ax.transLimits
    return float(transform.transform((ax.get_xlim()[1], y))[1])


def spread(wanted: Sequence[float], gap: float, low: float = 0.0, high: float = 1.0) -> list[float]:
    """Return places as near as possible to the wanted ones, at least `gap` apart, in their order.

    Of equal ones the first stands highest.
    """
    order = np.lexsort((-np.arange(len(wanted)), wanted))
    blocks: list[list[float]] = []  # sum and size of neighbours that were pushed together
    for rank, i in enumerate(order):
        blocks.append([wanted[i] - rank * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, size = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total, blocks[-1][1] + size]
    bases = np.repeat([total / size for total, size in blocks], [int(size) for _, size in blocks])
    bases = np.clip(bases, low, max(low, high - (len(order) - 1) * gap))
    places = np.empty(len(order))
    places[order] = bases + gap * np.arange(len(order))
    return places.tolist()


def label_ends(ax: Axes, ends: Sequence[End], height_in: float) -> None:
    """Write names right of a panel, as near as possible to where their lines end."""
    wanted = [y_fraction(ax, end.y) for end in ends]
    for end, y in zip(ends, spread(wanted, LABEL_IN / height_in), strict=True):
        # inches from the right edge of the panel, wherever the layout puts it
        beside = ax.figure.dpi_scale_trans + ScaledTranslation(1, y, ax.transAxes)
        place = dict(transform=beside, clip_on=False, zorder=5)
        left, right = _SAMPLE_IN
        if end.is_bar:
            sample = Rectangle((left + 0.08, -0.05), 0.2, 0.1, **bar_style(end.look), **place)
            ax.add_patch(sample)
        else:
            xs = [left, (left + right) / 2, right]
            style = line_style(end.look) | end.style | dict(markevery=[1])
            ax.add_line(Line2D(xs, [0, 0, 0], **(style | place)))
        ax.text(
            _TEXT_IN, 0, end.name, transform=beside, color=end.look.ink, size=SMALL_PT + 0.5,
            va="center", ha="left",
        )  # fmt: skip


def line_style(look: Look) -> dict:
    """Return how a line of a role is drawn."""
    style = dict(color=look.color, marker=look.marker, linestyle=look.line, zorder=3)
    return style | dict(markeredgecolor="white", markeredgewidth=0.6)


def stage_style(stage: str) -> dict:
    """Return what a stage's line needs besides its look, to be seen on white."""
    if stage == "overheads":
        return dict(color=MUTED, markeredgecolor=MUTED)
    if stage == "gather":
        return dict(color=STAGE_LOOKS[stage].ink)
    return {}


def bar_style(look: Look) -> dict:
    """Return how a bar of a role is drawn."""
    edge = dict(edgecolor=MUTED, linewidth=0.5)
    return dict(facecolor=look.color, hatch=look.hatch, **edge)


def label_paths(
    panels: Sequence[Axes],
    curves: Sequence[dict[str, Curve]],
    height_in: float,
    shown: str = "median",
) -> None:
    """Name each path once, in the last panel that shows it; `shown` is what is drawn of a curve."""
    named: set[str] = set()
    for ax, group in reversed(list(zip(panels, curves, strict=True))):
        looks = {path: PATH_LOOKS[path] for path in group if path not in named}
        named |= set(group)
        ends = [
            End(getattr(group[path], shown)[-1], look.label, look) for path, look in looks.items()
        ]
        if ends:
            label_ends(ax, ends, height_in)
