"""The answer in words: one sentence a device, and what to keep in mind about it."""

from collections.abc import Iterable, Sequence

from numbadsd.bench.sweep.records import PointResult
from numbadsd.bench.verdict import CLEAR_MARGIN, NEAR_LIMIT, SIMULATOR, SMALL_MS
from numbadsd.report.answer import CONTEXTS, Crossover
from numbadsd.report.collect import Sweep
from numbadsd.report.markup import join
from numbadsd.report.reading import (
    BACKENDS,
    PathFigures,
    device_name,
    environment_of,
    find,
    find_number,
    pairs_of,
    parameter,
)

_BANDWIDTHS = {
    "read_gbps": (
        "Reads of the K/V pool by the CPU reached {} GB/s in the runs, which is what its floors "
        "stand for; a small pool lies in caches, where reads are faster."
    ),
    "copy_gbps": "Copies on the GPU reached {} GB/s in the runs: what its floors stand for.",
}
OVER_LIMIT = 1.1  # of the measured bandwidth: more than it drifts within a run


def headline(device: str, rows: Sequence[Crossover]) -> str:
    """Return from which context sparse beats dense on a device, for every batch."""
    wins = []
    for row in rows:
        unit = "" if any("of context" in said for said in wins) else " tokens of context"
        if said := _where_it_wins(row, unit):
            wins.append(said)
    sentences = [f"On {device}, sparse decode beats dense {join(wins)}."] if wins else []
    never = [row for row in rows if row.crossing.kind == "always_dense"]
    if never:
        who = "At" if wins else f"On {device}, at"
        limit = max(row.contexts[1] for row in never)
        what = "dense is faster at every measured context, up to"
        sentences.append(f"{who} {_batches(never)} {what} {limit:,} tokens.")
    often = [row for row in rows if row.crossing.kind == "crosses_often"]
    if often:
        who = "At" if sentences else f"On {device}, at"
        sentences.append(f"{who} {_batches(often)} no single context divides the two.")
    return " ".join(sentences)


def _where_it_wins(row: Crossover, unit: str) -> str | None:
    if row.crossing.kind == "crosses":
        return f"from about {row.crossing.x:,.0f}{unit} at batch {row.batch}"
    if row.crossing.kind == "always_sparse":
        low, high = row.contexts
        which = f"{low:,} to {high:,} tokens"
        if row.clear_from is None:
            which += f", nowhere by over {CLEAR_MARGIN - 1:.0%}"
        elif row.clear_from > low:
            which += f", by over {CLEAR_MARGIN - 1:.0%} from {row.clear_from:,} on"
        return f"at every measured context ({which}) at batch {row.batch}"
    return None


def _batches(rows: Sequence[Crossover]) -> str:
    return f"batch {join([str(row.batch) for row in rows])}"


def worth(rows: Sequence[Crossover]) -> str:
    """Return how much faster sparse is at the largest context, and what it keeps there."""
    times = join([f"{row.speedup:.1f}" for row in rows])
    largest = join([f"{context:,}" for context in dict.fromkeys(row.contexts[1] for row in rows)])
    said = f"At {largest} tokens its speed is {times} times that of dense"
    if len(rows) > 1:
        said += f" ({_batches(rows)})"
    kept = [row for row in rows if row.attention_mass is not None and row.error is not None]
    if not kept:
        return f"{said}."
    masses = _range([100 * row.attention_mass for row in kept], "{:.0f}")
    errors = _range([row.error for row in kept], "{:.2g}")
    return f"{said}; it keeps {masses}% of the attention there, output error {errors}."


def _range(values: Sequence[float], form: str) -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def configuration(points: Sequence[PointResult]) -> str:
    """Return the shape of the model and what was chosen, where it is the same in all points."""
    named = (
        ("num_heads", "{} query heads"), ("num_kv_heads", "{} KV heads"), ("head_dim", "of {}"),
        ("page_size", "pages of {} tokens"), ("kv_dtype", "{}"), ("top_k_pages", "k = {} pages"),
        ("summary", "{} summaries"), ("data", "{} data"),
    )  # fmt: skip
    said = []
    for name, form in named:
        values = {str(_resolved(point, name)) for point in points if point.ok}
        if len(values) == 1 and values != {"None"}:
            said.append(form.format(*values))
    return ", ".join(said).replace(" heads, of", " heads of")


def _resolved(point: PointResult, name: str):
    """Return a setting as the model had it: the config may leave it to a default."""
    chosen = find(point.record, "config", "model", name)
    return parameter(point, name) if chosen is None else chosen


def fairness(dense: PathFigures) -> str:
    """Say in plain words whether dense is near enough to its limit for the ratio to be fair."""
    if dense.fraction is None:
        return "no bandwidth was measured"
    if dense.fraction > OVER_LIMIT:
        return "above memory's bandwidth: caches help dense"
    if dense.fraction >= NEAR_LIMIT:
        return "fair: dense is near its limit"
    if dense.median_ms < SMALL_MS:
        return "short step: fixed costs slow dense, flattering sparse"
    return "dense is far from its limit: the ratio flatters sparse"


