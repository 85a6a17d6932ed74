"""Codes and sizes by which pages are scored, the same for every backend."""

from typing import NamedTuple

from numbadsd.kernels import shared

BOUNDS = {
    "mean": shared.MEAN_BOUND,
    "minmax": shared.MINMAX_BOUND,
    "cuboid_mean": shared.RADIUS_BOUND,
    "mean_std": shared.RADIUS_BOUND,
}
REQUEST, KV_HEAD, QUERY_HEAD = 0, 1, 2
SHARES = {"request": REQUEST, "kv_head": KV_HEAD, "query_head": QUERY_HEAD}


class ScoreShape(NamedTuple):
    """How query heads score the summaries of a pool."""

    bound: int
    share: int
    arrays: int  # vectors of a summary
    factor_rows: int  # G where scores are summed over heads, else H
    num_kv_heads: int
    num_units: int


def score_shape(
    summary: str, share: str, summaries_shape: tuple[int, ...], num_heads: int
) -> ScoreShape:
    """Return how `num_heads` query heads score summaries of a shape, or raise ValueError."""
    if summary not in BOUNDS:
        raise ValueError(f"summary: got {summary!r}, want one of {', '.join(BOUNDS)}")
    if share not in SHARES:
        raise ValueError(f"share: got {share!r}, want one of {', '.join(SHARES)}")
    arrays = 1 if summary == "mean" else 2
    fits = len(summaries_shape) == 3 if arrays == 1 else summaries_shape[1:2] == (2,)
    if not fits or len(summaries_shape) != 2 + arrays:
        wanted = "(any, any, any)" if arrays == 1 else "(any, 2, any, any)"
        raise ValueError(f"summaries: got shape {summaries_shape}, want {wanted}")
    num_kv_heads = summaries_shape[-2]
    num_units = {"request": 1, "kv_head": num_kv_heads, "query_head": num_heads}[share]
    factor_rows = num_kv_heads if share == "request" else num_heads
    return ScoreShape(BOUNDS[summary], SHARES[share], arrays, factor_rows, num_kv_heads, num_units)
