"""topk_rows against a sort, with values chosen to break a histogram or a radix select."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numbadsd.kernels.cpu.topk import topk_rows
from tests import oracle


def run(scores, k, page_counts=None, sink=0, recent=0, order="position"):
    """Return the kernel's selection [B, S, k] of scores [B, S, P]."""
    scores = np.ascontiguousarray(scores, dtype=np.float32)
    batch, units, pages = scores.shape
    if page_counts is None:
        page_counts = [pages] * batch
    selected = np.full((batch * units, k), -7, np.int32)
    counts = np.array(page_counts, np.int32)
    topk_rows(scores.reshape(-1), pages, pages, counts, sink, recent, order, selected)
    return selected.reshape(batch, units, k)


def check(scores, k, page_counts=None, sink=0, recent=0):
    scores = np.asarray(scores, np.float32)
    selected = run(scores, k, page_counts, sink, recent)
    counts = [scores.shape[2]] * scores.shape[0] if page_counts is None else page_counts
    for request, pages in enumerate(counts):
        for unit in range(scores.shape[1]):
            want = oracle.select(scores[request, unit, :pages], k, sink, recent)
            np.testing.assert_array_equal(selected[request, unit], want)


def row(values):
    return np.array(values, np.float32)[None, None]


def low_bits(rng, n):
    """Return values that differ in the lowest mantissa bits only."""
    bits = np.float32(1.5).view(np.uint32) + rng.integers(0, 16, n).astype(np.uint32)
    return bits.view(np.float32)


VALUES = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "all equal": lambda rng, n: np.full(n, 0.25),
    "ten distinct": lambda rng, n: rng.integers(-5, 5, n) / 4,
    "lowest mantissa bits": low_bits,
    "lowest mantissa bits, negative": lambda rng, n: -low_bits(rng, n),
    "denormals": lambda rng, n: rng.integers(-40, 40, n) * np.float64(np.float32(1e-45)),
    "signed zeros": lambda rng, n: rng.choice([-0.0, 0.0], n),
    "signed zeros among ones": lambda rng, n: rng.choice([-0.0, 0.0, 1.0, -1.0], n),
    "ascending": lambda rng, n: np.sort(rng.standard_normal(n)),
    "descending": lambda rng, n: -np.sort(rng.standard_normal(n)),
    "all exponents": lambda rng, n: rng.choice([-1, 1], n) * 2.0 ** rng.integers(-126, 127, n),
    "infinities": lambda rng, n: rng.choice([-np.inf, np.inf, 0.0, 1.0], n),
    "all minus infinity": lambda rng, n: np.full(n, -np.inf),
    "all nan": lambda rng, n: np.full(n, np.nan),
    "nan and minus infinity": lambda rng, n: rng.choice([np.nan, -np.inf], n),
    "nan among numbers": lambda rng, n: np.where(rng.random(n) < 0.3, np.nan, rng.random(n)),
    "negative nan": lambda rng, n: np.where(rng.random(n) < 0.3, -np.nan, -rng.random(n)),
    "nan of odd payloads": lambda rng, n: (
        np.where(rng.random(n) < 0.5, np.uint32([0xFFFFFFFF, 0x7F800001])[rng.integers(0, 2, n)], 0)
        .astype(np.uint32)
        .view(np.float32)
    ),
    "extremes": lambda rng, n: rng.choice([np.finfo(np.float32).max, -3.4e38, 1e-38, 0], n),
}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("pages", [1, 2, 15, 16, 17, 63, 64, 65, 257, 1000])
def test_the_selection_equals_a_sort(values, pages):
    rng = np.random.default_rng(pages)
    scores = np.stack([np.asarray(values(rng, pages), np.float32) for _ in range(6)])
    scores = scores.reshape(2, 3, pages)
    for k in {0, 1, 2, pages // 3, pages - 1, pages, pages + 1, pages + 40}:
        check(scores, k)
    if pages > 4:
        check(scores, pages // 3 + 3, sink=1, recent=2)


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_a_long_row_equals_a_sort(values):
    scores = np.asarray(values(np.random.default_rng(3), 20_000), np.float32)[None, None]
    for k in (1, 64, 2048):
        check(scores, k, sink=1, recent=2 if k > 2 else 0)


def test_ties_go_to_the_lower_position():
    assert run(row([1, 2, 2, 2, 0]), 2).tolist() == [[[1, 2]]]
    assert run(row([0, 0, 0, 0, 0]), 3).tolist() == [[[0, 1, 2]]]
    assert run(row([-0.0, 0.0, -0.0, 0.0]), 2).tolist() == [[[0, 1]]]


def test_nan_is_minus_infinity():
    nan, inf = np.nan, np.inf
    assert run(row([nan, 1, nan, 0]), 2).tolist() == [[[1, 3]]]
    assert run(row([-inf, nan, -inf, nan]), 3).tolist() == [[[0, 1, 2]]]
    assert run(row([nan, -3e38, inf]), 2).tolist() == [[[1, 2]]]


def test_forced_pages_are_kept_and_count():
    scores = row([-9, 5, 4, 3, -8])
    assert run(scores, 3, sink=1, recent=1).tolist() == [[[0, 1, 4]]]
    assert run(scores, 2, sink=1, recent=1).tolist() == [[[0, 4]]]
    assert run(scores, 3, sink=2, recent=0).tolist() == [[[0, 1, 2]]]
    assert run(scores, 2, sink=0, recent=2).tolist() == [[[3, 4]]]


def test_a_forced_page_wins_against_infinity():
    scores = row([np.nan, np.inf, np.inf, np.inf, -np.inf])
    assert run(scores, 3, sink=1, recent=1).tolist() == [[[0, 1, 4]]]


@pytest.mark.parametrize("pages", range(6))
def test_sink_and_recent_pages_may_overlap(pages):
    check(np.arange(pages, dtype=np.float32)[None, None], 5, sink=2, recent=3)
    check(np.arange(pages, dtype=np.float32)[None, None], 7, sink=3, recent=3)


def test_few_pages_leave_a_tail_of_minus_one():
    assert run(row([3, 1]), 4).tolist() == [[[0, 1, -1, -1]]]


def test_no_pages_select_nothing():
    assert run(np.empty((2, 3, 0), np.float32), 2).tolist() == [[[-1, -1]] * 3] * 2


def test_k_of_zero_writes_nothing():
    assert run(row([1, 2, 3]), 0).shape == (1, 1, 0)


def test_any_k_is_selected():
    """The limit of a GPU is not the CPU's: decode may keep more pages."""
    check(np.random.default_rng(2).standard_normal((1, 2, 9000)), 5000)


def test_an_empty_batch_is_fine():
    assert run(np.empty((0, 2, 4), np.float32), 2, []).shape == (0, 2, 2)


@pytest.mark.parametrize("fill", [-np.inf, np.inf, np.nan])
def test_scores_beyond_a_request_are_not_looked_at(fill):
    rng = np.random.default_rng(0)
    counts = [0, 1, 4, 5, 6, 40]
    scores = rng.standard_normal((len(counts), 2, 40)).astype(np.float32)
    for request, pages in enumerate(counts):
        scores[request, :, pages:] = fill
    for k in (1, 4, 5, 6, 41):
        check(scores, k, counts)
    check(scores, 5, counts, sink=1, recent=2)


def test_the_scores_are_only_read():
    scores = np.random.default_rng(1).standard_normal((2, 2, 50)).astype(np.float32)
    before = scores.copy()
    run(scores, 7, sink=1, recent=1)
    np.testing.assert_array_equal(scores, before)


@st.composite
def selections(draw):
    """Draw (scores, k, sink, recent) with many ties and special values."""
    special = st.sampled_from([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45])
    number = st.floats(width=32) | special
    scores = draw(st.lists(number, min_size=0, max_size=40))
    sink, recent = draw(st.integers(0, 4)), draw(st.integers(0, 4))
    return scores, draw(st.integers(sink + recent, 45)), sink, recent


@settings(max_examples=300)
@given(selections())
def test_any_selection_equals_a_sort(selection):
    scores, k, sink, recent = selection
    check(row(scores).reshape(1, 1, len(scores)), k, sink=sink, recent=recent)


@settings(max_examples=100)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=64), st.integers(1, 64))
def test_any_bit_pattern_equals_a_sort(patterns, k):
    check(np.array(patterns, np.uint32).view(np.float32)[None, None], k)


