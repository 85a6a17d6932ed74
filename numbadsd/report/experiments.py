"""What each experiment asks, and the table of its points."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from numbadsd.bench.sweep.experiments import EXPERIMENTS
from numbadsd.bench.sweep.records import PointResult
from numbadsd.report.answer import run_path
from numbadsd.report.markup import Column, join, number, table
from numbadsd.report.reading import (
    BACKENDS,
    Pair,
    find,
    find_number,
    pair_of,
    run_labels,
    run_number,
)

STAGES = ("score", "topk", "gather", "attend")


_SPARSE = ("sparse", "sparse_p5", "sparse_p95")
_TIMES = ("dense", "dense_p5", "dense_p95", *_SPARSE, "speedup")
_LIMITS = ("dense_fraction", "sparse_fraction")
_QUALITY = ("page_recall", "attention_mass", "output_relative_error", "density")
_DECODE = (*_TIMES, *_LIMITS, "attention_mass", "output_relative_error")
_LOOP = (
    "in_loop", "speedup", "with_admission", "speedup_with_admission", "total_ms", "step_ms",
    "batch", "host", "ttft", "itl", "itl_p95",
)  # fmt: skip
_PARTS = (*_SPARSE, *STAGES, "overheads", "dense", "torch", "speedup")

# The heading of each experiment, and what its table shows; own sweeps share the last.
_SHOWN = {
    "00_backend_total_time": (
        "Total time, path by path", (*_TIMES, *_LIMITS, "dense_floor", "sparse_floor", "torch"),
    ),
    "01_decode_context_length_sweep": ("Context length", _DECODE),
    "02_decode_batch_scaling_sweep": ("Batch size", _DECODE),
    "03_decode_topk_sparsity_sweep": ("Pages kept", (*_TIMES, *_QUALITY)),
    "04_decode_page_size_sweep": ("Page size", (*_TIMES, *_QUALITY)),
    "05_continuous_batching_load_sweep": ("Continuous batching under load", _LOOP),
    "06_continuous_runtime_options_ablation": ("Options of the serving loop", _LOOP),
    "07_attention_backend_breakdown": ("Parts of a sparse step", _PARTS),
    "grid": ("Own sweep", _DECODE),
}  # fmt: skip


def title_of(name: str) -> str:
    """Return the heading of an experiment."""
    return _SHOWN.get(name, _SHOWN["grid"])[0]


def question_of(name: str) -> str:
    """Return the question that an experiment answers."""
    known = EXPERIMENTS.get(name)
    return known.question if known else "How do the parameters of this sweep act together?"


def varied_in(points: Sequence[PointResult]) -> str:
    """Return what an experiment varies, from where to where, and how many points it has."""
    places: dict[str, list] = {}
    for point in points:
        places.setdefault(point.x_name, []).append(point.x)
    said = [f"{name.replace('_', ' ')} {_extent(xs)}" for name, xs in places.items()]
    series = [one for one in dict.fromkeys(point.series for point in points) if one]
    curves = f", for {join(series)}" if len(series) > 1 else ""
    return f"Varied: {join(said)}{curves}; {len(points)} points."


def _extent(values: Sequence) -> str:
    different = list(dict.fromkeys(values))
    if any(isinstance(value, str) for value in different):
        return f"({len(different)} kinds)"
    low, high = min(different), max(different)
    return number(low) if low == high else f"{number(low)} to {number(high)}"


@dataclass(frozen=True)
class _Figure:
    """A column and how its value is found: in a pair of paths, or in a continuous run."""

    column: Column
    get: Callable


def _of(kind: str, name: str) -> Callable:
    return lambda point, pair: getattr(getattr(pair, kind), name, None)


def _quality(name: str) -> Callable:
    return lambda point, pair: find_number(point.record, "quality", name)


def _stage(name: str) -> Callable:
    def get(point: PointResult, pair: Pair) -> float | None:
        return find_number(point.record, "paths", f"sparse_{pair.backend}", "stages_ms", name)

    return get


def _overheads(point: PointResult, pair: Pair) -> float | None:
    parts = find(point.record, "paths", f"sparse_{pair.backend}", "overheads_ms")
    times = [find_number(parts, name) for name in parts] if isinstance(parts, dict) else []
    return sum(time for time in times if time is not None) if times else None


def _torch(point: PointResult, pair: Pair) -> float | None:
    name = "torch_sdpa_gpu" if pair.backend == "gpu" else "torch_sdpa"
    return find_number(point.record, "paths", name, "total_ms", "median")


_DECODE_FIGURES = {
    "dense": _Figure(Column("dense", "ms", 3), _of("dense", "median_ms")),
    "dense_p5": _Figure(Column("p5", "ms", 3), _of("dense", "p5_ms")),
    "dense_p95": _Figure(Column("p95", "ms", 3), _of("dense", "p95_ms")),
    "dense_floor": _Figure(Column("dense floor", "ms", 3), _of("dense", "floor_ms")),
    "dense_fraction": _Figure(
        Column("dense reads at", "of bandwidth", 2), _of("dense", "fraction")
    ),
    "sparse": _Figure(Column("sparse", "ms", 3), _of("sparse", "median_ms")),
    "sparse_p5": _Figure(Column("p5", "ms", 3), _of("sparse", "p5_ms")),
    "sparse_p95": _Figure(Column("p95", "ms", 3), _of("sparse", "p95_ms")),
    "sparse_floor": _Figure(Column("sparse floor", "ms", 3), _of("sparse", "floor_ms")),
    "sparse_fraction": _Figure(
        Column("sparse reads at", "of bandwidth", 2), _of("sparse", "fraction")
    ),
    "speedup": _Figure(Column("speed-up", "×", 2), lambda point, pair: pair.speedup),
    "page_recall": _Figure(Column("page recall", "", 3), _quality("page_recall")),
    "attention_mass": _Figure(Column("attention mass", "", 3), _quality("attention_mass")),
    "output_relative_error": _Figure(
        Column("output error", "relative", 3), _quality("output_relative_error")
    ),
    "density": _Figure(Column("density", "", 4), _quality("density")),
    **{name: _Figure(Column(name, "ms", 3), _stage(name)) for name in STAGES},
    "topk": _Figure(Column("top-k", "ms", 3), _stage("topk")),
    "overheads": _Figure(Column("overheads", "ms", 3), _overheads),
    "torch": _Figure(Column("torch SDPA", "ms", 3), _torch),
}


def _run(name: str) -> Callable:
    return lambda point, label: run_number(point.record, label, name)


def _result(*keys: str) -> Callable:
    return lambda point, label: find_number(point.record, "results", *keys)


_RUN_FIGURES = {
    "in_loop": _Figure(Column("in the loop", "tokens/s", 0), _run("tokens_per_second")),
    "speedup": _Figure(Column("against serial", "×", 2), _result("continuous_vs_serial_speedup")),
    "with_admission": _Figure(
        Column("with admission", "tokens/s", 0), _run("tokens_per_second_including_admission")
    ),
    "speedup_with_admission": _Figure(
        Column("against serial", "×", 2),
        _result("continuous_vs_serial_speedup_including_admission"),
    ),
    "total_ms": _Figure(Column("loop", "ms", 1), _run("total_ms")),
    "step_ms": _Figure(Column("mean step", "ms", 3), _run("avg_step_ms")),
    "batch": _Figure(Column("mean batch", "", 1), _run("avg_active_batch_size")),
    "host": _Figure(Column("outside kernels", "fraction", 2), _run("host_fraction")),
    "ttft": _Figure(Column("TTFT p50", "ms", 2), _result("serving", "p50_ttft_ms")),
    "itl": _Figure(Column("ITL p50", "ms", 3), _result("serving", "p50_itl_ms")),
    "itl_p95": _Figure(Column("ITL p95", "ms", 3), _result("serving", "p95_itl_ms")),
}


def points_table(name: str, points: Sequence[PointResult], caption: str) -> str:
    """Return all points of an experiment: one row for each backend or run, failed ones as well."""
    is_loop = all(point.command == "dsd_continuous_bench" for point in points)
    figures = _RUN_FIGURES if is_loop else _DECODE_FIGURES
    _, chosen = _SHOWN.get(name, ("", _LOOP if is_loop else _DECODE))
    kept = [figures[key] for key in chosen if key in figures]
    columns = [
        Column("point"),
        Column("on"),
        *(figure.column for figure in kept),
        Column("state", wraps=True),
    ]
    rows = [row for point in points for row in _rows(point, kept, is_loop)]
    if len({row[1] for row in rows} - {None}) < 2:
        rows = [[row[0], None, *row[2:]] for row in rows]
    return table(caption, columns, rows)


def _rows(point: PointResult, figures: Sequence[_Figure], is_loop: bool):
    if is_loop:
        found = [(run_path(point.record, label), label) for label in run_labels(point.record)]
    else:
        pairs = [pair for name in BACKENDS if (pair := pair_of(point, name))]
        found = [(pair.backend.upper(), pair) for pair in pairs]
    if not found:
        yield [point.variant, None, *[None] * len(figures), state_of(point)]
    for on, source in found:
        values = [figure.get(point, source) for figure in figures]
        yield [point.variant, on, *values, state_of(point)]


def state_of(point: PointResult) -> str:
    """Return whether a point was measured, or else why not."""
    if not point.ok:
        return f"{point.status.replace('_', ' ')}: {point.reason or 'no reason was given'}"
    unavailable = find(point.record, "results", "reason")
    return f"unavailable: {unavailable}" if unavailable else "ok"
