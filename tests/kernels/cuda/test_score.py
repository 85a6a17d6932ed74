"""score_pages on a device against the formulas, at every seam."""

import re

import ml_dtypes
import numpy as np
import pytest

from numbadsd.kernels.cuda.score import score_pages
from tests.builders import SHARES, SUMMARIES
from tests.device import assert_same_bits, output, stream, up
from tests.kernels.cuda.cases import ScoreCase, check_repeats, check_same_alone

DTYPES = ("float32", "float16", "bfloat16")
EVERY_KIND = pytest.mark.parametrize("kind", SUMMARIES)
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES)
EVERY_SHARE = pytest.mark.parametrize("share", SHARES)


@EVERY_KIND
@EVERY_SHARE
@EVERY_DTYPE
def test_scores_equal_the_formula(kind, share, dtype):
    ScoreCase([1, 7, 0, 9], kind=kind, dtype=dtype, head_dim=32).check(share)


@pytest.mark.parametrize("head_dim", [16, 32, 48, 64, 80, 96, 128, 256])
@EVERY_DTYPE
def test_every_head_dim(dtype, head_dim):
    for share, kind in (("request", "cuboid_mean"), ("query_head", "mean")):
        ScoreCase([3], kind=kind, head_dim=head_dim, dtype=dtype, seed=head_dim).check(share)


@EVERY_SHARE
@pytest.mark.parametrize(
    "heads, kv_heads",
    [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (8, 1), (12, 1), (3, 3), (10, 5), (8, 8)],
)
@EVERY_DTYPE
def test_every_group_size(dtype, heads, kv_heads, share):
    shape = dict(heads=heads, kv_heads=kv_heads, dtype=dtype)
    ScoreCase([5, 2], kind="mean_std", seed=heads, **shape).check(share)


@EVERY_SHARE
@pytest.mark.parametrize("pages", [8, 15, 16, 17, 63, 64, 65, 200])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_seams_of_blocks_of_pages(dtype, pages, share):
    ScoreCase([pages, 3], kind="mean", heads=2, kv_heads=1, dtype=dtype, seed=pages).check(share)


@pytest.mark.parametrize("share", ["kv_head", "query_head"])
def test_as_many_heads_as_shared_memory_holds(share):
    shape = dict(heads=7, kv_heads=1, head_dim=128, dtype="bfloat16")
    ScoreCase([5], kind="cuboid_mean", **shape).check(share)


@EVERY_KIND
def test_an_empty_context_is_filled_with_minus_infinity(kind):
    case = ScoreCase([0, 3, 0], kind=kind)
    for share in SHARES:
        case.check(share)
        assert np.all(case.run(share, [0, 2], spare_pages=70) == -np.inf)
    assert ScoreCase([0, 0], kind=kind).run("kv_head").shape == (2, 2, 0)
    assert case.run("kv_head", []).shape == (0, 2, 0)


@EVERY_SHARE
@EVERY_DTYPE
def test_equal_pages_score_equal_bit_for_bit(dtype, share):
    case = ScoreCase([37], kind="cuboid_mean", head_dim=80, dtype=dtype)
    case.summaries[:] = case.summaries[0]
    row = case.run(share)[0].view(np.uint32)
    assert np.all(row == row[:, :1])


@EVERY_SHARE
@pytest.mark.parametrize("heads, kv_heads", [(8, 2), (5, 1)])
@EVERY_DTYPE
def test_a_request_scores_the_same_alone_and_in_any_batch(dtype, heads, kv_heads, share):
    shape = dict(heads=heads, kv_heads=kv_heads, dtype=dtype)
    case = ScoreCase([9, 0, 70], kind="minmax", seed=8, **shape)
    check_same_alone(case, ([0], [2, 1, 0]), lambda case, rows: [case.run(share, rows)])
    check_repeats(case.runs(share), 2)


@EVERY_DTYPE
def test_a_head_scores_the_same_beside_any_others(dtype):
    case = ScoreCase([9], kind="minmax", heads=12, kv_heads=1, head_dim=48, dtype=dtype)
    together = case.run("query_head")
    case.queries[:, :4] = np.nan  # heads that are multiplied with them
    some = case.run("query_head")
    assert_same_bits(some[:, 4:], together[:, 4:])
    alone = ScoreCase([9], kind="minmax", heads=1, kv_heads=1, head_dim=48, dtype=dtype)
    alone.summaries, alone.page_ids = case.summaries, case.page_ids
    for head in (4, 11):
        alone.queries = case.queries[:, head : head + 1]
        assert_same_bits(alone.run("kv_head"), together[:, head : head + 1])


@EVERY_DTYPE
@EVERY_KIND
def test_heads_have_any_magnitude(kind, dtype):
    case = ScoreCase([9], kind=kind, heads=5, kv_heads=1, dtype=dtype)
    scores, factors = case.run("query_head"), np.float32(2) ** np.float32([0, 40, -40, 9, -80])
    case.queries *= factors[:, None]
    np.testing.assert_array_equal(case.run("query_head"), scores * factors[:, None])
    case.queries[:, 1] = 0
    assert np.all(case.run("query_head")[:, 1] == 0)


