"""Where two curves cross, for curves whose crossing is known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbadsd.analysis.crossover import Crossing, find_crossing


@given(st.floats(1.5, 900.0), st.floats(0.2, 3.0), st.floats(-3.0, 0.1))
def test_power_laws_cross_where_they_do(where, dense_slope, sparse_slope):
    x = [1.0, 2.0, 8.0, 64.0, 1024.0]
    dense = [(v / where) ** dense_slope for v in x]
    sparse = [(v / where) ** sparse_slope for v in x]
    found = find_crossing(x, dense, sparse)
    assert found.kind == "crosses"
    assert found.x == pytest.approx(where, rel=1e-6)


def test_a_curve_that_is_always_below_does_not_cross():
    assert find_crossing([1, 2], [3, 4], [1, 2]) == Crossing("always_sparse")
    assert find_crossing([1, 2], [1, 2], [3, 4]) == Crossing("always_dense")


def test_equal_times_count_for_sparse():
    assert find_crossing([1, 2], [1, 1], [1, 1]) == Crossing("always_sparse")
    found = find_crossing([1, 2, 4], [1, 2, 4], [2, 2, 2])
    assert found.kind == "crosses" and found.x == pytest.approx(2.0)


@pytest.mark.parametrize("dense", [[1, 3, 1, 3], [3, 3, 1, 1]])
def test_more_than_one_change_and_a_loss_at_the_end_have_no_single_crossing(dense):
    assert find_crossing([1, 2, 3, 4], dense, [2, 2, 2, 2]) == Crossing("crosses_often")


@pytest.mark.parametrize(
    ("x", "dense", "sparse"),
    [
        ([], [], []),
        ([2, 1], [1, 1], [1, 1]),
        ([1, 1], [1, 1], [1, 1]),
        ([0, 1], [1, 1], [1, 1]),
        ([1, 2], [1, 0], [1, 1]),
        ([1, 2], [1, float("nan")], [1, 1]),
        ([1, 2], [1, 1], [float("inf"), 1]),
        ([1, 2], [1, 1], [1]),
    ],
)
def test_what_has_no_logarithm_is_refused(x, dense, sparse):
    with pytest.raises(ValueError):
        find_crossing(x, dense, sparse)
