"""Where two measured curves cross: the context from which sparse beats dense."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, isfinite, log


@dataclass(frozen=True)
class Crossing:
    """How the time of sparse decode compares with that of dense, over a range of x.

    Attributes
    ----------
    kind : str
        ``"crosses"`` (dense is faster below `x`, sparse from there on), ``"always_sparse"``,
        ``"always_dense"``, or ``"crosses_often"`` (no single point divides the range).
    x : float or None
        Where they cross, interpolated; None unless they cross once.
    """

    kind: str
    x: float | None = None


def find_crossing(x: Sequence[float], dense: Sequence[float], sparse: Sequence[float]) -> Crossing:
    """Return where sparse becomes faster than dense.

    The ratio of the times is interpolated between two neighbours as a straight line in log-log
    space, where both curves are nearly straight. Equal times count as sparse being no slower.

    Parameters
    ----------
    x : sequence of float [n]
        What is varied, ascending and positive: context tokens.
    dense, sparse : sequence of float [n]
        Their times, positive, in one unit.

    Raises
    ------
    ValueError
        When there is no point, or x does not ascend, or a number is not positive and finite.
    """
    rows = list(zip(x, dense, sparse, strict=True))
    if not rows:
        raise ValueError("x: got no points, want at least one")
    if any(not isfinite(v) or v <= 0 for row in rows for v in row):
        raise ValueError("x, dense and sparse: want positive finite numbers")
    if any(a[0] >= b[0] for a, b in zip(rows, rows[1:], strict=False)):
        raise ValueError(f"x: got {list(x)}, want ascending numbers")
    gains = [log(d / s) for _, d, s in rows]  # at least 0: sparse is no slower
    wins = [gain >= 0 for gain in gains]
    changes = [i for i in range(1, len(wins)) if wins[i] != wins[i - 1]]
    if not changes:
        return Crossing("always_sparse" if wins[0] else "always_dense")
    if len(changes) > 1 or not wins[-1]:
        return Crossing("crosses_often")
    i = changes[0]
    share = gains[i - 1] / (gains[i - 1] - gains[i])
    low, high = log(rows[i - 1][0]), log(rows[i][0])
    return Crossing("crosses", exp(low + share * (high - low)))
