"""`dsd_compare`: what became faster or slower between two sets of records.

Runs of one setting are pooled. With a few samples on both sides, a change counts when a 95 %
bootstrap interval of the ratio of medians lies wholly beyond the noise band; with single figures
there is the band alone, which is then wider.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, isfinite, log, log1p

import numpy as np

from numbadsd.bench.regress_records import Metric, Run, as_run
from numbadsd.config import check

NOISE, SINGLE_NOISE = 0.05, 0.10  # what is no change: with samples, with single figures
FEWEST_SAMPLES = 5  # on a side: of four the interval is too narrow for its name
VERDICTS = ("slower", "faster", "noise", "same")
MOST_NAMED = 5  # differences of settings in one message
CONFIDENCE = 0.95
RESAMPLES = 2000
MACHINE = (
    "cpu", "num_threads", "gpu", "driver", "numbadsd", "python", "numba", "numba_cuda", "numpy",
    "llvmlite", "dirty",
)  # fmt: skip


@dataclass(frozen=True)
class Side:
    """The samples of one side, or its one figure."""

    median: float
    p5: float
    p95: float
    num_samples: int
    num_runs: int


@dataclass(frozen=True)
class Row:
    """One metric of one setting on both sides.

    Attributes
    ----------
    ratio : float
        Median of NEW over that of BASE.
    interval : (float, float) or None
        Of the ratio; None where there are too few samples for one.
    verdict : {"faster", "slower", "same", "noise"}
        "noise": the medians differ by more than the band, and the samples do not bear it out.
    """

    label: str
    metric: Metric
    base: Side
    new: Side
    ratio: float
    interval: tuple[float, float] | None
    noise: float
    verdict: str


@dataclass(frozen=True)
class Difference:
    """A fact of the environment that is not the same on both sides; all values seen."""

    name: str
    base: tuple[str, ...]
    new: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Everything about two sets of records.

    Attributes
    ----------
    rows : tuple of Row
        Grouped by setting, in the order of BASE.
    only_in_base, only_in_new : tuple of str
        Settings without a counterpart, and metrics that the counterpart lacks.
    environment : tuple of Difference
    commits : (tuple, tuple)
        Of BASE and of NEW, and whether the tree was dirty.
    rates : dict
        What memory and arithmetic did in NEW over BASE, in each matched setting, by kind.
    """

    rows: tuple[Row, ...]
    only_in_base: tuple[str, ...]
    only_in_new: tuple[str, ...]
    environment: tuple[Difference, ...]
    commits: tuple[tuple[str, ...], tuple[str, ...]]
    num_runs: tuple[int, int]
    rates: dict[str, tuple[float, ...]]

    def count(self, verdict: str) -> int:
        """Return the rows with this verdict."""
        return sum(row.verdict == verdict for row in self.rows)


def compare(base: Sequence[dict], new: Sequence[dict], noise: float | None = None) -> Comparison:
    """Compare two sets of records.

    Parameters
    ----------
    base, new : list of dict
        Records of `dsd_bench`, `dsd_continuous_bench` or `dsd_topk_bench`.
    noise : float, optional
        Fraction by which a median may change and be the same; 0.05 by default, 0.10 for figures
        with fewer than five samples on a side.

    Raises
    ------
    ValueError
        When a record is none of these, or the two have nothing in common.
    """
    is_fraction = noise is None or (isfinite(noise) and 0 <= noise < 1)
    check(is_fraction, "noise", noise, "a fraction, 0 or more and below 1")
    sides = [
        [as_run(record, f"record {n} of {name}") for n, record in enumerate(records, 1)]
        for name, records in (("BASE", base), ("NEW", new))
    ]
    groups = [_by_key(runs) for runs in sides]
    _check_common(*sides, *groups)
    rows, alone = _rows(*groups, noise)
    if not rows:
        raise ValueError("nothing in common: no figure was measured on both sides")
    return Comparison(
        rows=tuple(rows),
        only_in_base=tuple(alone[0]),
        only_in_new=tuple(alone[1]),
        environment=_environment(*sides),
        commits=tuple(_commits(runs) for runs in sides),
        num_runs=(len(base), len(new)),
        rates=_rates(*groups),
    )


def _by_key(runs: list[Run]) -> dict[str, list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.key, []).append(run)
    return groups


def _check_common(base: list[Run], new: list[Run], base_groups: dict, new_groups: dict) -> None:
    """Raise ValueError, with what stands in the way, when no setting was measured on both sides."""
    for name, runs in (("BASE", base), ("NEW", new)):
        if not runs:
            raise ValueError(f"{name} has no records")
    if base_groups.keys() & new_groups.keys():
        return
    kinds = [{run.kind for run in runs} for runs in (base, new)]
    if not kinds[0] & kinds[1]:
        names = [" and ".join(sorted(kind)) for kind in kinds]
        raise ValueError(f"nothing in common: BASE is of {names[0]}, NEW of {names[1]}")
    firsts = [[runs[0] for runs in groups.values()] for groups in (base_groups, new_groups)]
    nearest = min(
        (_differing(a, b) for a in firsts[0] for b in firsts[1] if a.kind == b.kind), key=len
    )
    raise ValueError(
        f"nothing in common: {len(firsts[0])} settings in BASE and {len(firsts[1])} in NEW; the "
        f"two that are nearest differ in {', '.join(nearest[:MOST_NAMED])}"
        + (f" and {len(nearest) - MOST_NAMED} more" if len(nearest) > MOST_NAMED else "")
    )


