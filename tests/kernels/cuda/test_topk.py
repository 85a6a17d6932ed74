"""topk_rows on a device against a sort, with values chosen to break a radix select."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numbadsd.kernels.cuda.launch import DeviceArray
from numbadsd.kernels.cuda.topk import topk_rows, topk_workspace_size
from numbadsd.kernels.cuda.topk_row import NUM_THREADS
from numbadsd.kernels.cuda.topk_tuning import TUNING_FILE, TopkTuning, tuning_of
from numbadsd.kernels.topk_shape import MAX_K
from tests.device import assert_same_bits, intact, output, stream, up, written
from tests.kernels.cpu.test_topk import VALUES, row
from tests.kernels.cuda.cases import check_selection, select

# Each way that a row can go, for rows as short as a simulator can do.
WAYS = {
    "as tuned": None,
    "by a warp": TopkTuning(warp_length=10**6, block_length=10**6),
    "by a block": TopkTuning(warp_length=0, block_length=10**6),
    "by parts": TopkTuning(0, 0, part_length=64, blocks_a_multiprocessor=32),
}
EVERY_WAY = pytest.mark.parametrize("launch", WAYS.values(), ids=WAYS)
MIXED = TopkTuning(warp_length=16, block_length=64, part_length=48, blocks_a_multiprocessor=16)


def every_value(pages, seed=3):
    """Return scores [1, S, pages], one unit for each kind of values."""
    rng = np.random.default_rng(seed)
    return np.stack([np.asarray(make(rng, pages), np.float32) for make in VALUES.values()])[None]


@EVERY_WAY
@pytest.mark.parametrize("pages, ks", [(1, [0, 1, 2]), (2, [1]), (17, [16, 17, 40]), (257, [64])])
def test_the_selection_equals_a_sort(pages, ks, launch):
    scores = every_value(pages, seed=pages)
    for k in ks:
        check_selection(scores, k, launch=launch)


@EVERY_WAY
def test_the_selection_with_forced_elements_equals_a_sort(launch):
    check_selection(every_value(70), 9, sink=1, recent=2, launch=launch)
    check_selection(every_value(70)[:, :3], 3, sink=1, recent=2, launch=launch)


def test_ties_go_to_the_lower_position():
    assert select(row([1, 2, 2, 2, 0]), 2).tolist() == [[[1, 2]]]
    assert select(row([0, 0, 0, 0, 0]), 3).tolist() == [[[0, 1, 2]]]
    assert select(row([-0.0, 0.0, -0.0, 0.0]), 2).tolist() == [[[0, 1]]]


@EVERY_WAY
def test_ties_across_threads_go_to_the_lower_position(launch):
    """Every warp owns a run of equal scores, and some better ones."""
    scores = np.zeros((1, 1, NUM_THREADS + 77), np.float32)
    scores[0, 0, ::7] = 1
    for k in (84, 85, 500):
        check_selection(scores, k, launch=launch)


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


LENGTHS = [0, -1, -(2**31), 1, 4, 5, 6, 15, 16, 17, 63, 64, 65, 100, 101, 2**31 - 1]


@pytest.mark.parametrize("fill", [np.inf, np.nan])
def test_rows_of_every_length_go_their_way_in_one_call(fill):
    """Lengths at every seam, and wrong ones; what lies behind a row is not looked at."""
    scores = np.random.default_rng(0).standard_normal((len(LENGTHS), 1, 100)).astype(np.float32)
    for request, pages in enumerate(LENGTHS):
        scores[request, :, max(0, pages) :] = fill
    check_selection(scores, 5, LENGTHS, launch=MIXED)
    check_selection(scores, 5, LENGTHS, sink=1, recent=2, launch=MIXED)


def test_shapes_of_nothing():
    assert select(np.empty((2, 3, 0), np.float32), 2).tolist() == [[[-1, -1]] * 3] * 2
    assert select(row([1, 2, 3]), 0).shape == (1, 1, 0)
    assert select(np.empty((0, 2, 4), np.float32), 2, []).shape == (0, 2, 2)


@pytest.mark.parametrize("way", ["by a block", "by parts"])
def test_a_long_row_of_few_values(way):
    rng = np.random.default_rng(0)
    scores = (rng.integers(-40, 40, (1, 2, 9001)) / 8).astype(np.float32)
    scores[0, 0, rng.integers(0, 9001, 500)] = np.nan
    scores[0, 1] = -0.0
    launch = TopkTuning(0, 10**6 if way == "by a block" else 64, 1500, 64)
    check_selection(scores, 300, sink=1, recent=2, launch=launch)


@pytest.mark.parametrize("parts", [3, 4, 5, 9])
def test_counts_of_any_number_of_parts_are_added_up(parts):
    """They are loaded by four; equal scores lie in all parts, and the best in the last."""
    scores = np.tile(np.float32([0, -1, 1e-40]), 100)[None, None]
    scores[..., -20:] += np.arange(20, dtype=np.float32)
    launch = TopkTuning(0, 0, part_length=-(-300 // parts), blocks_a_multiprocessor=32)
    assert launch.num_parts(1, 300, 2) == parts
    check_selection(scores, 110, launch=launch)


def test_the_largest_k():
    check_selection(every_value(MAX_K + 1)[:, :2], MAX_K)


@pytest.mark.parametrize("k", [1, 2, 3, 31, 64, 100])
def test_selected_elements_in_the_order_of_their_scores(k):
    scores = every_value(90)[:, :, :80]
    chosen = select(scores, k, order="score")[0]
    numbers = np.nan_to_num(scores[0], nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    for values, indices, by_position in zip(numbers, chosen, select(scores, k)[0], strict=True):
        count = min(k, 80)
        assert sorted(indices[:count], key=lambda i: (-values[i], i)) == list(indices[:count])
        assert sorted(indices) == sorted(by_position) and np.all(indices[count:] == -1)


def test_a_row_is_selected_alike_alone_and_in_a_batch():
    scores = every_value(90)
    together = select(scores, 20)
    for unit in (0, 5, scores.shape[1] - 1):
        assert_same_bits(select(scores[:, unit : unit + 1], 20), together[:, unit : unit + 1])


@settings(max_examples=25)
@given(
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=64),
    st.integers(1, 64),
    st.sampled_from(list(WAYS)),
)
def test_any_bit_pattern_equals_a_sort(patterns, k, way):
    scores = np.array(patterns, np.uint32).view(np.float32)[None, None]
    check_selection(scores, k, launch=WAYS[way])


def test_more_blocks_for_a_row_only_where_rows_do_not_fill_the_device():
    tuning = TopkTuning()
    assert tuning.num_parts(4, 163_840, 132) == 20
    assert tuning.num_parts(1, 1 << 20, 132) == 64
    assert tuning.num_parts(100, 163_840, 132) == 2
    assert tuning.num_parts(200, 1 << 20, 132) == 1
    assert tuning.num_parts(4, tuning.block_length, 132) == 1
    assert tuning.num_parts(0, 1 << 20, 132) == 1
    assert topk_workspace_size(3, 2048) == 0


def test_the_tuning_file_has_numbers_that_fit():
    assert TUNING_FILE.exists()
    for capability in ((8, 0), (9, 0), (10, 0)):
        tuning_of(capability)


def arguments(**changes):
    """Return arguments of a good call, but for the changes."""
    good = dict(
        scores=up(np.zeros(8, np.float32)),
        row_stride=4,
        width=4,
        lengths=up(np.array([4, 4], np.int32)),
        num_first=0,
        num_last=1,
        order="position",
        indices=output((2, 2), np.int32),
        stream=stream(),
    )
    return good | {n: up(v) if isinstance(v, np.ndarray) else v for n, v in changes.items()}


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("scores", np.zeros(8), "scores: got dtype float64, want float32, float16 or bfloat16"),
        ("scores", np.zeros((2, 4), np.float32), "scores: got shape (2, 4), want (any,)"),
        ("scores", np.zeros(7, np.float32), "scores: got 7 elements, want at least 8"),
        ("row_stride", -4, "row_stride: got -4, want at least 0"),
        ("width", (1 << 20) + 1, "width: got 1048577, want 0 .. 1048576"),
        ("lengths", np.array([4, 4, 4], np.int32), "lengths: got 3 for 2 rows, want one for each"),
        ("lengths", np.array([4, 4]), "lengths: got dtype int64, want int32"),
        ("indices", np.zeros(4, np.int32), "indices: got shape (4,), want (any, any)"),
        ("indices", np.zeros((2, 2), np.int64), "indices: got dtype int64, want int32"),
        ("indices", np.zeros((2, 2049), np.int32), "indices: got k = 2049, want at most 2048"),
        ("num_first", 2, "num_first + num_last: got 2 + 1, want at least 0, together at most k"),
        ("num_last", -1, "num_first + num_last: got 0 + -1, want"),
        ("order", "index", "order: got 'index', want 'position' or 'score'"),
        ("order", "score", "order: got 'score', want 'position' with num_first or num_last"),
        ("launch", TopkTuning(0, 0, 1, 64), "workspace: got none, want at least"),
        ("workspace", DeviceArray(68, (1,), np.int32, None), "workspace: got address 0x44, want"),
    ],
)
def test_a_wrong_argument_is_a_value_error(name, value, message):
    topk_rows(**arguments())
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        topk_rows(**arguments(**{name: value}))


def test_rows_further_apart_than_wide_and_rows_that_share_a_length():
    scores = np.random.default_rng(1).standard_normal((6, 50)).astype(np.float32)
    indices, lengths = output((6, 5), np.int32), up(np.array([40, 7], np.int32))
    flat = up(scores.reshape(-1))
    start = DeviceArray(flat.address + 4 * 3, (297,), np.float32, flat)
    topk_rows(start, 50, 40, lengths, 0, 0, "position", indices, stream=stream())
    chosen = written(indices)
    for i, values in enumerate(scores[:, 3:43]):
        best = np.argsort(-values[: 40 if i < 3 else 7], kind="stable")[:5]
        assert sorted(best) == list(chosen[i])
    assert intact(indices)
