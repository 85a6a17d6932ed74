"""select_pages on a device against a sort, with values chosen to break a radix select."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numbadsd.kernels.cuda.topk import KEPT_KEYS, MAX_K, NUM_THREADS, select_pages
from tests.device import assert_same_bits, output, stream, up
from tests.kernels.cpu.test_topk import VALUES, row
from tests.kernels.cuda.cases import check_selection, select


def every_value(pages, seed=3):
    """Return scores [1, S, pages], one unit for each kind of values."""
    rng = np.random.default_rng(seed)
    return np.stack([np.asarray(make(rng, pages), np.float32) for make in VALUES.values()])[None]


@pytest.mark.parametrize(
    "pages, ks", [(1, [0, 1, 2]), (2, [1]), (17, [16, 17, 40]), (257, [64]), (700, [3])]
)
def test_the_selection_equals_a_sort(pages, ks):
    for k in ks:
        check_selection(every_value(pages, seed=pages), k)


def test_the_selection_with_forced_pages_equals_a_sort():
    check_selection(every_value(70), 9, sink=1, recent=2)


def test_ties_go_to_the_lower_position():
    assert select(row([1, 2, 2, 2, 0]), 2).tolist() == [[[1, 2]]]
    assert select(row([0, 0, 0, 0, 0]), 3).tolist() == [[[0, 1, 2]]]
    assert select(row([-0.0, 0.0, -0.0, 0.0]), 2).tolist() == [[[0, 1]]]


def test_ties_across_threads_go_to_the_lower_position():
    """Every thread owns a run of equal scores, and some better ones."""
    scores = np.zeros((1, 1, 3 * NUM_THREADS), np.float32)
    scores[0, 0, ::7] = 1
    for k in (1, 109, 110, 111, 500):
        check_selection(scores, k)


def test_nan_is_minus_infinity():
    nan, inf = np.nan, np.inf
    assert select(row([nan, 1, nan, 0]), 2).tolist() == [[[1, 3]]]
    assert select(row([-inf, nan, -inf, nan]), 3).tolist() == [[[0, 1, 2]]]
    assert select(row([nan, -3e38, inf]), 2).tolist() == [[[1, 2]]]


def test_forced_pages_are_kept_and_count():
    scores = row([-9, 5, 4, 3, -8])
    assert select(scores, 3, sink=1, recent=1).tolist() == [[[0, 1, 4]]]
    assert select(scores, 2, sink=1, recent=1).tolist() == [[[0, 4]]]
    assert select(scores, 3, sink=2, recent=0).tolist() == [[[0, 1, 2]]]
    assert select(scores, 2, sink=0, recent=2).tolist() == [[[3, 4]]]
    scores = row([np.nan, np.inf, np.inf, np.inf, -np.inf])
    assert select(scores, 3, sink=1, recent=1).tolist() == [[[0, 1, 4]]]


def test_sink_and_recent_pages_may_overlap():
    scores = np.arange(30, dtype=np.float32).reshape(6, 1, 5)
    check_selection(scores, 5, page_counts=range(6), sink=2, recent=3)
    check_selection(scores, 7, page_counts=range(6), sink=3, recent=3)


@pytest.mark.parametrize("fill", [np.inf, np.nan])
def test_scores_beyond_a_request_are_not_looked_at(fill):
    counts = [0, 1, 4, 5, 6, 40]
    scores = np.random.default_rng(0).standard_normal((len(counts), 2, 40)).astype(np.float32)
    for request, pages in enumerate(counts):
        scores[request, :, pages:] = fill
    for k in (1, 5):
        check_selection(scores, k, counts)
    check_selection(scores, 5, counts, sink=1, recent=2)


def test_shapes_of_nothing():
    assert select(np.empty((2, 3, 0), np.float32), 2).tolist() == [[[-1, -1]] * 3] * 2
    assert select(row([1, 2, 3]), 0).shape == (1, 1, 0)
    assert select(np.empty((0, 2, 4), np.float32), 2, []).shape == (0, 2, 2)


@pytest.mark.parametrize("pages", [KEPT_KEYS, KEPT_KEYS + 1, 9000])
def test_rows_at_the_limit_of_the_keys_that_are_kept(pages):
    rng = np.random.default_rng(pages)
    scores = (rng.integers(-40, 40, (1, 2, pages)) / 8).astype(np.float32)
    scores[0, 0, rng.integers(0, pages, 500)] = np.nan
    scores[0, 1] = -0.0
    check_selection(scores, 300, sink=1, recent=2)


def test_the_largest_k():
    check_selection(every_value(MAX_K + 1)[:, :3], MAX_K)


def test_a_row_is_selected_alike_alone_and_in_a_batch():
    scores = every_value(90)
    together = select(scores, 20)
    for unit in (0, 5, scores.shape[1] - 1):
        assert_same_bits(select(scores[:, unit : unit + 1], 20), together[:, unit : unit + 1])


@settings(max_examples=25)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=64), st.integers(1, 64))
def test_any_bit_pattern_equals_a_sort(patterns, k):
    check_selection(np.array(patterns, np.uint32).view(np.float32)[None, None], k)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("scores", np.zeros((1, 1, 4)), "scores: got dtype float64, want float32"),
        ("scores", np.zeros((1, 4), np.float32), "scores: got shape (1, 4), want (any, any, any)"),
        ("page_counts", np.array([4, 4], np.int32), "page_counts: got shape (2,), want (1,)"),
        ("page_counts", np.array([4]), "page_counts: got dtype int64, want int32"),
        (
            "selected",
            np.zeros((1, 2, 2), np.int32),
            "selected: got shape (1, 2, 2), want (1, 1, any)",
        ),
        ("selected", np.zeros((1, 1, 2), np.int64), "selected: got dtype int64, want int32"),
        ("selected", np.zeros((1, 1, 1025), np.int32), "selected: got k = 1025, want at most 1024"),
        ("num_sink_pages", 2, "num_sink_pages + num_recent_pages: got 2 + 1, want at most k = 2"),
        ("num_recent_pages", -1, "num_sink_pages + num_recent_pages: got 0 + -1, want"),
    ],
)
def test_a_wrong_argument_is_a_value_error(name, value, message):
    arguments = dict(
        scores=up(np.zeros((1, 1, 4), np.float32)),
        page_counts=up(np.array([4], np.int32)),
        num_sink_pages=0,
        num_recent_pages=1,
        selected=output((1, 1, 2), np.int32),
        stream=stream(),
    )
    select_pages(**arguments)
    changed = up(value) if isinstance(value, np.ndarray) else value
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        select_pages(**(arguments | {name: changed}))