def remarks(sweep: Sweep) -> list[str]:
    """Return what a reader should know before believing the numbers."""
    good = [point for point in sweep.points if point.ok]
    said = [_counts(sweep.points), *_how_measured(good), *_machine(good), *_unfair(good)]
    said += _read_whole([p for p in sweep.experiments.get(CONTEXTS, []) if p.ok])
    if any(point.quick for point in sweep.points):
        said.append("Some points come from a quick run: fewer points and samples, more noise.")
    if any(find(point.record, "environment", "dirty") for point in good):
        said.append("Measured from a working tree with changes that no commit holds.")
    if not any(find(point.record, "environment", "gpu") for point in good):
        said.append("No GPU was measured in this sweep.")
    elif any(find(point.record, "environment", "gpu") == SIMULATOR for point in good):
        said.append("The GPU paths ran in the simulator: their times mean nothing.")
    return said


def _counts(points: Sequence[PointResult]) -> str:
    lost = {status: 0 for status in sorted({p.status for p in points if not p.ok})}
    for point in points:
        if not point.ok:
            lost[point.status] += 1
    measured = f"{sum(point.ok for point in points)} of {len(points)} points were measured"
    if not lost:
        return f"{measured}; none failed."
    failures = join([f"{count} {status.replace('_', ' ')}" for status, count in lost.items()])
    return f"{measured}; {failures}: the tables name the reasons."


def _how_measured(good: Sequence[PointResult]) -> Iterable[str]:
    decode = [point for point in good if point.command == "dsd_bench"]
    synthetic = [point for point in decode if not parameter(point, "kv_file")]
    kinds = {str(parameter(point, "data")) for point in synthetic}
    if kinds:
        yield (
            f"Keys and values are synthetic ({join(sorted(kinds))}): recall, attention mass and "
            "output error describe the method on such data, not on a model's."
        )
        counts = sorted(
            {n for point in decode if (n := find_number(point.record, "config", "iterations"))}
        )
        samples = _range(counts, "{:,}") if counts else "an unknown number of"
        yield f"A decode time is the median of {samples} samples, each with cold caches."
    if len(decode) < len(good):
        yield "A continuous figure comes from a single run of its load."


def _machine(good: Sequence[PointResult]) -> Iterable[str]:
    environment = environment_of(good)
    if not environment:
        return
    memory = find_number(environment, "memory_bytes")
    said = [device_name(environment, "cpu"), f"{environment.get('num_cores') or '?'} cores"]
    said += [f"{memory / 2**30:.0f} GiB"] if memory else []
    said += [str(environment["gpu"])] if environment.get("gpu") else []
    yield f"Machine: {', '.join([*said, str(environment.get('os', ''))])}."
    for kind, said in _BANDWIDTHS.items():
        found = [find_number(point.record, "bandwidth", kind, "median") for point in good]
        if known := [value for value in found if value is not None]:
            yield said.format(_range(known, "{:,.1f}"))


def _unfair(good: Sequence[PointResult]) -> Iterable[str]:
    for backend in BACKENDS:
        fractions = [pair.dense.fraction for _, pair in pairs_of(good, backend)]
        known = [fraction for fraction in fractions if fraction is not None]
        far = sum(fraction < NEAR_LIMIT for fraction in known)
        if far:
            yield (
                f"On the {backend.upper()} dense stays below {NEAR_LIMIT:.1f} of the measured "
                f"bandwidth in {far} of {len(known)} points: there the ratio flatters sparse."
            )


def _read_whole(points: Sequence[PointResult]) -> Iterable[str]:
    """Say up to which context sparse reads all pages, so that it cannot read less than dense."""
    sizes = [
        find_number(point.record, "config", "model", name)
        for point in points
        for name in ("top_k_pages", "page_size")
    ]
    if len(set(sizes[::2])) == len(set(sizes[1::2])) == 1 and None not in sizes:
        tokens = sizes[0] * sizes[1]
        if any(isinstance(point.x, (int, float)) and point.x <= tokens for point in points):
            yield (
                f"Up to {tokens:,} tokens, k pages, sparse reads all that dense reads: what "
                "differs there is fixed costs and noise."
            )


def answers(sweep: Sweep, rows: Sequence[Crossover]) -> list[tuple[str, str]]:
    """Return, for every backend, the headline and what stands below it."""
    found = []
    for backend in BACKENDS:
        of_backend = [row for row in rows if row.backend == backend]
        if of_backend:
            device = device_name(environment_of(sweep.points, backend), backend)
            shape = configuration(sweep.experiments[CONTEXTS])
            below = f"{worth(of_backend)} Measured with {shape}."
            found.append((headline(device, of_backend), below))
    return found