@EVERY_SHARE
def test_a_longer_row_has_the_same_scores_and_then_minus_infinity(share):
    case = ScoreCase([9, 2], kind="mean")
    scores, longer = case.run(share), case.run(share, spare_pages=66)
    assert_same_bits(longer[..., :9], scores)
    assert np.all(longer[..., 9:] == -np.inf)


@EVERY_KIND
@EVERY_DTYPE
def test_an_infinite_summary_gives_a_score_that_is_not_finite(dtype, kind):
    case = ScoreCase([4], kind=kind, dtype=dtype)
    case.queries[:] = np.abs(case.queries) + np.float32(0.1)
    case.queries[..., 1:4] = [1e-30, 2.0**-14, 1]  # parts of a number that 0 must not stand for
    case.summaries[case.page_ids[1]] = np.inf
    if kind == "mean":
        case.summaries[case.page_ids[2]] = -np.inf
    for share in SHARES:
        scores = case.run(share)[0]
        # minmax multiplies the bound that does not apply by 0: 0 * inf is NaN
        assert np.all(np.isnan(scores[:, 1]) if kind == "minmax" else scores[:, 1] == np.inf)
        assert kind != "mean" or np.all(scores[:, 2] == -np.inf)
        assert np.all(np.isfinite(scores[:, [0, 3]]))


@EVERY_KIND
@EVERY_SHARE
@EVERY_DTYPE
def test_a_nan_stays_in_its_page(dtype, kind, share):
    case = ScoreCase([4], kind=kind, heads=6, dtype=dtype)
    clean = case.run(share)
    case.summaries[case.page_ids[2]] = np.nan
    scores = case.run(share)
    assert np.all(np.isnan(scores[0, :, 2]))
    others = [0, 1, 3]
    assert_same_bits(scores[..., others], clean[..., others])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("head", range(5))
@EVERY_DTYPE
def test_a_head_that_is_no_number_makes_the_score_of_its_whole_unit_nan(dtype, head, value):
    case = ScoreCase([4], kind="cuboid_mean", heads=10, kv_heads=2, dtype=dtype)
    case.queries[0, head] = value
    case.summaries[:, 0] = 0  # inf * 0
    assert np.all(np.isnan(case.run("request")))
    is_nan = np.isnan(case.run("kv_head")[0])
    assert np.all(is_nan[0]) and not np.any(is_nan[1])
    is_nan = np.isnan(case.run("query_head")[0])
    assert (
        is_nan.all(axis=1).tolist() == is_nan.any(axis=1).tolist() == [h == head for h in range(10)]
    )


@EVERY_SHARE
@EVERY_DTYPE
def test_the_scale_multiplies_every_score(dtype, share):
    case = ScoreCase([6], kind="minmax", dtype=dtype)
    once = case.run(share)
    case.sm_scale *= 4  # a power of two: exact
    np.testing.assert_array_equal(case.run(share), 4 * once)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("queries", np.zeros((1, 4, 16)), "queries: got dtype float64, want float32"),
        (
            "queries",
            np.zeros((1, 4, 8), np.float32),
            "summaries: got shape (7, 2, 16), want (7, 2, 8)",
        ),
        (
            "summaries",
            np.zeros((7, 2, 16)),
            "summaries: got dtype float64, want float32, float16 or",
        ),
        (
            "summaries",
            np.zeros((7, 2, 2, 16), np.float32),
            "summaries: got shape (7, 2, 2, 16), want",
        ),
        ("page_indptr", np.array([0, 1, 2], np.int32), "page_indptr: got shape (3,), want (2,)"),
        ("page_indptr", np.array([0, 4]), "page_indptr: got dtype int64, want int32"),
        ("page_ids", np.array([0, 1, 2, 3]), "page_ids: got dtype int64, want int32"),
        ("summary", "median", "summary: got 'median', want one of mean, minmax"),
        ("share", "layer", "share: got 'layer', want one of request, kv_head"),
        ("scores", np.zeros((1, 3, 4), np.float32), "scores: got shape (1, 3, 4), want (1, 2, 4)"),
        ("scores", np.zeros((1, 2, 4)), "scores: got dtype float64, want float32"),
        ("workspace", np.zeros(255, np.float32), "workspace: got 255 numbers, want 256"),
    ],
)
def test_a_wrong_argument_is_a_value_error(name, value, message):
    arguments = dict(
        queries=up(np.zeros((1, 4, 16), np.float32)),
        summaries=up(np.zeros((7, 2, 16), ml_dtypes.bfloat16)),
        page_indptr=up(np.array([0, 4], np.int32)),
        page_ids=up(np.array([0, 1, 2, 3], np.int32)),
        summary="mean",
        share="kv_head",
        sm_scale=0.25,
        scores=output((1, 2, 4), np.float32),
        stream=stream(),
        workspace=output(256, np.float32),
    )
    score_pages(**arguments)
    changed = up(value) if isinstance(value, np.ndarray) else value
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        score_pages(**(arguments | {name: changed}))
