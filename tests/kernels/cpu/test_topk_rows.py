"""topk_rows at its own limits: long rows, wrong guesses, full scratches, pieces, strides, words."""

import ml_dtypes
import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numbadsd.kernels import shared
from numbadsd.kernels.cpu import topk_row
from numbadsd.kernels.cpu.keys import KEY_LANES, ordered_keys, scores_at_least, store_keys
from numbadsd.kernels.cpu.memory import load64
from numbadsd.kernels.cpu.simd import splat64
from numbadsd.kernels.cpu.topk import MIN_PIECE, topk_rows
from tests import oracle
from tests.kernels.cpu.test_topk import VALUES

DIRECT, STEP, LINE = topk_row.DIRECT, topk_row.SAMPLE_STEP, topk_row.SAMPLE_LINE
CAPACITY = topk_row.MIN_CAPACITY
POISON = -77


def best(scores, k, first=0, last=0, order="position"):
    """Return what `oracle.select` returns, by NumPy's stable sort: quick enough for long rows."""
    value = np.where(np.isnan(scores), np.float32(-np.inf), scores)
    if len(value) <= k:
        first = last = 0
    end = len(value) - last
    middle = np.argsort(-value[first:end], kind="stable")[: k - first - last] + first
    chosen = [*range(first), *middle.tolist(), *range(end, len(value))]
    chosen = chosen if order == "score" else sorted(chosen)
    return np.array([*chosen, *[-1] * (k - len(chosen))], np.int32)


def run(rows, k, lengths=None, first=0, last=0, order="position"):
    """Return the selection [R, k] of rows [R, n], all its slots written."""
    rows = np.ascontiguousarray(rows)
    num_rows, width = rows.shape
    lengths = np.array([width] if lengths is None else lengths, np.int32)
    indices = np.full((num_rows, k), POISON, np.int32)
    topk_rows(rows.reshape(-1), width, width, lengths, first, last, order, indices)
    assert not (indices == POISON).any()
    return indices


