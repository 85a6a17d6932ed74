"""The report of `dsd_compare`: one table, grouped by what was measured."""

from dataclasses import asdict
from itertools import groupby

import numpy as np
from tabulate import tabulate

from numbadsd.bench.record import SCHEMA_VERSION
from numbadsd.bench.regress import FEWEST_SAMPLES, VERDICTS, Comparison, Row, Side

_HEADERS = (
    "", "unit", "base", "new", "change", "95 % interval", "base p5 .. p95", "new p5 .. p95",
    "samples", "verdict",
)  # fmt: skip
_RATES = {
    "read_gbps": "reads of memory", "copy_gbps": "copies on the GPU", "fp32_gflops": "arithmetic",
}  # fmt: skip


def render_comparison(
    comparison: Comparison, base: str = "BASE", new: str = "NEW", show_all: bool = False
) -> str:
    """Return a comparison as text; `show_all` lists what has no counterpart."""
    sections = (
        "\n".join(_heading(comparison, base, new)),
        _table(comparison.rows),
        "\n".join(_remarks(comparison, show_all)),
    )
    return "\n\n".join(sections)


def _heading(comparison: Comparison, base: str, new: str):
    """Yield what is compared, and what else than the code may have changed."""
    for side, name in enumerate((base, new)):
        num_runs, commits = comparison.num_runs[side], comparison.commits[side]
        at = f", commit {', '.join(commits)}" if commits else ""
        yield f"{('BASE', 'NEW ')[side]}  {name}: {num_runs} run{'s'[: num_runs != 1]}{at}"
    changes = [
        f"{fact.name} {' and '.join(fact.base)} -> {' and '.join(fact.new)}"
        for fact in comparison.environment
    ]
    yield f"Environment: {'; '.join(changes) or 'the same processors, threads and versions'}"
    rates = [
        f"{_RATES.get(name, name)} at {np.median(x):.2f}x of BASE ({min(x):.2f} .. {max(x):.2f})"
        for name, x in comparison.rates.items()
    ]
    if rates:
        yield f"Machine, measured between the samples: {', '.join(rates)}"


def _table(rows: tuple[Row, ...]) -> str:
    """Return one table in which every setting has a line of its own above its rows."""
    align = ("left", "left", *["right"] * (len(_HEADERS) - 3), "left")
    cells = [_cells(row) for row in rows]
    text = tabulate(cells, _HEADERS, colalign=align, disable_numparse=True)
    lines = iter([f"  {line}".rstrip() for line in text.splitlines()])
    out = [next(lines), next(lines)]
    for label, group in groupby(rows, key=lambda row: row.label):
        out += [label, *(next(lines) for _ in group)]
    return "\n".join(out)


def _cells(row: Row) -> tuple[str, ...]:
    interval = "-"
    if row.interval is not None:
        interval = " .. ".join(f"{end - 1:+.1%}" for end in row.interval)
    return (
        row.metric.name,
        row.metric.unit,
        _number(row.base.median),
        _number(row.new.median),
        f"{row.ratio - 1:+.1%}",
        interval,
        _spread(row.base),
        _spread(row.new),
        f"{_count(row.base)} / {_count(row.new)}",
        row.verdict,
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _spread(side: Side) -> str:
    if side.num_samples == 1:
        return "one run"
    return f"{_number(side.p5)} .. {_number(side.p95)}"


def _count(side: Side) -> str:
    """Return the samples of a side, and of how many runs."""
    if side.num_runs in (1, side.num_samples):
        return str(side.num_samples)
    return f"{side.num_samples} of {side.num_runs} runs"


def _remarks(comparison: Comparison, show_all: bool):
    """Yield the outcome, how it was judged, and what could not be compared."""
    counts = [f"{n} {verdict}" for verdict in VERDICTS if (n := comparison.count(verdict))]
    yield f"{', '.join(counts)}."
    yield from _bands(comparison.rows)
    if comparison.count("noise"):
        yield "noise: the medians differ by more than that, and the samples do not bear it out."
    for name, labels in (("BASE", comparison.only_in_base), ("NEW", comparison.only_in_new)):
        if labels:
            yield f"Only in {name}: {len(labels)}{':' if show_all else ' (--all lists them)'}"
            yield from (f"  {label}" for label in labels if show_all)


def _bands(rows: tuple[Row, ...]):
    """Yield how each kind of row was judged."""
    for noise in {row.noise for row in rows if row.interval is not None}:
        yield f"A change counts when its whole 95 % interval lies outside {_band(noise)}."
    for noise in {row.noise for row in rows if row.interval is None}:
        yield (
            f"With fewer than {FEWEST_SAMPLES} samples on a side there is no interval: the change "
            f"itself must lie outside {_band(noise)}."
        )


def _band(noise: float) -> str:
    return f"{1 / (1 + noise) - 1:+.1%} .. {noise:+.1%}"


def comparison_record(comparison: Comparison, base: str, new: str, command: str) -> dict:
    """Return a comparison as a record for a file."""
    return {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "base": base,
        "new": new,
        "verdicts": {verdict: comparison.count(verdict) for verdict in VERDICTS},
        **asdict(comparison) | {"rows": [_row_record(row) for row in comparison.rows]},
    }


def _row_record(row: Row) -> dict:
    return asdict(row) | {"metric": row.metric._asdict()}
