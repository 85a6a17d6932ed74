"""The numbers of the answer, from the experiments that hold them."""

from collections.abc import Iterable
from dataclasses import dataclass

from numbadsd.analysis.crossover import Crossing, find_crossing
from numbadsd.bench.sweep.records import PointResult
from numbadsd.bench.verdict import CLEAR_MARGIN
from numbadsd.report.reading import (
    BACKENDS,
    Pair,
    find_number,
    pairs_of,
    parameter_number,
    run_labels,
    run_number,
)

CONTEXTS = "01_decode_context_length_sweep"
BATCHES = "02_decode_batch_scaling_sweep"
SPARSITY = "03_decode_topk_sparsity_sweep"
LOAD = "05_continuous_batching_load_sweep"


@dataclass(frozen=True)
class Crossover:
    """Where sparse overtakes dense on one curve, and what it is worth at the largest context.

    `between` are the measured contexts beside the crossing; from `clear_from` on sparse is faster
    by `CLEAR_MARGIN`; `attention_mass` and `error` say what it kept at the largest context.
    """

    backend: str
    batch: int
    crossing: Crossing
    between: tuple[float, float] | None
    clear_from: float | None
    contexts: tuple[float, float]
    speedup: float
    attention_mass: float | None
    error: float | None


@dataclass(frozen=True)
class Floors:
    """Dense and sparse at one point, with the batch and context measured there."""

    batch: int | None
    context: int | None
    pair: Pair


@dataclass(frozen=True)
class Kept:
    """What a number of pages keeps of dense attention, beside its speed."""

    top_k_pages: int | None
    pair: Pair
    quality: dict[str, float | None]


@dataclass(frozen=True)
class Throughput:
    """The best load for prompts of one length: the most tokens a second in the loop."""

    path: str
    prompt_tokens: int | None
    max_active: int | None
    in_loop: float
    with_admission: float | None
    speedup: float | None
    speedup_with_admission: float | None


QUALITY = ("page_recall", "attention_mass", "output_relative_error", "density")
Experiments = dict[str, list[PointResult]]


def crossovers(sweep: Experiments) -> list[Crossover]:
    """Return the crossing of every curve over context, by backend, then batch."""
    return [
        _crossover(backend, batch, curve)
        for backend in BACKENDS
        for batch, curve in _curves(sweep, backend).items()
    ]


def _curves(sweep: Experiments, backend: str) -> dict[int, list[tuple[PointResult, Pair]]]:
    """Return, for each batch, the points at which both paths ran, by context."""
    curves: dict[int, list[tuple[PointResult, Pair]]] = {}
    for point, pair in pairs_of(sweep.get(CONTEXTS, []), backend):
        batch = parameter_number(point, "batch_size")
        if batch is not None and isinstance(point.x, (int, float)):
            curves.setdefault(batch, []).append((point, pair))
    return {batch: sorted(curves[batch], key=lambda at: at[0].x) for batch in sorted(curves)}


def _crossover(backend: str, batch: int, curve: list[tuple[PointResult, Pair]]) -> Crossover:
    x = [point.x for point, _ in curve]
    dense = [pair.dense.median_ms for _, pair in curve]
    try:
        crossing = find_crossing(x, dense, [pair.sparse.median_ms for _, pair in curve])
    except ValueError as error:  # a context that is there twice, or a time that is none
        raise ValueError(f"{CONTEXTS}, batch {batch}: {error}") from None
    between = None
    if crossing.x is not None:
        wins = [pair.speedup >= 1 for _, pair in curve].index(True)
        between = (x[wins - 1], x[wins])
    last, pair = curve[-1]
    quality = [find_number(last.record, "quality", name) for name in QUALITY[1:3]]
    ends, clear = (x[0], x[-1]), _clear_from(curve)
    return Crossover(backend, batch, crossing, between, clear, ends, pair.speedup, *quality)


def _clear_from(curve: list[tuple[PointResult, Pair]]) -> float | None:
    """Return the context from which on sparse is faster by more than noise."""
    clear = None
    for point, pair in reversed(curve):
        if pair.speedup < CLEAR_MARGIN:
            break
        clear = point.x
    return clear


def floors(sweep: Experiments) -> list[Floors]:
    """Return both paths at the largest context of every batch, and along the batches."""
    rows = []
    for backend in BACKENDS:
        measured = [curve[-1] for curve in _curves(sweep, backend).values()]
        measured += pairs_of(sweep.get(BATCHES, []), backend)
        rows += [
            Floors(
                parameter_number(point, "batch_size"),
                parameter_number(point, "context_tokens"),
                pair,
            )
            for point, pair in measured
        ]
    return rows


def kept(sweep: Experiments) -> list[Kept]:
    """Return quality beside speed for every number of pages."""
    return [
        Kept(
            parameter_number(point, "top_k_pages"),
            pair,
            {name: find_number(point.record, "quality", name) for name in QUALITY},
        )
        for backend in BACKENDS
        for point, pair in pairs_of(sweep.get(SPARSITY, []), backend)
    ]


def throughputs(sweep: Experiments) -> list[Throughput]:
    """Return the load with the most tokens a second, for each length of prompts and path."""
    best: dict[tuple, Throughput] = {}
    for point in sweep.get(LOAD, []):
        if point.x_name == "max_active_requests":
            for run in _runs(point):
                key = (run.path, run.prompt_tokens)
                if key not in best or best[key].in_loop < run.in_loop:
                    best[key] = run
    return [best[key] for key in sorted(best, key=lambda key: (key[0], key[1] or 0))]


def _runs(point: PointResult) -> Iterable[Throughput]:
    for label in run_labels(point.record):
        in_loop = run_number(point.record, label, "tokens_per_second")
        if in_loop is not None:
            yield Throughput(
                run_path(point.record, label),
                parameter_number(point, "prompt_tokens"),
                parameter_number(point, "max_active_requests"),
                in_loop,
                run_number(point.record, label, "tokens_per_second_including_admission"),
                *(run_number(point.record, "continuous_vs_serial", name) for name in SPEEDUPS),
            )


SPEEDUPS = ("speedup", "speedup_including_admission")


def run_path(record: dict, label: str) -> str:
    """Return the path that a run decoded by, with its backend."""
    kind = "sparse" if "sparse" in label else "dense"
    return f"{kind} {str(record['results'].get('backend', '')).upper()}".strip()
