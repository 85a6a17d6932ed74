"""attend_pages on a device against float64 softmax attention, at every seam."""

import re

import numpy as np
import pytest

from numbadsd.kernels import shared
from numbadsd.kernels.cuda.attend import MAX_TILE_HEADS, attend_pages
from numbadsd.kernels.cuda.attend_spec import FMA, MMA, default_way
from tests.device import assert_same_bits, output, stream, up
from tests.kernels.cpu.test_attend import minus_infinity_at
from tests.kernels.cuda.cases import AttendCase, attend_case, check_repeats, check_same_alone

DTYPES = ("float32", "float16", "bfloat16")
K = 3
WAYS = [("float32", FMA), ("float16", FMA), ("float16", MMA), ("bfloat16", MMA)]
EVERY_WAY = pytest.mark.parametrize("dtype, way", WAYS, ids=map("-".join, WAYS))


@pytest.mark.parametrize(
    "page_size, dtype, head_dim",
    [(1, "float32", 16), (3, "float16", 32), (4, "bfloat16", 16), (8, "float32", 32),
     (16, "float16", 16), (16, "bfloat16", 32), (32, "float16", 32)],
)  # fmt: skip
def test_dense_attention_at_the_seams_of_pages(page_size, dtype, head_dim):
    t = page_size
    contexts = [1, t, 0, t + 1, 2 * t - 1, 33]
    AttendCase(contexts, page_size=t, dtype=dtype, head_dim=head_dim, heads=2).check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [16, 32, 48, 64, 80, 96, 128, 256])
def test_every_head_dim(head_dim, dtype):
    heads = 1 + (head_dim // 16 + len(dtype)) % 4
    attend_case([21], FMA, head_dim=head_dim, dtype=dtype, heads=heads, kv_heads=1).check()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("head_dim", range(16, 129, 16))
def test_every_head_dim_of_tensor_cores(head_dim, dtype):
    heads = 1 + (head_dim // 16 + len(dtype)) % 9
    attend_case([21, 33], MMA, head_dim=head_dim, dtype=dtype, heads=heads, kv_heads=1).check()


EVERY_GROUP = pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 8, 9, 12, 16])


@EVERY_GROUP
@EVERY_WAY
def test_every_group_size(group, dtype, way):
    kv_heads = 2 if group < 8 else 1
    case = attend_case(
        [70], way, heads=group * kv_heads, kv_heads=kv_heads, page_size=8, dtype=dtype
    )
    case.check()
    for units in {kv_heads, group * kv_heads if group in (2, 5) else 1}:
        case.check(case.random_pages(units, K, seed=group))


@pytest.mark.parametrize("units", [1, 2, 4])
@pytest.mark.parametrize("page_size, dtype", [(1, "float16"), (8, "bfloat16"), (16, "float32")])
def test_every_unit_attends_to_its_own_pages(page_size, dtype, units):
    t = page_size
    contexts = [0, 1, (K - 2) * t + 1, K * t, K * t + 1, 9 * t]  # P = 0, 1, K - 1, K, K + 1, 9
    heads, kv_heads = (2, 1) if units < 4 else (4, 2)
    case = AttendCase(contexts, page_size=t, dtype=dtype, heads=heads, kv_heads=kv_heads)
    case.check(case.random_pages(min(units, heads), K, seed=t))


@pytest.mark.parametrize("group", [1, 3, 5, 12])
@EVERY_WAY
def test_selecting_every_page_gives_the_bits_of_dense(group, dtype, way):
    kv_heads = 2 if group < 4 else 1
    case = attend_case(
        [70], way, heads=group * kv_heads, kv_heads=kv_heads, page_size=8, dtype=dtype
    )
    dense = case.run()
    for units, k in ((kv_heads, 11), (group * kv_heads, 9)):  # more than P, and P
        assert_same_bits(case.run(selected=case.first_pages(units, k), k=k), dense)