def test_by_score_equal_scores_are_ascending():
    nan, inf = np.nan, np.inf
    assert run(row([1, 3, 2, 3, 0]), 4, order="score").tolist() == [[[1, 3, 2, 0]]]
    assert run(row([nan, -inf, 0.0, -0.0]), 6, order="score").tolist() == [[[2, 3, 0, 1, -1, -1]]]


@settings(max_examples=150)
@given(selections())
def test_by_score_any_selection_is_the_sorted_one(selection):
    scores, k, _, _ = selection
    got = run(row(scores).reshape(1, 1, len(scores)), k, order="score")[0, 0].tolist()
    chosen = [page for page in oracle.select(scores, k).tolist() if page >= 0]
    value = [-np.inf if np.isnan(score) else score for score in scores]
    want = sorted(chosen, key=lambda page: (-value[page], page))
    assert got == want + [-1] * (k - len(want))


WRONG = {
    "score dtype": {"scores": np.zeros(8, np.float64)},
    "score bits": {"scores": np.zeros(8, np.uint16)},
    "score shape": {"scores": np.zeros((2, 4), np.float32)},
    "strided scores": {"scores": np.zeros(16, np.float32)[::2]},
    "too few scores": {"scores": np.zeros(7, np.float32)},
    "row stride": {"row_stride": -1},
    "row stride beyond": {"row_stride": 5},
    "width": {"width": -1},
    "width above 2^20": {"width": (1 << 20) + 1, "scores": np.zeros(1 << 21, np.float32)},
    "lengths dtype": {"lengths": np.zeros(2, np.int64)},
    "lengths shape": {"lengths": np.zeros((2, 1), np.int32)},
    "lengths count": {"lengths": np.zeros(3, np.int32)},
    "no lengths": {"lengths": np.zeros(0, np.int32)},
    "first": {"num_first": -1},
    "last": {"num_last": -1},
    "forced": {"num_first": 2, "num_last": 1},
    "order": {"order": "index"},
    "forced by score": {"order": "score", "num_last": 1},
    "indices dtype": {"indices": np.zeros((2, 2), np.int64)},
    "indices shape": {"indices": np.zeros((2, 2, 1), np.int32)},
    "strided indices": {"indices": np.zeros((2, 4), np.int32)[:, ::2]},
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_wrong_argument_is_a_value_error(change):
    arguments = dict(
        scores=np.zeros(8, np.float32),
        row_stride=4,
        width=4,
        lengths=np.array([4], np.int32),
        num_first=0,
        num_last=0,
        order="position",
        indices=np.zeros((2, 2), np.int32),
    )
    topk_rows(**arguments)
    with pytest.raises(ValueError, match="^[a-z_+ ]+: got [^\n]*, want [^\n]*$"):
        topk_rows(**(arguments | change))