def _differing(a: Run, b: Run) -> list[str]:
    """Return where two settings differ, with both values."""
    names = sorted(a.setting.keys() | b.setting.keys())
    pairs = [(name, a.setting.get(name), b.setting.get(name)) for name in names]
    return [f"{name} ({x} and {y})" for name, x, y in pairs if x != y]


def _rows(base: dict[str, list[Run]], new: dict[str, list[Run]], noise: float | None):
    """Return the rows of all settings, and the names of what stands on one side only, by side."""
    rows, alone = [], ([], [])
    for key in base | new:
        sides = base.get(key, []), new.get(key, [])
        label = (sides[0] or sides[1])[0].label
        if not all(sides):
            alone[0 if sides[0] else 1].append(label)
            continue
        for metric in dict.fromkeys(name for runs in sides for run in runs for name in run.figures):
            figures = [[r.figures[metric] for r in runs if metric in r.figures] for runs in sides]
            if all(figures):
                rows.append(_row(label, metric, *figures, noise))
            else:
                alone[0 if figures[0] else 1].append(f"{label}: {metric.name}")
    return rows, alone


def _row(label: str, metric: Metric, base: list, new: list, noise: float | None) -> Row:
    samples = [np.concatenate(runs) for runs in (base, new)]
    sides = [_side(*pair) for pair in zip(samples, map(len, (base, new)), strict=True)]
    change = log(sides[1].median) - log(sides[0].median)
    interval = None
    if min(map(len, samples)) >= FEWEST_SAMPLES:
        interval = change_interval(*samples)
    if noise is None:
        noise = NOISE if interval else SINGLE_NOISE
    verdict = judge(change, interval or (change, change), noise, metric.higher_is_better)
    ratios = tuple(map(exp, interval)) if interval else None
    return Row(label, metric, *sides, exp(change), ratios, noise, verdict)


def _side(values: np.ndarray, num_runs: int) -> Side:
    p5, median, p95 = (float(v) for v in np.percentile(values, (5, 50, 95)))
    return Side(median, p5, p95, len(values), num_runs)


def judge(
    change: float, interval: tuple[float, float], noise: float, higher_is_better: bool = False
) -> str:
    """Return the verdict on a change of a median and its interval, both as logarithms."""
    low, high = interval
    band = log1p(noise)
    if low > band:
        return "faster" if higher_is_better else "slower"
    if high < -band:
        return "slower" if higher_is_better else "faster"
    return "same" if abs(change) <= band else "noise"


def change_interval(base: np.ndarray, new: np.ndarray) -> tuple[float, float]:
    """Return a 95 % bootstrap interval of log(median(new) / median(base)), always the same one.

    With the sides swapped it is the negative, to the last bit: each side is resampled with both
    seeds, and both pairs of different seeds count.
    """
    ours, theirs = ([np.log(_medians(x, seed)) for seed in (0, 1)] for x in (base, new))
    changes = np.concatenate([theirs[1] - ours[0], theirs[0] - ours[1]])
    tail = (1 - CONFIDENCE) / 2
    low = np.quantile(changes, tail, method="lower")
    return float(low), float(np.quantile(changes, 1 - tail, method="higher"))


def _medians(samples: np.ndarray, seed: int) -> np.ndarray:
    """Return medians of resamples, drawn through the order statistics that they depend on.

    The m-th of n sorted uniform numbers has a beta distribution, and the next one lies above it as
    the least of n - m: two draws stand for n.
    """
    ordered, n = np.sort(samples), len(samples)
    rng, rank = np.random.default_rng(seed), (n + 1) // 2
    at = rng.beta(rank, n - rank + 1, RESAMPLES)
    lower = ordered[np.minimum((at * n).astype(np.int64), n - 1)]
    if n % 2:
        return lower
    at += (1 - at) * rng.beta(1, n - rank, RESAMPLES)
    return (lower + ordered[np.minimum((at * n).astype(np.int64), n - 1)]) / 2


def _environment(base: list[Run], new: list[Run]) -> tuple[Difference, ...]:
    """Return the facts that a change of times may come from."""
    facts = [Difference(name, _seen(base, name), _seen(new, name)) for name in MACHINE]
    return tuple(fact for fact in facts if fact.base != fact.new)


def _seen(runs: list[Run], name: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(run.environment.get(name)) for run in runs))


def _commits(runs: list[Run]) -> tuple[str, ...]:
    known = [run.environment for run in runs if run.environment.get("commit")]
    dirt = {True: " with uncommitted changes"}
    names = (str(place["commit"])[:7] + dirt.get(place.get("dirty"), "") for place in known)
    return tuple(dict.fromkeys(names))


def _rates(base: dict[str, list[Run]], new: dict[str, list[Run]]) -> dict:
    """Return what the machine did in NEW over BASE, in each matched setting."""
    ratios: dict[str, list[float]] = {}
    for key in base.keys() & new.keys():
        sides = [[run.rates for run in runs[key]] for runs in (base, new)]
        for name in {name for runs in sides for run in runs for name in run}:
            figures = [[run[name] for run in runs if name in run] for runs in sides]
            if all(figures):
                medians = [np.median(values) for values in figures]
                ratios.setdefault(name, []).append(float(medians[1] / medians[0]))
    return {name: tuple(sorted(values)) for name, values in sorted(ratios.items())}