def test_no_pages_give_zeros_and_minus_infinity():
    case = AttendCase([0, 5, 0])
    for selected in (None, case.first_pages(2, K)):
        outputs, lse = case.run(selected=selected)
        assert np.all(outputs[[0, 2]] == 0) and np.all(lse[[0, 2]] == -np.inf)
        outputs, lse = case.run([0, 2], selected=selected)
        assert np.all(outputs == 0) and np.all(lse == -np.inf)
    assert case.run([])[0].shape == (0, 4, 16)


def test_no_selected_pages_give_zeros_and_minus_infinity():
    case = AttendCase([20, 5])
    outputs, lse = case.run(selected=[[[], []], [[], []]], k=0)
    assert np.all(outputs == 0) and np.all(lse == -np.inf)


def test_one_token_gives_its_value():
    case = AttendCase([1])
    outputs, _ = case.run()
    np.testing.assert_array_equal(outputs[0], np.repeat(case.values[0][0], 2, axis=0))


def test_equal_scores_give_the_mean_of_the_values():
    case = AttendCase([16, 150])
    case.queries[:] = 0
    outputs, lse = case.run()
    for b, tokens in enumerate(case.tokens):
        mean = np.repeat(case.values[b].mean(axis=0, dtype=np.float64), 2, axis=0)
        np.testing.assert_allclose(outputs[b], mean, rtol=0, atol=1e-6)
        np.testing.assert_allclose(lse[b], np.log(tokens), rtol=1e-6)


@pytest.mark.parametrize("scale", [0, 1e-38, 1e-4, 30.0, 1000.0, -1000.0])
@EVERY_WAY
def test_large_and_small_logits_neither_overflow_nor_vanish(scale, dtype, way):
    case = attend_case([5, 90], way, heads=2, dtype=dtype)
    case.queries *= np.float32(scale)
    case.check()


@pytest.mark.parametrize(
    "positions",
    [[0], [99], range(16), range(64), range(64, 100), range(1, 100)],
    ids=["first token", "last token", "a step", "first split", "last split", "all but one"],
)
@EVERY_WAY
def test_tokens_of_logit_minus_infinity_weigh_nothing(positions, dtype, way):
    case = attend_case([100], way, heads=2, dtype=dtype)
    minus_infinity_at(case, 0, positions)
    case.check()


@pytest.mark.parametrize("tokens", [1, 16, 100])
@EVERY_WAY
def test_logits_that_are_all_minus_infinity_give_zeros(tokens, dtype, way):
    case = attend_case([tokens, 20], way, heads=2, dtype=dtype)
    minus_infinity_at(case, 0, range(tokens))
    outputs, lse = case.run()
    assert np.all(outputs[0] == 0) and np.all(lse[0] == -np.inf)
    assert np.all(np.isfinite(outputs[1]))


