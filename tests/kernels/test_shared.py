"""The scalar maths that every target compiles, as plain functions of NumPy numbers."""

import numpy as np
import pytest

from numbadsd.kernels import shared
from numbadsd.kernels.cpu import prefill
from numbadsd.kernels.words import as_words, check_array


def rounded_fma(a, b, c):
    """Return a * b + c of float32 numbers, rounded once: a float64 product of them is exact."""
    return np.float32(np.float64(a) * np.float64(b) + np.float64(c))


exp_nonpositive = shared.make_exp_nonpositive(
    np.float32, rounded_fma, shared.two_to, shared.at_least, shared.zero_below
)
row_key = shared.make_row_key(shared.mix32)
uniform_at = shared.make_uniform_at(shared.mix32)


@pytest.fixture(autouse=True)
def wrapping_integers():
    with np.errstate(over="ignore"):  # uint32 arithmetic wraps, as in compiled code
        yield


def test_exp_is_within_two_units_in_the_last_place():
    x = np.linspace(-87.0, 0.0, 20_011, dtype=np.float32)
    ours = np.array([exp_nonpositive(number) for number in x], np.float64)
    exact = np.exp(x.astype(np.float64))
    assert np.max(np.abs(ours - exact) / exact) < 2 * 2.0**-23


@pytest.mark.parametrize(
    ("x", "result"), [(0.0, 1.0), (-0.0, 1.0), (-np.inf, 0.0), (-87.5, 0.0), (-1e30, 0.0)]
)
def test_exp_is_exact_where_it_must_be(x, result):
    assert exp_nonpositive(np.float32(x)) == np.float32(result)


def test_exp_keeps_nan():
    assert np.isnan(exp_nonpositive(np.float32(np.nan)))


def test_the_shift_of_a_softmax_without_a_score_is_zero():
    assert shared.softmax_shift(shared.NEG_INF) == 0.0
    assert shared.softmax_shift(np.float32(-3.5)) == np.float32(-3.5)


def test_keys_order_as_scores_do():
    tiny = np.float32(1e-45)
    numbers = [-np.inf, -3.4e38, -1.0, -tiny, 0.0, tiny, 1.0, np.nextafter(np.float32(1), 2)]
    keys = [int(shared.ordered_key(np.float32(n))) for n in [*numbers, 3.4e38, np.inf]]
    assert keys == sorted(set(keys))


def test_zeros_tie_and_nan_is_least():
    key = lambda x: int(shared.ordered_key(np.float32(x)))  # noqa: E731
    assert key(-0.0) == key(0.0)
    assert key(np.nan) == key(-np.nan) == key(-np.inf)


@pytest.mark.parametrize("q", [-2.0, -0.0, 0.0, 0.75])
def test_factors_give_the_bounds(q):
    q, low, high = np.float32(q), np.float32(-0.5), np.float32(1.25)
    value = lambda bound, a, b: (  # noqa: E731
        shared.first_factor(bound, q) * a + shared.second_factor(bound, q) * b
    )
    assert value(shared.MINMAX_BOUND, low, high) == max(q * low, q * high)
    assert value(shared.RADIUS_BOUND, low, high) == q * low + abs(q) * high
    assert shared.first_factor(shared.MEAN_BOUND, q) == q


def test_row_of_skips_empty_rows():
    indptr = np.array([0, 0, 3, 3, 4, 4])
    assert [shared.row_of(indptr, i) for i in range(4)] == [1, 1, 1, 3]


def test_the_mixer_never_maps_two_words_to_one():
    words = np.arange(1 << 16, dtype=np.uint32)
    mixed = np.array([shared.mix32(w) for w in words])
    assert len(np.unique(mixed)) == len(words)
    bits = np.unpackbits(mixed.view(np.uint8)).mean()
    assert abs(bits - 0.5) < 0.01


def test_compiled_numbers_are_those_of_the_plain_functions():
    out = np.empty((5, 2, 16), np.float32)
    prefill.fill_uniform(out, 7, np.full(5, 3), np.arange(1000, 1005), shared.VALUE)
    for token in range(5):
        key = row_key(7, 3, shared.VALUE, 1000 + token)
        expected = [uniform_at(key, channel) for channel in range(32)]
        np.testing.assert_array_equal(out[token].ravel(), expected)


def test_uniform_numbers_are_uniform_and_streams_differ():
    keys, values = np.empty((2, 4096, 2, 16), np.float32)
    requests, tokens = np.zeros(4096, np.int64), np.arange(4096)
    prefill.fill_uniform(keys, 7, requests, tokens, shared.KEY)
    prefill.fill_uniform(values, 7, requests, tokens, shared.VALUE)
    assert -1.0 <= keys.min() < -0.999 and 0.999 < keys.max() < 1.0
    histogram = np.histogram(keys, bins=16, range=(-1, 1))[0] / keys.size
    assert np.abs(histogram - 1 / 16).max() < 0.003
    assert abs(np.corrcoef(keys.ravel(), values.ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(keys[:-1].ravel(), keys[1:].ravel())[0, 1]) < 0.01


def test_arrays_are_refused_by_name_shape_type_and_layout():
    array = np.zeros((2, 3), np.float32)
    check_array("x", array, (2, None), np.float32)
    with pytest.raises(ValueError, match=r"x: got shape \(2, 3\), want \(any, 4\)"):
        check_array("x", array, (None, 4))
    with pytest.raises(ValueError, match="x: got shape"):
        check_array("x", array, (2, 3, 1))
    with pytest.raises(ValueError, match="x: got dtype float32, want int32"):
        check_array("x", array, (2, 3), np.int32)
    with pytest.raises(ValueError, match="x: got a strided array"):
        check_array("x", array.T, (3, 2))
    with pytest.raises(ValueError, match="dtype: got float64"):
        as_words(np.zeros(2))
