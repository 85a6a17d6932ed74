"""What the figures are made of: axes in tokens, curves with their bands and floors, labels."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullFormatter, NullLocator

from numbadsd.analysis.crossover import Crossing
from numbadsd.plots._data import BACKENDS, Curve, Places, crossing_of
from numbadsd.plots._labels import LABEL_IN, line_style
from numbadsd.plots._style import (
    BASE_PT,
    GRID,
    MUTED,
    PATH_LOOKS,
    SMALL_PT,
    Look,
    text_width_in,
    wrap,
)

X_LABELS = {
    "context_tokens": "context, tokens",
    "batch_size": "batch, requests",
    "top_k_pages": "selected pages k",
    "page_size": "page size, tokens",
    "max_active_requests": "active requests, at most",
    "arrival_window": "arrival window, steps",
    "prompt_tokens": "prompt, tokens",
    "num_heads": "query heads",
    "num_kv_heads": "kv heads",
    "head_dim": "head_dim, elements",
}
SMALL_LINE = dict(markersize=3.5, linewidth=1.3)  # in the lower panels
_NOT_JOINED = dict(linestyle="none")
ROWS_A_CROSSING = 2  # a narrow panel takes two lines to say it
NO_QUALITY = "no quality in these records:\ntokens were made on the GPU"
TIME_KEY = (
    "Markers: median of a step. Band: p5 to p95 of its samples. Thin dotted line: floor, the time "
    "of the path's bytes at the bandwidth measured in the same run."
)


def short(value: float) -> str:
    """Return a number of an axis, in up to three digits that count."""
    if value and abs(value) < 0.001:
        return f"{value:.2g}"
    return f"{float(f'{value:.3g}'):,g}" if abs(value) < 1e6 else f"{value:.3g}"


def three_digits(value: float) -> str:
    """Return a measured number in three digits that count, with the zeros at its end: 1.30."""
    return f"{value:#.3g}".rstrip(".") if 0.001 <= abs(value) < 1000 else short(value)


def times_text(ratio: float) -> str:
    """Return a speed-up: 0.97x, 1.6x, 19x."""
    if ratio >= 9.95:
        return f"{ratio:,.0f}x"
    return f"{ratio:.1f}x" if ratio >= 1.05 else f"{ratio:.2f}x"


def count_text(value) -> str:
    """Return a tick: 64, 512, 1k, 4k, 1M in binary steps; other numbers as they are."""
    if isinstance(value, str) or value is None:
        return str(value)
    for unit, size in (("M", 1 << 20), ("k", 1 << 10)):
        if value >= size and value % (size // 4) == 0:
            return f"{value / size:g}{unit}"
    return f"{value:,g}" if abs(value) < 1e6 else f"{value:.3g}"


def label_of_x(x_name: str) -> str:
    """Return the label of an axis, with its unit."""
    return X_LABELS.get(x_name, x_name.replace("_", " "))


def set_x(ax: Axes, places: Places, x_name: str, width_in: float) -> None:
    """Give a panel its x axis: ticks at what was measured, as many labels as there is room for."""
    at = np.array([places.at(value) for value in places.values])
    if places.is_log:
        ax.set_xscale("log", base=2)
        margin = max((at[-1] / at[0]) ** 0.06, 1.15)
        ax.set_xlim(at[0] / margin, at[-1] * margin)
        across = np.log(at / ax.get_xlim()[0]) / np.log(margin**2 * at[-1] / at[0])
    else:
        margin = max(0.6, 1.6 - len(at) / 2)  # one place does not fill a panel
        ax.set_xlim(-margin, len(at) - 1 + margin)
        across = (at + margin) / (len(at) - 1 + 2 * margin)
    texts = [count_text(value) for value in places.values]
    kept = _thinned(across * width_in, texts)
    ax.xaxis.set_major_locator(FixedLocator(at[kept]))
    ax.xaxis.set_major_formatter(FixedFormatter([texts[i] for i in kept]))
    ax.xaxis.set_minor_locator(FixedLocator(at))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(label_of_x(x_name))


def _thinned(at_in: np.ndarray, texts: list[str]) -> list[int]:
    """Return which ticks keep their label: the fewest steps over that leave room for the words."""
    wide = [text_width_in(text, SMALL_PT + 0.5) + 0.08 for text in texts]
    for step in range(1, len(texts) + 1):
        kept = list(range(0, len(texts), step))
        gaps = np.diff(at_in[kept])
        if all(g >= (wide[a] + wide[b]) / 2 for g, a, b in zip(gaps, kept, kept[1:], strict=False)):
            return kept
    return [0]


def set_log_y(panels: Sequence[Axes], values, height_in: float, rows_above: float = 0.0) -> None:
    """Give panels one log axis around values, with room for lines of text above all data."""
    numbers = np.concatenate([np.ravel(v) for v in values])
    numbers = numbers[np.isfinite(numbers) & (numbers > 0)]
    low, high = (numbers.min() / 1.25, numbers.max() * 1.25) if len(numbers) else (0.1, 10)
    if high / low < 4:
        middle = np.sqrt(low * high)
        low, high = middle / 2, middle * 2
    share = min(0.5, rows_above * LABEL_IN / height_in)
    ticks = _log_ticks(low, high)
    high = low * (high / low) ** (1 / (1 - share))
    for ax in panels:
        ax.set_yscale("log")
        ax.set_ylim(low, high)
        ax.yaxis.set_major_locator(FixedLocator(ticks))
        ax.yaxis.set_major_formatter(FixedFormatter([short(tick) for tick in ticks]))
        ax.yaxis.set_minor_locator(NullLocator())


def _log_ticks(low: float, high: float) -> list[float]:
    """Return ticks within a range: decades, and what it takes in between to have three."""
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = [float(f"{step}e{power}") for power in powers for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            break
    return ticks


def times_in(curves: dict[str, Curve]) -> list[np.ndarray]:
    """Return every time that a panel of these curves shows."""
    return [v for c in curves.values() for v in (c.p5, c.p95, c.median, c.floor_ms)]


def draw_times(ax: Axes, curves: dict[str, Curve], joined: bool = True) -> None:
    """Draw the median, band and floor of each path; names on the x axis are not joined."""
    for path, curve in curves.items():
        look = PATH_LOOKS[path]
        alone = len(curve.x) == 1 or not joined
        if alone:
            ax.vlines(curve.x, curve.p5, curve.p95, color=look.color, linewidth=4, alpha=0.3)
        else:
            ax.fill_between(curve.x, curve.p5, curve.p95, color=look.color, alpha=0.22, linewidth=0)
        draw_line(ax, curve.x, curve.median, look, **(_NOT_JOINED if alone else {}))
        floor = dict(color=look.color, linewidth=1.1, linestyle=(0, (1, 1.6)))
        marker = dict(marker="_", markersize=12) | _NOT_JOINED if alone else {}
        ax.plot(curve.x, curve.floor_ms, **(floor | marker), zorder=2)


def draw_line(ax: Axes, x, y, look: Look, **changes) -> None:
    """Draw one line in the look of its role."""
    ax.plot(x, y, **(line_style(look) | changes))


def draw_fractions(ax: Axes, curves: dict[str, Curve], joined: bool = True) -> None:
    """Draw what share of the measured bandwidth each path reached."""
    for path, curve in curves.items():
        style = SMALL_LINE if joined else _NOT_JOINED
        draw_line(ax, curve.x, curve.fraction, PATH_LOOKS[path], **style)


def set_fraction_y(panels: Sequence[Axes], curves: Sequence[dict[str, Curve]]) -> None:
    """Give panels the axis of a fraction: from 0, with 1 marked, to what was reached."""
    most = [np.nanmax(c.fraction, initial=0) for group in curves for c in group.values()]
    top = max(1.1, 1.1 * max(most, default=0))
    for ax in panels:
        ax.set_ylim(0, top)
        ax.axhline(1, color=MUTED, linewidth=0.9, zorder=1)
        step = 0.5 if top < 3 else float(np.ceil(top / 3))
        ax.yaxis.set_major_locator(FixedLocator(np.arange(0, top, step)))
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def set_ratio_y(ax: Axes, most: float) -> None:
    """Give a panel the axis of a ratio: from 0, with 1 marked."""
    ax.set_ylim(0, 1.12 * most)
    ax.axhline(1, color=MUTED, linewidth=0.9, zorder=1)
    ax.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")


def crossing_text(crossing: Crossing, subject: str = "sparse", unit: str = "tokens") -> str:
    """Return in words from where sparse is faster."""
    if crossing.kind == "crosses":
        return f"{subject} from {float(f'{crossing.x:.3g}'):,.0f} {unit}"
    words = {
        "always_sparse": f"{subject} is faster everywhere measured",
        "always_dense": f"{subject} is slower everywhere measured",
        "crosses_often": f"{subject}: no single crossing",
    }
    return words[crossing.kind]


def mark_crossings(ax: Axes, curves: dict[str, Curve], width_in: float, height_in: float) -> None:
    """Mark where sparse overtakes dense on each backend, and say it in the room above the data."""
    found = {backend: crossing_of(curves, backend) for backend in BACKENDS}
    found = {backend: crossing for backend, crossing in found.items() if crossing}
    for row, (backend, crossing) in enumerate(found.items()):
        look = PATH_LOOKS[f"sparse_{backend}"]
        if crossing.kind == "crosses":
            dense = curves[f"dense_{backend}"]
            x = crossing.x
            y = np.exp(np.interp(np.log(x), np.log(dense.x), np.log(dense.median)))
            ax.plot([x, x], [y, ax.get_ylim()[0]], color=look.ink, linewidth=1.0, zorder=4)
            ring = dict(markeredgecolor=look.ink, markeredgewidth=1.3, zorder=5)
            ax.plot([x], [y], color="white", marker="o", markersize=6, **ring)
        lines = wrap(crossing_text(crossing, look.label), SMALL_PT, True, 0.96 * width_in)
        y = 1 - (row * ROWS_A_CROSSING + 0.1) * LABEL_IN / height_in
        ax.text(
            0.02, y, "\n".join(lines), transform=ax.transAxes, size=SMALL_PT, color=look.ink,
            va="top", ha="left", zorder=6, weight="bold",
        )  # fmt: skip


def say(ax: Axes, text: str) -> None:
    """Write into an empty panel why it is empty."""
    ax.text(
        0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=MUTED,
        size=BASE_PT,
    )  # fmt: skip
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(NullLocator())
        axis.set_minor_locator(NullLocator())
    ax.set_xlabel("")
    ax.spines[:].set_color(GRID)