@pytest.mark.parametrize("position", [0, 17, 69])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@EVERY_WAY
def test_a_key_that_is_no_number_reaches_its_own_kv_head_only(value, position, dtype, way):
    case = attend_case([70, 30], way, heads=2, dtype=dtype)
    case.queries[:] = np.abs(case.queries)  # an infinite key is a logit of +inf: inf - inf is NaN
    clean = case.run()
    page = case.pages[0][position // 16]
    case.pool_keys[page, 1, position % 16, 3] = value
    outputs, lse = case.run()
    assert np.all(np.isnan(outputs[0, 1])) and np.isnan(lse[0, 1])
    assert_same_bits(outputs[0, 0], clean[0][0, 0])
    assert_same_bits([outputs[1], lse[1]], [clean[0][1], clean[1][1]])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("heads, kv_heads", [(2, 1), (4, 1), (6, 1)])
@EVERY_WAY
def test_a_query_that_is_no_number_reaches_its_own_head_only(heads, kv_heads, value, dtype, way):
    case = attend_case([40], way, heads=heads, kv_heads=kv_heads, dtype=dtype)
    clean = case.run()
    case.queries[0, 1, 0] = value
    with np.errstate(invalid="ignore"):
        outputs, lse = case.run()
    others = [head for head in range(heads) if head != 1]
    assert np.all(np.isnan(outputs[0, 1])) and np.isnan(lse[0, 1])
    assert_same_bits(
        [outputs[0, others], lse[0, others]], [clean[0][0, others], clean[1][0, others]]
    )


@EVERY_WAY
def test_a_value_that_is_no_number_stays_in_its_column(dtype, way):
    case = attend_case([40], way, heads=2, dtype=dtype)
    page = case.pages[0][1]
    case.pool_values[page, 0, 2, :3] = np.nan, np.inf, -np.inf
    outputs, lse = case.run()
    assert np.isnan(outputs[0, 0, 0]) and outputs[0, 0, 1:3].tolist() == [np.inf, -np.inf]
    assert np.all(np.isfinite(outputs[0, 0, 3:])) and np.all(np.isfinite(outputs[0, 1]))
    assert np.all(np.isfinite(lse))


@pytest.mark.parametrize("heads, kv_heads, units", [(2, 1, None), (4, 2, 2), (5, 1, None)])
@EVERY_WAY
def test_a_request_has_the_same_bits_alone_and_in_any_batch(heads, kv_heads, units, dtype, way):
    shape = dict(heads=heads, kv_heads=kv_heads, page_size=8, dtype=dtype)
    case = attend_case([80, 1, 0], way, **shape)
    selected = None if units is None else case.random_pages(units, 12)
    check_same_alone(
        case, ([0], [2, 1]),
        lambda case, requests: case.run(requests, selected),
    )  # fmt: skip


def test_room_for_longer_requests_does_not_change_the_bits():
    case = AttendCase([140, 1], heads=1, kv_heads=1, page_size=8)
    assert_same_bits(case.run(spare_pages=90), case.run())


def test_physical_pages_do_not_change_the_bits():
    first, second = (AttendCase([100], heads=1, kv_heads=1, order=order) for order in (1, 2))
    assert not np.array_equal(first.pages[0], second.pages[0])
    assert_same_bits(first.run(), second.run())


def test_two_runs_give_the_same_bits():
    check_repeats(AttendCase([150, 3], heads=3, kv_heads=1).runs(), 2)


SPLIT_SEAMS = [63, 64, 65, 128, 1024, 1025, 4096, 4097]


@pytest.mark.parametrize("tokens", SPLIT_SEAMS)
def test_rows_at_the_seams_of_splits(tokens):
    AttendCase([tokens], heads=1, kv_heads=1).check()


@pytest.mark.parametrize("page_size", [3, 100, 300])
def test_splits_of_pages_that_do_not_divide_them(page_size):
    AttendCase([301, 190], heads=1, kv_heads=1, page_size=page_size).check()


def test_a_selection_is_cut_by_its_own_length():
    """A long request's short selection is a short row."""
    case = AttendCase([1100], heads=1, kv_heads=1)
    for k in (64, 65):
        case.check(case.random_pages(1, k))


@pytest.mark.parametrize("page_size", [1, 3, 16, 100, 256, 300, 5000])
def test_no_row_has_more_splits_than_are_allowed_for(page_size):
    most = 1
    for pages in range(10_000 // page_size + 3):
        if pages:
            most = max(most, -(-pages // shared.split_pages(pages, page_size)))
        assert shared.most_splits(pages, page_size) == most


def arguments(**changes):
    """Return the arguments of a legal launch, with changes."""
    good = dict(
        queries=up(np.zeros((1, 4, 16), np.float32)),
        keys=up(np.zeros((3, 2, 16, 16), np.float32)),
        values=up(np.zeros((3, 2, 16, 16), np.float32)),
        page_indptr=up(np.array([0, 2], np.int32)),
        page_ids=up(np.array([0, 1], np.int32)),
        last_page_tokens=up(np.array([3], np.int32)),
        num_kv_heads=2,
        sm_scale=0.25,
        outputs=output((1, 4, 16), np.float32),
        lse=output((1, 4), np.float32),
        stream=stream(),
        workspace=(output(64, np.float32), output(8, np.float32)),
        max_pages=2,
    )
    changes = {n: up(a) if isinstance(a, np.ndarray) else a for n, a in changes.items()}
    return good | changes


def test_the_arguments_that_wrong_ones_are_made_of_are_right():
    attend_pages(**arguments())


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("queries", np.zeros((1, 4, 16)), "queries: got dtype float64, want float32"),
        (
            "queries",
            np.zeros((4, 16), np.float32),
            "queries: got shape (4, 16), want (any, any, any)",
        ),
        (
            "queries",
            np.zeros((1, 4, 32), np.float32),
            "keys: got shape (3, 2, 16, 16), want (any, 2, any, 32)",
        ),
        (
            "keys",
            np.zeros((3, 2, 16), np.float32),
            "keys: got shape (3, 2, 16), want (any, 2, any, 16)",
        ),
        (
            "keys",
            np.zeros((3, 4, 16, 16), np.float32),
            "keys: got shape (3, 4, 16, 16), want (any, 2,",
        ),
        ("keys", np.zeros((3, 2, 16, 16)), "keys: got dtype float64, want float32, float16 or"),
        (
            "values",
            np.zeros((2, 2, 16, 16), np.float32),
            "values: got shape (2, 2, 16, 16), want (3,",
        ),
        ("values", np.zeros((3, 2, 16, 16), np.float16), "values: got dtype float16, want float32"),
        ("page_indptr", np.array([0, 1, 2], np.int32), "page_indptr: got shape (3,), want (2,)"),
        ("page_indptr", np.array([0, 2]), "page_indptr: got dtype int64, want int32"),
        ("page_ids", np.array([0, 1]), "page_ids: got dtype int64, want int32"),
        (
            "last_page_tokens",
            np.array([1, 1], np.int32),
            "last_page_tokens: got shape (2,), want (1,)",
        ),
        (
            "outputs",
            np.zeros((1, 4, 8), np.float32),
            "outputs: got shape (1, 4, 8), want (1, 4, 16)",
        ),
        ("outputs", np.zeros((1, 4, 16)), "outputs: got dtype float64, want float32"),
        ("lse", np.zeros((1, 3), np.float32), "lse: got shape (1, 3), want (1, 4)"),
        (
            "selected",
            np.zeros((2, 1, 2), np.int32),
            "selected: got shape (2, 1, 2), want (1, any, any)",
        ),
        ("selected", np.zeros((1, 1, 2)), "selected: got dtype float64, want int32"),
        (
            "selected",
            np.zeros((1, 3, 2), np.int32),
            "queries: got 2 query heads on a kv head, 3 lists",
        ),
    ],
)
def test_a_wrong_argument_is_a_value_error(name, value, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        attend_pages(**arguments(**{name: value}))


def test_a_host_array_is_a_value_error():
    with pytest.raises(ValueError, match="^queries: got ndarray, want a DeviceArray"):
        attend_pages(**(arguments() | {"queries": np.zeros((1, 4, 16), np.float32)}))


@pytest.mark.parametrize("sizes", [(63, 8), (64, 7)])
def test_a_small_workspace_is_a_value_error(sizes):
    workspace = tuple(output(size, np.float32) for size in sizes)
    with pytest.raises(ValueError, match=r"^workspace: got (63|7) numbers .*, want (64|8)"):
        attend_pages(**arguments(workspace=workspace))


def test_tensor_cores_are_for_groups_of_halves():
    ways = {
        (dtype, group): default_way(128, dtype, group) for dtype in DTYPES for group in (1, 2, 16)
    }
    assert {at for at, way in ways.items() if way == MMA} == {
        (dtype, group) for dtype in ("float16", "bfloat16") for group in (2, 16)
    }
    assert default_way(144, "float16", 8) == FMA


def test_tensor_cores_for_float32_are_a_value_error():
    with pytest.raises(ValueError, match="^launch: got 'mma' for float32 and .* 16, want 'fma'"):
        attend_pages(**arguments(launch=MMA))


def test_too_many_query_heads_on_a_kv_head_are_a_value_error():
    heads = 2 * (MAX_TILE_HEADS + 1)
    wrong = arguments(
        queries=np.zeros((1, heads, 16), np.float32),
        outputs=np.zeros((1, heads, 16), np.float32),
        lse=np.zeros((1, heads), np.float32),
    )
    with pytest.raises(ValueError, match="got 17 query heads on a kv head.*want at most 16"):
        attend_pages(**wrong)
