"""score_pages against the formulas, at every seam."""

import ml_dtypes
import numpy as np
import pytest

from numbadsd.kernels.cpu.score import score_pages
from tests import oracle
from tests.builders import SHARES, SUMMARIES

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


class Case:
    """Random queries and summaries of a ragged batch; pages of a request are scattered."""

    def __init__(self, pages, *, kind, heads=4, kv_heads=2, head_dim=16, dtype="float32", seed=0):
        rng = np.random.default_rng(seed)
        total = sum(pages)
        vectors = () if kind == "mean" else (2,)
        self.kind, self.pages, self.sm_scale = kind, pages, head_dim**-0.5
        self.units = {"request": 1, "kv_head": kv_heads, "query_head": heads}
        self.queries = rng.standard_normal((len(pages), heads, head_dim)).astype(np.float32)
        summaries = rng.standard_normal((total + 3, *vectors, kv_heads, head_dim))
        if kind == "minmax":
            summaries = np.sort(summaries, axis=1)
        elif kind != "mean":
            summaries[:, 1] = np.abs(summaries[:, 1])
        self.summaries = summaries.astype(np.float32).astype(DTYPES[dtype])
        self.page_ids = rng.permutation(total + 3)[:total].astype(np.int32)
        self.indptr = np.concatenate([[0], np.cumsum(pages)]).astype(np.int32)

    def run(self, share, rows=None):
        """Return the kernel's scores [B, S, Pmax], or those of a few requests alone."""
        queries, indptr, page_ids = self.queries, self.indptr, self.page_ids
        if rows is not None:
            queries = np.ascontiguousarray(queries[rows])
            lists = [page_ids[indptr[b] : indptr[b + 1]] for b in rows]
            indptr = np.concatenate([[0], np.cumsum([len(x) for x in lists])]).astype(np.int32)
            page_ids = np.concatenate(lists).astype(np.int32)
        most = int(np.diff(indptr).max(initial=0))
        scores = np.full((len(queries), self.units[share], most), np.nan, np.float32)
        score_pages(
            queries, self.summaries, indptr, page_ids, self.kind, share, self.sm_scale, scores
        )
        return scores

    def expected(self, request, share, dtype=np.float64):
        ids = self.page_ids[self.indptr[request] : self.indptr[request + 1]]
        summaries = [self.summaries[i].astype(np.float32) for i in ids]
        if not summaries:
            return np.empty((self.units[share], 0))
        queries = self.queries[request]
        return oracle.page_scores(queries, summaries, self.kind, share, self.sm_scale, dtype)

    def check(self, share):
        scores = self.run(share)
        for request, pages in enumerate(self.pages):
            exact = self.expected(request, share)
            naive = self.expected(request, share, np.float32)
            oracle.assert_as_exact_as_float32(scores[request, :, :pages], exact, naive)
            assert np.all(scores[request, :, pages:] == -np.inf)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", SUMMARIES)
def test_scores_equal_the_formula(kind, share, dtype):
    Case([1, 7, 8, 9, 33], kind=kind, dtype=dtype, head_dim=32).check(share)


