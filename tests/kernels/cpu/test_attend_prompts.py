"""attend_prompts against float64 causal attention, at every seam of chunks, pages and tiles."""

import numpy as np
import pytest

from numbadsd.kernels.cpu.attend_prompts import BLOCK_ROWS, attend_prompts
from numbadsd.kernels.cpu.prompt_tiles import LANES, TILE_TOKENS
from tests import oracle
from tests.kernels.cpu.test_attend import DTYPES, assert_same_bits

T = 16
SEAMS = [1, T - 1, T, T + 1, TILE_TOKENS - 1, TILE_TOKENS, TILE_TOKENS + 1, 2 * TILE_TOKENS + 7]


class Prompts:
    """Prompts in scattered pages; unused slots and unused pages are NaN.

    A chunk is (request, first position, end position).
    """

    def __init__(self, tokens, *, heads=4, kv_heads=2, head_dim=16, page_size=T,
                 dtype="float32", seed=0, order=None):  # fmt: skip
        rng = np.random.default_rng(seed)
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.page_size, self.sm_scale, self.tokens = page_size, head_dim**-0.5, list(tokens)
        counts = [-(-n // page_size) for n in tokens]
        shape = (sum(counts) + 2, kv_heads, page_size, head_dim)
        self.pool_keys = np.full(shape, np.nan, DTYPES[dtype])
        self.pool_values = np.full(shape, np.nan, DTYPES[dtype])
        ids = np.random.default_rng(seed if order is None else order).permutation(shape[0])
        self.pages = np.split(ids[: sum(counts)], np.cumsum(counts)[:-1])
        self.queries = [rng.standard_normal((n, heads, head_dim)).astype("f4") for n in tokens]
        self.keys, self.values = [], []
        for request, n in enumerate(tokens):
            for pool, kept, draw in (
                (self.pool_keys, self.keys, rng.standard_normal),
                (self.pool_values, self.values, lambda size: rng.uniform(-1, 1, size)),
            ):
                rows = draw((n, kv_heads, head_dim)).astype(pool.dtype)
                kept.append(rows.astype(np.float32))
                self.store(pool, request, range(n), rows)

    def store(self, pool, request, positions, rows):
        """Put rows, or one number, where tokens of a request are."""
        positions = np.array(positions, int)
        pages = self.pages[request][positions // self.page_size]
        pool[pages, :, positions % self.page_size] = rows

    def whole(self):
        """Return one chunk for each prompt."""
        return [(request, 0, n) for request, n in enumerate(self.tokens)]

    def arguments(self, chunks):
        """Return the arguments of a launch, without outputs."""
        queries = [self.queries[request][first:end] for request, first, end in chunks]
        empty = np.empty((0, self.heads, self.head_dim), np.float32)
        pages = [self.pages[request] for request, _, _ in chunks]
        return (
            np.concatenate([*queries, empty]),
            np.cumsum([0, *map(len, queries)]).astype(np.int32),
            np.array([first for _, first, _ in chunks], np.int32),
            self.pool_keys, self.pool_values,
            np.cumsum([0, *map(len, pages)]).astype(np.int32),
            np.concatenate([*pages, []]).astype(np.int32),
            self.kv_heads, self.sm_scale,
        )  # fmt: skip

    def launch(self, *arguments):
        """Return outputs and lse of a launch."""
        outputs = np.full(arguments[0].shape, np.nan, np.float32)
        lse = np.full(arguments[0].shape[:2], np.nan, np.float32)
        attend_prompts(*arguments, outputs, lse)
        return outputs, lse

    def run(self, chunks):
        """Return [outputs, lse] of each chunk of one pass."""
        outputs, lse = self.launch(*self.arguments(chunks))
        bounds = np.cumsum([0, *(end - first for _, first, end in chunks)])
        pairs = zip(bounds[:-1], bounds[1:], strict=True)
        return [[outputs[a:b], lse[a:b]] for a, b in pairs]

    def check(self, chunks=None):
        """Fail unless every chunk of a pass is as exact as float32 allows.

        One rounding of the largest logit moves an output by as much, where two logits are close.
        """
        chunks = self.whole() if chunks is None else chunks
        for (request, first, end), got in zip(chunks, self.run(chunks), strict=True):
            rows = self.queries[request][first:end], self.keys[request], self.values[request]
            exact, naive = (
                oracle.causal_attention(*rows, first, self.sm_scale, dtype)
                for dtype in (np.float64, np.float32)
            )
            largest = np.abs(exact[1][np.isfinite(exact[1])]).max(initial=8)
            for actual, *expected, ulps in zip(got, exact, naive, (largest, 8), strict=True):
                oracle.assert_as_exact_as_float32(actual, *expected, ulps * oracle.FLOAT32_EPS)

    def check_chunked(self, sizes):
        """Fail unless chunks of these sizes, each prompt in turn, give the bits of one shot."""
        for whole in self.whole():
            request, _, n = whole
            bounds = np.minimum(np.cumsum([0, *sizes, n]), n).tolist()
            chunks = [(request, a, b) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
            parts = [self.run([chunk])[0] for chunk in chunks]
            joined = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
            assert_same_bits(joined, self.run([whole])[0])

    def check_packed(self, chunks):
        """Fail unless chunks packed together give the bits of each alone."""
        for chunk, got in zip(chunks, self.run(chunks), strict=True):
            assert_same_bits(got, self.run([chunk])[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("page_size", [1, 5, 16, 64, 100])
def test_prompts_at_the_seams_of_pages_and_tiles(page_size, dtype):
    Prompts([*SEAMS, 0], page_size=page_size, dtype=dtype).check()


@pytest.mark.parametrize("page_size", [8, 16, 24])
def test_prompts_of_a_token_less_and_more_than_a_page(page_size):
    Prompts([page_size - 1, page_size, page_size + 1, 1], page_size=page_size).check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [16, 32, 64, 80, 96, 128, 256])
def test_every_head_dim(head_dim, dtype):
    Prompts([70, 3], head_dim=head_dim, dtype=dtype).check()


@pytest.mark.parametrize("heads, kv_heads", [(1, 1), (3, 3), (4, 1), (6, 2), (16, 1), (160, 1)])
def test_every_group_size(heads, kv_heads):
    case = Prompts([40, 70], heads=heads, kv_heads=kv_heads)
    case.check()
    case.check_chunked([1, 7, 16])


@pytest.mark.parametrize("rows", [15, 16, 17, 32, 33, LANES, BLOCK_ROWS - 1, BLOCK_ROWS + 1])
def test_chunks_at_the_seams_of_lanes_and_blocks(rows):
    case = Prompts([150], heads=1, kv_heads=1)
    case.check([(0, 150 - rows, 150)])
    case.check([(0, 0, rows)])


def test_a_chunk_that_starts_anywhere_in_a_page():
    case = Prompts([100, 90])
    for first in (0, 1, 15, 16, 17, 63, 64, 65, 89):
        case.check([(0, first, first + 1), (1, first, 90), (0, first, 100)])


def test_empty_chunks_and_no_chunks():
    case = Prompts([20, 0, 33])
    assert len(case.run([])) == 0
    case.check([(0, 5, 5), (2, 0, 33), (1, 0, 0), (0, 20, 20)])
    assert [len(outputs) for outputs, _ in case.run([(0, 5, 5), (1, 0, 0)])] == [0, 0]


def test_positions_may_be_int64():
    case = Prompts([40])
    queries, cu_seqlens, first, *rest = case.arguments([(0, 30, 40)])
    wide = case.launch(queries, cu_seqlens, first.astype(np.int64), *rest)
    assert_same_bits(wide, case.run([(0, 30, 40)])[0])


@pytest.mark.parametrize("heads, kv_heads", [(2, 2), (6, 2), (16, 1)])
@pytest.mark.parametrize("sizes", [[1] * 9, [16, 16, 16], [7, 64, 1, 70], [63, 1, 1], [128]])
def test_a_prompt_has_the_same_bits_in_chunks_of_any_size(sizes, heads, kv_heads):
    Prompts([200, 64, 1], heads=heads, kv_heads=kv_heads, head_dim=80).check_chunked(sizes)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_prompt_in_half_precision_has_the_same_bits_in_chunks(dtype):
    Prompts([150], dtype=dtype).check_chunked([3, 61, 5])


def test_a_chunk_has_the_same_bits_alone_and_packed():
    case = Prompts([200, 1, 0, 64, 130], heads=8, head_dim=80)
    case.check_packed(case.whole())
    case.check_packed([(4, 17, 130), (0, 150, 200), (3, 63, 64), (4, 17, 18), (2, 0, 0), (1, 0, 1)])


def test_physical_pages_do_not_change_the_bits():
    first, second = (Prompts([150, 20], order=order) for order in (1, 2))
    assert not np.array_equal(first.pages[0], second.pages[0])
    for a, b in zip(first.run(first.whole()), second.run(second.whole()), strict=True):
        assert_same_bits(a, b)


def test_the_thread_count_does_not_change_the_bits(num_threads):
    case = Prompts([300, 1, 130], kv_heads=1)
    num_threads(1)
    alone = case.run(case.whole())
    for count in range(2, 1 + min(4, pytest.importorskip("numba").config.NUMBA_NUM_THREADS)):
        num_threads(count)
        for a, b in zip(alone, case.run(case.whole()), strict=True):
            assert_same_bits(a, b)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("first", [1, 40, 64, 149])
def test_a_token_reaches_none_before_it(first, bad):
    case = Prompts([150])
    clean = case.run([(0, 0, 150)])[0]
    case.store(case.pool_keys, 0, range(first, 150), bad)
    case.store(case.pool_values, 0, range(first, 150), bad)
    with_bad = case.run([(0, 0, 150)])[0]
    assert_same_bits([a[:first] for a in with_bad], [a[:first] for a in clean])
    assert_same_bits(case.run([(0, first // 2, first)])[0], [a[first // 2 : first] for a in clean])


def test_a_nan_key_reaches_its_own_kv_head_from_its_token_on():
    case = Prompts([100])
    clean = case.run([(0, 0, 100)])[0]
    case.pool_keys[case.pages[0][2], 1, 5] = np.nan  # position 37
    outputs, lse = case.run([(0, 0, 100)])[0]
    assert np.all(np.isnan(outputs[37:, 2:])) and np.all(np.isnan(lse[37:, 2:]))
    assert_same_bits([outputs[:, :2], lse[:, :2]], [clean[0][:, :2], clean[1][:, :2]])
    assert_same_bits([outputs[:37], lse[:37]], [clean[0][:37], clean[1][:37]])


@pytest.mark.parametrize("scale", [1e-4, 30.0, 1000.0, -1000.0])
@pytest.mark.parametrize("head_dim", [16, 64])
def test_large_and_small_logits_neither_overflow_nor_vanish(head_dim, scale):
    case = Prompts([5, 150], head_dim=head_dim)
    case.queries = [queries * np.float32(scale) for queries in case.queries]
    case.check()


def test_the_first_token_gives_its_value():
    case = Prompts([30])
    outputs, _ = case.run([(0, 0, 30)])[0]
    np.testing.assert_array_equal(outputs[0], np.repeat(case.values[0][0], 2, axis=0))


@pytest.mark.parametrize("hidden", [range(1), range(64), range(70), range(60, 90)])
def test_tokens_of_logit_minus_infinity_weigh_nothing(hidden):
    case = Prompts([150])
    case.queries = [np.abs(queries) for queries in case.queries]
    case.store(case.pool_keys, 0, hidden, -np.inf)
    case.keys[0][list(hidden)] = -np.inf
    case.check()
    case.check_chunked([1, 50, 30])


def good_arguments():
    """Return the arguments of a legal launch."""
    return dict(
        queries=np.zeros((3, 4, 16), np.float32),
        cu_seqlens=np.array([0, 1, 3], np.int32),
        first_positions=np.array([16, 0], np.int32),
        keys=np.zeros((3, 2, 16, 16), np.float32),
        values=np.zeros((3, 2, 16, 16), np.float32),
        page_indptr=np.array([0, 2, 3], np.int32),
        page_ids=np.array([0, 1, 2], np.int32),
        num_kv_heads=2,
        sm_scale=0.25,
        outputs=np.zeros((3, 4, 16), np.float32),
        lse=np.zeros((3, 4), np.float32),
    )


WRONG = [
    ("queries", np.zeros((3, 4, 16)), "queries: got dtype float64, want float32"),
    ("queries", np.zeros((3, 5, 16), np.float32), "queries: got 5 heads, want a multiple of 2"),
    ("queries", np.zeros((3, 4, 32), np.float32), "keys: got shape"),
    ("cu_seqlens", np.array([0, 1, 3]), "cu_seqlens: got dtype int64, want int32"),
    ("first_positions", np.array([0], np.int32), "first_positions: got shape (1,), want (2,)"),
    ("first_positions", np.zeros(2), "first_positions: got dtype float64, want"),
    ("keys", np.zeros((3, 1, 16, 16), np.float32), "keys: got shape (3, 1, 16, 16), want (any, 2,"),
    ("values", np.zeros((3, 2, 16, 16), np.float16), "values: got dtype float16, want float32"),
    ("page_indptr", np.array([0, 2], np.int32), "page_indptr: got shape (2,), want (3,)"),
    ("page_ids", np.array([0, 1, 2]), "page_ids: got dtype int64, want int32"),
    ("outputs", np.zeros((3, 4, 8), np.float32), "outputs: got shape (3, 4, 8), want (3, 4, 16)"),
    ("lse", np.zeros((3, 3), np.float32), "lse: got shape (3, 3), want (3, 4)"),
]
WRONG_NUMBERS = [
    ("cu_seqlens", np.array([0, 1, 2], np.int32), "cu_seqlens: got .* want 0 rising to 3"),
    ("cu_seqlens", np.array([1, 1, 3], np.int32), "cu_seqlens: got .* want 0 rising to 3"),
    ("cu_seqlens", np.array([0, 4, 3], np.int32), "cu_seqlens: got .* want 0 rising to 3"),
    ("first_positions", np.array([0, -1], np.int32), "first_positions: got .* want none below 0"),
    ("first_positions", np.array([32, 0], np.int32), "page_indptr: got 2 pages for chunk 0.* 3$"),
    ("page_indptr", np.array([0, 3, 3], np.int32), "page_indptr: got 0 pages for chunk 1.* 1$"),
]


def test_the_arguments_that_wrong_ones_are_made_of_are_right():
    attend_prompts(**good_arguments())


@pytest.mark.parametrize("name, value, message", WRONG)
def test_a_wrong_argument_is_a_value_error(name, value, message):
    with pytest.raises(ValueError) as error:
        attend_prompts(**(good_arguments() | {name: value}))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("name, value, message", WRONG_NUMBERS)
def test_a_wrong_number_is_a_value_error(name, value, message):
    with pytest.raises(ValueError, match=f"(?s)^{message}"):
        attend_prompts(**(good_arguments() | {name: value}))
