"""attend_pages against float64 softmax attention, at every seam of pages, splits and heads."""

import ml_dtypes
import numpy as np
import pytest

from numbadsd.kernels.cpu.attend import SPLIT_TOKENS, attend_pages
from tests import oracle

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
SEAMS = [1, 3, 4, 5, SPLIT_TOKENS - 1, SPLIT_TOKENS, SPLIT_TOKENS + 1, 2 * SPLIT_TOKENS + 7]


class Case:
    """A pool of scattered pages whose unused slots and unused pages are NaN."""

    def __init__(self, tokens, *, heads=4, kv_heads=2, head_dim=16, page_size=16,
                 dtype="float32", seed=0, order=None):  # fmt: skip
        rng = np.random.default_rng(seed)
        self.kv_heads, self.page_size, self.sm_scale = kv_heads, page_size, head_dim**-0.5
        counts = [-(-n // page_size) for n in tokens]
        spare = 2
        shape = (sum(counts) + spare, kv_heads, page_size, head_dim)
        self.pool_keys = np.full(shape, np.nan, DTYPES[dtype])
        self.pool_values = np.full(shape, np.nan, DTYPES[dtype])
        ids = np.random.default_rng(seed if order is None else order).permutation(shape[0])
        bounds = np.cumsum([0, *counts])
        self.pages = [ids[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
        self.tokens = list(tokens)
        self.queries = rng.standard_normal((len(tokens), heads, head_dim)).astype(np.float32)
        self.keys, self.values = [], []
        for n, pages in zip(tokens, self.pages, strict=True):
            keys = rng.standard_normal((n, kv_heads, head_dim)).astype(DTYPES[dtype])
            values = rng.uniform(-1, 1, (n, kv_heads, head_dim)).astype(DTYPES[dtype])
            self.keys.append(keys.astype(np.float32))
            self.values.append(values.astype(np.float32))
            for t in range(n):
                self.pool_keys[pages[t // page_size], :, t % page_size] = keys[t]
                self.pool_values[pages[t // page_size], :, t % page_size] = values[t]

    def run(self, requests=None, selected=None):
        """Attend to all pages, or to selected[request][unit] lists of logical pages."""
        requests = range(len(self.tokens)) if requests is None else requests
        lists, last = [], []
        for b in requests:
            for unit in [range(len(self.pages[b]))] if selected is None else selected[b]:
                lists.append(self.pages[b][list(unit)])
                full = len(unit) == 0 or unit[-1] + 1 < len(self.pages[b])
                tail = (self.tokens[b] - 1) % self.page_size + 1
                last.append(0 if len(unit) == 0 else self.page_size if full else tail)
        indptr = np.cumsum([0] + [len(x) for x in lists]).astype(np.int32)
        page_ids = np.concatenate([*lists, []]).astype(np.int32)
        queries = np.ascontiguousarray(self.queries[list(requests)])
        outputs = np.full(queries.shape, np.nan, np.float32)
        lse = np.full(queries.shape[:2], np.nan, np.float32)
        attend_pages(
            queries, self.pool_keys, self.pool_values, indptr, page_ids,
            np.array(last, np.int32), self.kv_heads, self.sm_scale, outputs, lse,
        )  # fmt: skip
        return outputs, lse

    def check(self, selected=None):
        outputs, lse = self.run(selected=selected)
        for b, tokens in enumerate(self.tokens):
            units = [range(-(-tokens // self.page_size))] if selected is None else selected[b]
            common = (self.queries[b], self.keys[b], self.values[b], units)
            exact, naive = (
                oracle.attention_over_pages(*common, self.page_size, self.sm_scale, dtype)
                for dtype in (np.float64, np.float32)
            )
            oracle.assert_as_exact_as_float32(outputs[b], exact[0], naive[0])
            oracle.assert_as_exact_as_float32(lse[b], exact[1], naive[1])


def assert_same_bits(a, b):
    for left, right in zip(a, b, strict=True):
        np.testing.assert_array_equal(left.view(np.uint32), right.view(np.uint32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("page_size", [1, 8, 16, 64, 2 * SPLIT_TOKENS])
def test_dense_attention_at_the_seams_of_pages_and_splits(page_size, dtype):
    Case([*SEAMS, 0], page_size=page_size, dtype=dtype, head_dim=32).check()


@pytest.mark.parametrize("page_size", [5, 100, 129])
def test_page_sizes_that_are_no_power_of_two(page_size):
    Case(SEAMS, page_size=page_size).check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [16, 32, 64, 80, 96, 128, 256])
def test_every_head_dim(head_dim, dtype):
    Case([1, 16, 37, 150], head_dim=head_dim, dtype=dtype, heads=5, kv_heads=1).check()
    Case([1, 16, 37, 150], head_dim=head_dim, dtype=dtype, heads=4, kv_heads=4).check()


@pytest.mark.parametrize(
    "heads, kv_heads",
    [(1, 1), (2, 1), (4, 1), (8, 1), (8, 2), (8, 4), (8, 8), (3, 3), (15, 3), (14, 2), (32, 8)],
)
def test_every_group_size(heads, kv_heads):
    case = Case([1, 18, 150], heads=heads, kv_heads=kv_heads, head_dim=80)
    case.check()
    rng = np.random.default_rng(heads)
    for units in {kv_heads, heads}:
        case.check(random_selection(rng, case, units))


def random_selection(rng, case, units):
    """Return ascending logical pages per (request, unit), some lists empty, some complete."""

    def one(pages):
        return np.flatnonzero(rng.random(pages) < rng.choice([0.0, 0.3, 0.7, 1.0])).tolist()

    return [[one(len(pages)) for _ in range(units)] for pages in case.pages]


@pytest.mark.parametrize("units", [1, 2, 8])
@pytest.mark.parametrize("page_size", [1, 8, 16, 64])
def test_every_unit_attends_to_its_own_pages(page_size, units):
    case = Case([0, 1, 40, 129, 300], heads=8, kv_heads=2, page_size=page_size)
    rng = np.random.default_rng(units)
    for _ in range(3):
        case.check(random_selection(rng, case, units))


@pytest.mark.parametrize("units", [2, 8])
def test_complete_lists_of_every_unit_give_the_bits_of_one_list(units):
    case = Case([1, 16, 130, 700], heads=8, kv_heads=2, head_dim=80)
    everything = [[list(range(len(pages)))] * units for pages in case.pages]
    assert_same_bits(case.run(), case.run(selected=everything))


def test_no_pages_give_zeros_and_minus_infinity():
    case = Case([0, 5, 0])
    outputs, lse = case.run()
    for b in (0, 2):
        assert np.all(outputs[b] == 0)
        assert np.all(lse[b] == -np.inf)
    outputs, lse = case.run([0, 2])
    assert np.all(outputs == 0) and np.all(lse == -np.inf)
    assert case.run([])[0].shape == (0, 4, 16)


def test_one_token_gives_its_value():
    case = Case([1])
    outputs, lse = case.run()
    np.testing.assert_array_equal(outputs[0], np.repeat(case.values[0][0], 2, axis=0))
    logits = np.einsum("hd,hd->h", case.queries[0], np.repeat(case.keys[0][0], 2, axis=0))
    np.testing.assert_allclose(lse[0], logits * case.sm_scale, rtol=1e-5)


@pytest.mark.parametrize("tokens", [16, 150])
def test_equal_scores_give_the_mean_of_the_values(tokens):
    case = Case([tokens])
    case.queries[:] = 0
    outputs, lse = case.run()
    mean = np.repeat(case.values[0].mean(axis=0, dtype=np.float64), 2, axis=0)
    np.testing.assert_allclose(outputs[0], mean, rtol=0, atol=1e-6)
    np.testing.assert_allclose(lse[0], np.log(tokens), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-4, 30.0, 1000.0, -1000.0])
def test_large_and_small_logits_neither_overflow_nor_vanish(scale):
    case = Case([5, 150, 300])
    case.queries *= np.float32(scale)
    case.check()


def minus_infinity_at(case, request, positions):
    """Give the tokens keys whose logits are -inf for the positive queries that it sets."""
    case.queries[:] = np.abs(case.queries) + np.float32(0.1)
    for t in positions:
        page = case.pages[request][t // case.page_size]
        case.pool_keys[page, :, t % case.page_size] = -np.inf
        case.keys[request][t] = -np.inf


@pytest.mark.parametrize(
    "positions",
    [[0], [149], range(16, 32), range(SPLIT_TOKENS), range(SPLIT_TOKENS, 150), range(1, 150)],
    ids=["first token", "last token", "a page", "first split", "last split", "all but one"],
)
def test_tokens_of_logit_minus_infinity_weigh_nothing(positions):
    case = Case([150, 20])
    minus_infinity_at(case, 0, positions)
    case.check()


@pytest.mark.parametrize("tokens", [1, 16, 150])
def test_logits_that_are_all_minus_infinity_give_zeros(tokens):
    case = Case([tokens, 20])
    minus_infinity_at(case, 0, range(tokens))
    outputs, lse = case.run()
    assert np.all(outputs[0] == 0)
    assert np.all(lse[0] == -np.inf)
    assert np.all(np.isfinite(outputs[1]))


@pytest.mark.parametrize("position", [0, 17, 149])
def test_a_nan_key_reaches_its_own_kv_head_only(position):
    case = Case([150, 150])
    clean = case.run()
    page = case.pages[0][position // 16]
    case.pool_keys[page, 1, position % 16, 3] = np.nan
    outputs, lse = case.run()
    assert np.all(np.isnan(outputs[0, 2:])) and np.all(np.isnan(lse[0, 2:]))
    np.testing.assert_array_equal(outputs[0, :2], clean[0][0, :2])
    np.testing.assert_array_equal(outputs[1], clean[0][1])


@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (8, 2), (6, 2)])
def test_a_request_has_the_same_bits_alone_and_in_any_batch(heads, kv_heads):
    case = Case([700, 1, 0, 130, 16], heads=heads, kv_heads=kv_heads, head_dim=80)
    together = case.run()
    for requests in ([0], [3], [4, 2, 0], [4, 3, 2, 1, 0], [0, 0, 0]):
        some = case.run(requests)
        assert_same_bits(some, [array[requests] for array in together])


def test_physical_pages_do_not_change_the_bits():
    first = Case([700, 1, 130], order=1, heads=8, kv_heads=2)
    second = Case([700, 1, 130], order=2, heads=8, kv_heads=2)
    assert not np.array_equal(first.pages[0], second.pages[0])
    assert_same_bits(first.run(), second.run())


@pytest.mark.parametrize("kv_heads", [1, 8])
def test_the_thread_count_does_not_change_the_bits(num_threads, kv_heads):
    case = Case([700, 1, 130], heads=8, kv_heads=kv_heads, head_dim=80)
    num_threads(1)
    alone = case.run()
    for count in range(2, 1 + min(4, pytest.importorskip("numba").config.NUMBA_NUM_THREADS)):
        num_threads(count)
        assert_same_bits(alone, case.run())


@pytest.mark.parametrize(
    "change",
    [
        {"queries": np.zeros((1, 4, 16), np.float64)},
        {"queries": np.zeros((1, 4, 32), np.float32)},
        {"keys": np.zeros((1, 2, 16), np.float32)},
        {"values": np.zeros((3, 2, 16, 32), np.float32)},
        {"values": np.zeros((3, 2, 16, 16), np.float16)},
        {"outputs": np.zeros((1, 4, 8), np.float32)},
        {"lse": np.zeros((1, 3), np.float32)},
        {"last_page_tokens": np.zeros(3, np.int32)},
    ],
    ids=lambda change: f"{next(iter(change))} {next(iter(change.values())).shape}",
)
def test_a_wrong_argument_is_a_value_error(change):
    arguments = dict(
        queries=np.zeros((1, 4, 16), np.float32),
        keys=np.zeros((3, 2, 16, 16), np.float32),
        values=np.zeros((3, 2, 16, 16), np.float32),
        page_indptr=np.array([0, 2], np.int32),
        page_ids=np.array([0, 1], np.int32),
        last_page_tokens=np.array([3], np.int32),
        num_kv_heads=2,
        sm_scale=0.25,
        outputs=np.zeros((1, 4, 16), np.float32),
        lse=np.zeros((1, 4), np.float32),
    )
    with pytest.raises(ValueError, match="(?s)got .*want"):
        attend_pages(**(arguments | change))