@pytest.mark.parametrize("head_dim", [16, 32, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("kind", SUMMARIES)
def test_every_head_dim(kind, head_dim):
    for share in SHARES:
        Case([3, 1], kind=kind, head_dim=head_dim, seed=head_dim).check(share)


@pytest.mark.parametrize("heads, kv_heads", [(1, 1), (3, 3), (4, 2), (8, 2), (8, 1), (15, 3)])
@pytest.mark.parametrize("kind", SUMMARIES)
def test_every_group_size(kind, heads, kv_heads):
    for share in SHARES:
        Case([5, 2], kind=kind, heads=heads, kv_heads=kv_heads, seed=heads).check(share)


@pytest.mark.parametrize("share", SHARES)
def test_many_pages_of_few_requests(share):
    Case([700], kind="minmax", seed=4).check(share)
    Case([1] * 40, kind="mean", seed=5).check(share)


@pytest.mark.parametrize("kind", SUMMARIES)
def test_an_empty_context_is_filled_with_minus_infinity(kind):
    case = Case([0, 3, 0], kind=kind)
    for share in SHARES:
        case.check(share)
    nothing = Case([0, 0], kind=kind).run("kv_head")
    assert nothing.shape == (2, 2, 0)


@pytest.mark.parametrize("share", SHARES)
def test_equal_pages_score_equal_bit_for_bit(share):
    case = Case([37, 5], kind="cuboid_mean", head_dim=80)
    case.summaries[:] = case.summaries[0]
    scores = case.run(share)
    for request, pages in enumerate(case.pages):
        row = scores[request, :, :pages].view(np.uint32)
        assert np.all(row == row[:, :1])


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", SUMMARIES)
def test_a_request_scores_the_same_alone_and_in_any_batch(kind, share):
    case = Case([9, 0, 30, 1, 17], kind=kind, head_dim=80, heads=8, seed=8)
    together = case.run(share)
    for rows in ([0], [2], [4, 2], [4, 3, 2, 1, 0]):
        scores = case.run(share, rows)
        for row, request in enumerate(rows):
            pages = case.pages[request]
            a, b = scores[row, :, :pages], together[request, :, :pages]
            np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("kind", SUMMARIES)
def test_an_infinite_summary_gives_a_score_that_is_not_finite(kind):
    case = Case([4], kind=kind)
    case.queries[:] = np.abs(case.queries) + np.float32(0.1)
    case.summaries[case.page_ids[1]] = np.inf
    for share in SHARES:
        scores = case.run(share)[0, :, 1]
        # minmax multiplies the bound that does not apply by 0: 0 * inf is NaN
        assert np.all(np.isnan(scores) if kind == "minmax" else scores == np.inf)
    if kind == "mean":
        case.summaries[case.page_ids[2]] = -np.inf
        for share in SHARES:
            assert np.all(case.run(share)[0, :, 2] == -np.inf)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", SUMMARIES)
def test_a_nan_stays_in_its_page(kind, share):
    case = Case([4], kind=kind)
    clean = case.run(share)
    case.summaries[case.page_ids[2]] = np.nan
    scores = case.run(share)
    poisoned = scores[0, :, 2]
    assert np.all(np.isnan(poisoned) | (poisoned == -np.inf))
    others = [0, 1, 3]
    np.testing.assert_array_equal(scores[..., others], clean[..., others])


@pytest.mark.parametrize("head", range(4))
def test_a_nan_head_makes_the_score_of_its_whole_unit_nan(head):
    case = Case([4], kind="mean", heads=8, kv_heads=2)
    case.queries[0, head] = np.nan
    assert np.all(np.isnan(case.run("request")))
    is_nan = np.isnan(case.run("kv_head")[0])
    assert np.all(is_nan[0]) and not np.any(is_nan[1])
    assert np.isnan(case.run("query_head")[0]).any(axis=1).tolist() == [h == head for h in range(8)]


@pytest.mark.parametrize("share", SHARES)
def test_the_scale_multiplies_every_score(share):
    case = Case([6], kind="minmax")
    once = case.run(share)
    case.sm_scale *= 4  # a power of two: exact
    np.testing.assert_array_equal(case.run(share), 4 * once)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a | {"queries": a["queries"].astype(np.float64)},
        lambda a: a | {"queries": a["queries"][..., :8]},
        lambda a: a | {"scores": a["scores"][:, :1].repeat(3, axis=1)},
        lambda a: a | {"scores": a["scores"].astype(np.float64)},
        lambda a: a | {"summary": "median"},
        lambda a: a | {"share": "layer"},
    ],
    ids=["query dtype", "query shape", "score units", "score dtype", "summary", "share"],
)
def test_a_wrong_argument_is_a_value_error(change):
    case = Case([4], kind="mean")
    arguments = dict(
        queries=case.queries,
        summaries=case.summaries,
        page_indptr=case.indptr,
        page_ids=case.page_ids,
        summary="mean",
        share="kv_head",
        sm_scale=case.sm_scale,
        scores=np.zeros((1, 2, 4), np.float32),
    )
    with pytest.raises(ValueError, match="(?s)got .*want"):
        score_pages(**change(arguments))
