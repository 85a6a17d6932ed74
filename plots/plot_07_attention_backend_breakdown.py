"""Figure 07: the stages of a decode step against the context, beside another library's step."""

from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes

from numbadsd.bench.sweep.records import PointResult
from numbadsd.plots import _labels as labels
from numbadsd.plots import _panels as panels
from numbadsd.plots._caption import caption_of
from numbadsd.plots._data import (
    BACKENDS,
    Curve,
    Places,
    available_paths,
    by_series,
    curve_of,
    measured_decode,
    places_of,
    stage_times,
)
from numbadsd.plots._main import plot_command
from numbadsd.plots._style import PATH_LOOKS, STAGE_LOOKS, house_style, open_figure

NAME = "07_attention_backend_breakdown"
TITLE = "Which stage takes the time as the context grows?"
_KEY = (
    "Thick: median of the whole step, with its p5 to p95; thin: medians of its stages; thin dotted "
    "line: floor, the time of its bytes at the bandwidth measured in the same run. Where a panel "
    "has torch SDPA, it is that library's whole step on the same data."
)
_ROW_IN, _WIDTH_IN = 2.5, 2.6
_STAGE_LINE = dict(markersize=4.5, linewidth=1.3)
_KINDS = ("dense", "sparse")
_VERSUS = {"cpu": "torch_sdpa", "gpu": "torch_sdpa_gpu"}


@dataclass(frozen=True)
class _Panel:
    """One path in one form: where it is drawn, the points that it was measured in, its curves."""

    ax: Axes
    path: str
    points: list[PointResult]
    curves: dict[str, Curve]
    stages: dict[str, tuple[np.ndarray, np.ndarray]]

    @property
    def times(self) -> list[np.ndarray]:
        """Everything that it shows."""
        return [*panels.times_in(self.curves), *(time for _, time in self.stages.values())]


@house_style()
def draw(points):
    """Return the figure: dense left, sparse right; a row for each form on each backend."""
    shown = measured_decode(points, NAME)
    places, rows = places_of(shown), _rows(shown)
    figure = open_figure(TITLE, _KEY, caption_of(points, shown), (_ROW_IN + 0.1) * len(rows) + 0.4)
    grid = figure.add_gridspec(len(rows), len(_KINDS))
    drawn: dict[str, list[_Panel]] = {}
    for r, (backend, title, group) in enumerate(rows):
        for c, kind in enumerate(_KINDS):
            ax = figure.add_subplot(grid[r, c])
            panel = _panel(ax, f"{kind}_{backend}", group, places)
            panels.set_x(ax, places, shown[0].x_name, _WIDTH_IN)
            ax.set_title(f"{PATH_LOOKS[panel.path].label}{title}")
            ax.set_ylabel("time, ms" if c == 0 else "")
            ax.tick_params(labelleft=c == 0, labelbottom=r == len(rows) - 1)
            ax.set_xlabel(ax.get_xlabel() if r == len(rows) - 1 else "")
            drawn.setdefault(backend, []).append(panel)
    for group in drawn.values():
        times = [time for panel in group for time in panel.times]
        panels.set_log_y([panel.ax for panel in group], times, _ROW_IN)
        for panel in group:
            _draw(panel)
    return figure


def _rows(shown: list[PointResult]) -> list[tuple[str, str, list[PointResult]]]:
    """Return backend, form and points of each row; a GPU has one form, whatever was asked for."""
    rows = []
    for backend in BACKENDS:
        for series, group in by_series(shown).items():
            ran = {f"{kind}_{backend}" for kind in _KINDS} & set(available_paths(group))
            if ran and not (backend == "gpu" and any(row[0] == "gpu" for row in rows)):
                rows.append((backend, f", {series}" if series and backend == "cpu" else "", group))
    return rows


def _panel(ax: Axes, path: str, group: list[PointResult], places: Places) -> _Panel:
    kind, backend = path.split("_")
    curves = {path: curve_of(group, path, places)}
    other = curve_of(group, _VERSUS[backend], places) if kind == "dense" else None
    if other is not None:  # its floor is that of our dense path: the same bytes
        curves[_VERSUS[backend]] = replace(other, floor_ms=np.full_like(other.x, np.nan))
    entries = {places.at(point.x): point.record["paths"].get(path, {}) for point in group}
    times = [(x, stage_times(e)) for x, e in sorted(entries.items()) if e.get("available")]
    stages = {}
    for stage in STAGE_LOOKS:
        rows = np.array([(x, each[stage]) for x, each in times if each[stage] > 0])
        if len(rows):
            stages[stage] = (rows[:, 0], rows[:, 1])
    return _Panel(ax, path, group, {n: c for n, c in curves.items() if c is not None}, stages)


def _draw(panel: _Panel) -> None:
    """Draw the stages, then the whole step over them, and name them all."""
    if panel.path not in panel.curves:
        return panels.say(panel.ax, "not measured")
    ends = []
    for name, curve in panel.curves.items():
        label = "whole step" if name == panel.path else PATH_LOOKS[name].label
        ends.append(labels.End(curve.median[-1], label, PATH_LOOKS[name]))
    for stage, (x, time) in panel.stages.items():
        style = _STAGE_LINE | labels.stage_style(stage)
        panels.draw_line(panel.ax, x, time, STAGE_LOOKS[stage], **style)
        ends.append(labels.End(time[-1], STAGE_LOOKS[stage].label, STAGE_LOOKS[stage], style))
    panels.draw_times(panel.ax, panel.curves)
    return labels.label_ends(panel.ax, ends, _ROW_IN)


main = plot_command(NAME, draw)

if __name__ == "__main__":
    main()