def check(rows, k, lengths=None, first=0, last=0, order="position"):
    rows = np.ascontiguousarray(rows)
    got = run(rows, k, lengths, first, last, order)
    each = [rows.shape[1]] if lengths is None else np.clip(lengths, 0, rows.shape[1])
    for row, length in enumerate(np.repeat(each, len(rows) // len(each))):
        want = best(rows[row, :length].astype(np.float32), k, first, last, order)
        np.testing.assert_array_equal(got[row], want)


def one_row(values, length, seed=0):
    return np.asarray(values(np.random.default_rng(seed), length), np.float32)[None]


LONG_VALUES = VALUES | {
    "differences of 1e-6": lambda rng, n: 1 + 1e-6 * rng.permutation(n),
    "low 10 mantissa bits": lambda rng, n: (
        (np.float32(1.5).view(np.uint32) + rng.integers(0, 1024, n)).astype(np.uint32)
    ).view(np.float32),
    "below the float16 range": lambda rng, n: -65504 - 1e4 * rng.random(n),
    "one finite": lambda rng, n: np.where(np.arange(n) == n - 1, 1.0, -np.inf),
}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_the_quick_oracle_is_the_oracle(values):
    scores = one_row(values, 200)[0]
    for k, first, last in ((20, 0, 0), (20, 3, 4), (7, 3, 4), (200, 2, 2), (210, 0, 0)):
        want = oracle.select(scores, k, first, last)
        got = best(scores, k, first, last)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("values", LONG_VALUES.values(), ids=LONG_VALUES)
def test_rows_of_mixed_lengths_equal_a_sort(values):
    lengths = [1, 10, 100, 2048, 2049, 2100, 2500, 3000, 8000, 16384, 20000]
    rows = np.concatenate([one_row(values, 20000, seed) for seed in range(len(lengths))])
    for k in (1, 16, 512, 2048):
        check(rows, k, lengths)
    check(rows, 64, lengths, first=1, last=4)
    check(rows, 512, lengths, order="score")


@pytest.mark.parametrize("values", LONG_VALUES.values(), ids=LONG_VALUES)
def test_a_row_cut_in_pieces_equals_a_sort(values, num_threads):
    num_threads(2)
    rows = one_row(values, 3 * MIN_PIECE)
    check(rows, 100)
    check(rows, 100, [2 * MIN_PIECE + 1], first=3, last=2)
    check(rows, 100, order="score")
    check(rows, 2048, [2050])


def around(*thresholds):
    return sorted({n + d for n in thresholds for d in range(-3, 4)})


@pytest.mark.parametrize(
    ("k", "thresholds"),
    [
        (8, (KEY_LANES, 2 * KEY_LANES, DIRECT, CAPACITY)),
        (DIRECT // 2, (DIRECT, 2 * DIRECT, CAPACITY, CAPACITY - 2 * KEY_LANES)),
        (2048, (2048, 8192, 8192 - KEY_LANES)),
        (64, (MIN_PIECE, 2 * MIN_PIECE, 16 * CAPACITY, 16 * CAPACITY + STEP)),
    ],
)
@pytest.mark.parametrize("values", ["normal", "ascending", "ten distinct", "all nan"])
def test_lengths_around_a_threshold(k, thresholds, values):
    lengths = around(*thresholds)
    rows = np.concatenate([one_row(VALUES[values], max(lengths), seed) for seed in range(3)])
    for length in lengths:
        check(rows[:, :length], k)
        check(rows[:1, :length], k, first=2, last=1)


@pytest.mark.parametrize("k", [1, 4, 64, 513, 2048])
def test_lengths_around_k_and_out_of_range(k):
    width = k + 40
    lengths = [-(2**31), -1, 0, 1, k - 1, k, k + 1, width, width + 1, 2**31 - 1]
    rng = np.random.default_rng(k)
    rows = rng.standard_normal((len(lengths), width)).astype(np.float32)
    check(rows, k, lengths)
    check(rows, k, lengths, order="score")
    check(rows, k, lengths, first=k // 2, last=k - k // 2)


@pytest.mark.parametrize("k", [1, 128, 2048])
def test_long_rows(k):
    rng = np.random.default_rng(k)
    check(rng.standard_normal((2, 163_840)).astype(np.float32), k)
    lengths = [2000, 6000, 30_000, 80_000]
    check(rng.standard_normal((8, 80_000)).astype(np.float32), k, lengths, first=1 if k > 1 else 0)


def test_the_longest_row(num_threads):
    scores = np.random.default_rng(0).standard_normal((1, 1 << 20)).astype(np.float32)
    for threads in (1, 2):
        num_threads(threads)
        check(scores, 2048)
        check(-np.abs(scores), 16, [(1 << 20) - 5], first=1, last=1)


@pytest.mark.parametrize("rows", [1, 4, 32, 256, 512])
def test_many_rows(rows):
    rng = np.random.default_rng(rows)
    lengths = rng.integers(0, 300, rows // 4 if rows > 4 else rows).astype(np.int32)
    check(rng.integers(0, 40, (rows, 300)).astype(np.float32), 12, lengths)


LENGTH = 40_000


def in_sample(length):
    """Return whether each position is one that a guess is made from."""
    return np.arange(length) % STEP < LINE


def low_sample(rng):
    """The guess is far too low: every other element is a candidate."""
    return np.where(in_sample(LENGTH), -1 - rng.random(LENGTH), rng.random(LENGTH))


def high_sample(rng):
    """The guess is too high: fewer than k reach it."""
    return np.where(in_sample(LENGTH), 10 + np.arange(LENGTH) % 7, -rng.random(LENGTH))


def high_lines(rng):
    """The guess is too high, and then each element is above all before."""
    high = np.arange(LENGTH) < 32 * STEP
    return np.where(in_sample(LENGTH) & high, 1e6, np.arange(LENGTH))


def infinite_sample(rng):
    return np.where(in_sample(LENGTH), -np.inf, np.where(rng.random(LENGTH) < 0.5, np.nan, 1.0))


def positive_infinities(rng):
    """The scratch fills with +inf: no key is above its threshold."""
    return np.where(np.arange(LENGTH) % STEP < LINE, 0.0, np.inf)


def late_infinities(rng):
    """Many -inf first, then NaN, then numbers: candidates are few until the end."""
    return np.concatenate(
        [np.full(LENGTH // 2, -np.inf), np.full(LENGTH // 4, np.nan), rng.random(LENGTH // 4)]
    )


def saw(rng):
    """Rises that each fill the scratch, and ties from one to the next."""
    return np.arange(LENGTH) % 5000


def around_zero(rng):
    """Signed zeros about the threshold: the key below +0.0 is no score's."""
    values = rng.choice([-0.0, 0.0, -1e-45, 1e-45, -1.0], LENGTH)
    return np.where(in_sample(LENGTH), -1.0, values)


ADVERSARIES = [
    low_sample, high_sample, high_lines, infinite_sample, positive_infinities, late_infinities,
    saw, around_zero,
]  # fmt: skip


@pytest.mark.parametrize("values", ADVERSARIES)
def test_a_wrong_guess_is_exact(values):
    rows = np.asarray(values(np.random.default_rng(5)), np.float32)[None]
    for k in (1, 15, 16, 17, 600, 2048):
        check(rows, k)
        check(-rows, k)
    check(rows, 300, first=17, last=100)  # the sample starts elsewhere
    check(rows, 300, order="score")


@pytest.mark.parametrize("values", ADVERSARIES)
def test_a_wrong_guess_in_each_piece_is_exact(values, num_threads):
    num_threads(2)
    rows = np.asarray(values(np.random.default_rng(5)), np.float32)[None]
    assert rows.size > MIN_PIECE
    for k in (1, 600, 2048):
        check(np.tile(rows, 2), k)
        check(np.tile(rows, 2), k, order="score")


@numba.njit
def _guess(rows, k, keys):
    return topk_row._guess_threshold(rows, 0, rows.shape[1], k, keys)


def test_the_adversaries_mislead_the_guess():
    def num_candidates(values, k):
        rows = np.asarray(values, np.float32)[None]
        threshold = _guess(rows, k, np.zeros(topk_row.scratch_size(k), np.uint32))
        return sum(int(shared.ordered_key(score)) >= threshold for score in rows[0])

    rng = np.random.default_rng(5)
    assert 16 <= num_candidates(rng.random(LENGTH), 16) < 16 * 100
    assert num_candidates(low_sample(rng), 16) > 0.9 * LENGTH
    assert num_candidates(high_sample(rng), 600) < 600
    assert num_candidates(high_lines(rng), 600) < 600


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["f16", "bf16"])
@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered in cast")
def test_half_precision_words(dtype, values):
    for length, k in ((5, 2), (63, 7), (64, 7), (300, 40), (3000, 64), (LENGTH, 130)):
        rows = np.concatenate([one_row(values, length, seed) for seed in range(2)]).astype(dtype)
        check(rows, k)
        check(rows, k, order="score")
        check(rows, k, first=1, last=1)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["f16", "bf16"])
def test_every_half_precision_pattern(dtype):
    patterns = np.random.default_rng(0).permutation(1 << 16).astype(np.uint16).view(dtype)
    for k in (100, 2048):
        check(patterns[None], k)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("fill", [-np.inf, np.inf, np.nan])
@pytest.mark.parametrize("stride", [3000, 3001, 4096])
def test_padding_between_rows_is_not_looked_at(dtype, fill, stride):
    rng, lengths = np.random.default_rng(1), [3000, 2999, 1, 0, -1, 70]
    flat = np.full(5 * stride + 3000, fill, dtype)
    rows = rng.standard_normal((6, 3000)).astype(dtype)
    for row, length in enumerate(lengths):
        flat[row * stride :][: max(length, 0)] = rows[row, : max(length, 0)]
    indices = np.full((6, 50), POISON, np.int32)
    topk_rows(flat, stride, 3000, np.array(lengths, np.int32), 0, 0, "position", indices)
    np.testing.assert_array_equal(indices, run(rows, 50, lengths))


@pytest.mark.parametrize("stride", [0, 1, 17])
def test_rows_may_overlap(stride):
    scores = np.random.default_rng(2).standard_normal(5000 + 9 * stride).astype(np.float32)
    indices = np.full((10, 64), POISON, np.int32)
    topk_rows(scores, stride, 5000, np.array([5000], np.int32), 1, 1, "position", indices)
    for row in range(10):
        want = best(scores[row * stride :][:5000], 64, 1, 1)
        np.testing.assert_array_equal(indices[row], want)


def test_reading_stops_at_the_end_of_the_scores():
    """A row that ends where a page of memory does, for all lengths that end within a block."""
    memory = np.full((1 << 16) + 4096, np.nan, np.float32)
    memory[: 1 << 16] = np.random.default_rng(3).standard_normal(1 << 16)
    for length in [*range(1, 140), *range(2000, 2070)]:
        check(memory[None, (1 << 16) - length : 1 << 16], 20)


@pytest.mark.parametrize(("rows", "width"), [(1, 70_000), (3, 40_000), (5, 300), (64, 2500)])
def test_the_number_of_threads_does_not_matter(rows, width, num_threads):
    rng = np.random.default_rng(4)
    scores = rng.integers(0, 50, (rows, width)).astype(np.float32)
    results = []
    for threads in (1, 2):
        num_threads(threads)
        for order in ("position", "score"):
            results.append(run(scores, 200, order=order).tobytes())
    assert results[:2] == results[2:]


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_nothing_to_do(shape):
    indices = np.empty(shape, np.int32)
    lengths = np.zeros(shape[0], np.int32)
    topk_rows(np.empty(64, np.float32), 4, 4, lengths, 0, 0, "position", indices)


def test_a_width_of_zero_selects_nothing():
    assert (run(np.empty((2, 0), np.float32), 3) == -1).all()


@numba.njit
def _vector_keys(scores, keys, low):
    block = load64(scores, 0, 0)
    store_keys(keys, 0, ordered_keys(block))
    return scores_at_least(block, splat64(low))


@pytest.mark.filterwarnings("ignore:invalid value encountered in scalar add")
@settings(max_examples=100)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=64, max_size=64), st.floats(width=32))
def test_vector_keys_are_the_shared_ones(patterns, low):
    scores = np.array(patterns, np.uint32).view(np.float32)
    keys = np.empty(64, np.uint32)
    bits = _vector_keys(scores[None], keys, np.float32(low))
    assert keys.tolist() == [int(shared.ordered_key(score)) for score in scores]
    value = np.where(np.isnan(scores), -np.inf, scores)
    assert [bool(int(bits) >> i & 1) for i in range(64)] == (value >= np.float32(low)).tolist()


@st.composite
def long_rows(draw):
    """Draw (row, k): blocks of a few kinds one after the other."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kinds = st.sampled_from(sorted(LONG_VALUES))
    blocks = draw(st.lists(st.tuples(kinds, st.integers(1, 3000)), min_size=1, max_size=6))
    parts = [np.asarray(LONG_VALUES[kind](rng, n), np.float32) for kind, n in blocks]
    return np.concatenate(parts), draw(st.integers(1, 2048))


@settings(max_examples=200)
@given(long_rows())
def test_any_long_row_equals_a_sort(case):
    scores, k = case
    check(scores[None], k)
