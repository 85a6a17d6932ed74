"""Figure 06: where the time of the serving loop goes, with one option turned off at a time."""

from math import ceil

from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.transforms import ScaledTranslation

from numbadsd.bench.sweep.records import PointResult
from numbadsd.plots import _labels as labels
from numbadsd.plots._caption import caption_of
from numbadsd.plots._data import by_series, measured_continuous, run_path, run_value
from numbadsd.plots._main import plot_command
from numbadsd.plots._style import BLUE, INK, MUTED, SMALL_PT, Look, house_style, open_figure

NAME = "06_continuous_runtime_options_ablation"
TITLE = "What is each option of the serving loop worth?"
_KEY = (
    "Bars: where the time of the loop goes; the black mark ends it. Hatched after it: what was "
    "done before the loop. Right: new tokens per second of the loop only, and with all included."
)
# Parts of the loop and of what is before it: the look of each, and the end of its key.
_LOOP = {
    "run_batch_wall_ms": Look("decode", BLUE, ""),
    "runtime_admission_ms": Look("admission", "#F0E442", ""),
    "prefill_ms": Look("prefill", "#CC79A7", "", hatch="xxx"),
    "append_sync_ms": Look("append", "#D55E00", ""),
    "release_sync_ms": Look("release", "#000000", ""),
    "schedule_ms": Look("schedule", "#56B4E9", ""),
    "loop_payload_ms": Look("payloads", "#009E73", ""),
    "idle_ms": Look("idle", "#ffffff", "", hatch="---"),
    "other": Look("other", "#bbbbbb", ""),
}
_BEFORE = {
    "prompt_preadmit_ms": Look("before: prompts", "#ffffff", "", hatch="////"),
    "decode_payload_prep_ms": Look("before: payloads", "#e4e4e4", "", hatch="\\\\\\\\"),
}
_ROW_IN, _TITLE_IN, _KEY_IN, _AXIS_IN = 0.3, 0.4, 0.5, 0.35
_BAR = 0.66
_LEAST = 0.002  # of the longest bar: thinner parts are not named in the key
_MUCH_SHORTER = 3  # a condition whose bars are so much shorter gets its own scale
_COLUMNS_IN = (0.75, 1.6)  # where the two columns of numbers end, right of the panel


@house_style()
def draw(points):
    """Return the figure: a panel for each condition, a bar for each variant."""
    shown = measured_continuous(points, NAME)
    groups = by_series(shown)
    heights = [_KEY_IN, *(_TITLE_IN + _ROW_IN * len(group) for group in groups.values())]
    figure = open_figure(TITLE, _KEY, caption_of(points, shown), sum(heights) + _AXIS_IN)
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    key, *axes = (figure.add_subplot(cell) for cell in grid)
    lengths = {
        name: max(sum(_parts(point).values()) for point in group) for name, group in groups.items()
    }
    longest = max(lengths.values())
    last = [name for name, length in lengths.items() if length >= longest / _MUCH_SHORTER][-1]
    for ax, (name, group) in zip(axes, groups.items(), strict=True):
        _draw_condition(ax, group)
        is_short = lengths[name] < longest / _MUCH_SHORTER
        ax.set_title(f"{name} (a scale of its own)" if is_short else name)
        ax.set_xlim(0, 1.02 * (lengths[name] if is_short else longest))
        ax.tick_params(labelbottom=is_short or name == last)
    axes[-1].set_xlabel("time, ms")
    _head_columns(axes[0])
    _draw_key(key, shown, _LEAST * longest)
    return figure


def _parts(point: PointResult) -> dict[str, float]:
    """Return the milliseconds of each part, in the order in which they are drawn."""
    parts = {key: run_value(point, key) or 0.0 for key in _LOOP if key != "other"}
    parts["other"] = max(0.0, run_value(point, "total_ms") - sum(parts.values()))
    return parts | {key: run_value(point, key) or 0.0 for key in _BEFORE}


def _draw_condition(ax: Axes, group: list[PointResult]) -> None:
    looks = _LOOP | _BEFORE
    for row, point in enumerate(group):
        left = 0.0
        for key, time in _parts(point).items():
            if time == 0:
                continue
            ax.barh(row, time, _BAR, left, **labels.bar_style(looks[key]), zorder=2)
            left += time
        ax.vlines(run_value(point, "total_ms"), row - 0.45, row + 0.45, color=INK, linewidth=2.2)
        rates = ("tokens_per_second", "tokens_per_second_including_admission")
        for column_in, rate, weight in zip(_COLUMNS_IN, rates, ("bold", "normal"), strict=True):
            text = f"{run_value(point, rate):,.0f}"
            _beside(ax, row, column_in, text, weight=weight)
    ax.set_yticks(range(len(group)), [_name(point) for point in group])
    ax.set_ylim(len(group) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", visible=True)
    ax.tick_params(axis="y", length=0)


def _name(point: PointResult) -> str:
    """Return a variant's name; the reference's "dense gpu" is the dense path of any backend."""
    return str(point.x).replace("dense_gpu", run_path(point)).replace("_", " ")


def _beside(ax: Axes, row: float, column_in: float, text: str, **style) -> None:
    """Write right of a panel, ending so many inches from it."""
    aside = ScaledTranslation(column_in, 0, ax.figure.dpi_scale_trans)
    ax.text(
        1, row, text, transform=ax.get_yaxis_transform() + aside, ha="right", size=SMALL_PT + 0.5,
        **({"va": "center"} | style),
    )  # fmt: skip


def _head_columns(ax: Axes) -> None:
    """Name the columns of numbers above the first panel."""
    for column_in, text in zip(_COLUMNS_IN, ("loop only", "all incl."), strict=True):
        _beside(ax, -0.6, column_in, f"tokens/s,\n{text}", va="bottom", color=MUTED)


def _draw_key(ax: Axes, shown: list[PointResult], least: float) -> None:
    """Name the parts that are large enough to be seen somewhere."""
    ax.set_axis_off()
    parts = [_parts(point) for point in shown]
    looks = [
        look
        for part, look in (_LOOP | _BEFORE).items()
        if max(times[part] for times in parts) >= least
    ]
    columns = ceil(len(looks) / 2)
    # a legend fills columns; this is read by rows
    looks = [look for c in range(columns) for look in looks[c::columns]]
    handles = [Patch(**labels.bar_style(look), label=look.label) for look in looks]
    ax.legend(
        handles=handles, ncols=columns, loc="center left", borderaxespad=0, handlelength=1.6,
        columnspacing=1.6, bbox_to_anchor=(0, 0.5),
    )  # fmt: skip


main = plot_command(NAME, draw)

if __name__ == "__main__":
    main()
