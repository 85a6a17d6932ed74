"""How a warp reads and multiplies rows: quads, columns, and rows that they reach beyond."""

import ml_dtypes
import numpy as np
import pytest

from numbadsd.kernels.cuda import sim
from numbadsd.kernels.cuda.ops import cuda, float32
from numbadsd.kernels.cuda.tiles import (
    CHUNK_WORDS,
    QUAD_SUMS,
    UNPACK,
    Row,
    heads_of_warp,
    make_dot_vector,
    make_load_vector,
    quad_sum,
    rows_sum,
    unroll,
)

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
HEAD_DIMS = [16, 32, 48, 64, 80, 96, 112, 128, 256]
EVERY_ROW = pytest.mark.parametrize("row", [Row(d, t) for t in DTYPES for d in HEAD_DIMS], ids=str)


def run_warp(kernel, *arguments):
    """Run a kernel with one warp."""
    sim.run_grid(kernel, 1, 32, arguments)


def stored(numbers, dtype):
    """Return numbers as aligned words of a storage dtype."""
    numbers = np.asarray(numbers, np.float32).astype(DTYPES[dtype])
    words = sim.poisoned(numbers.nbytes // 4, np.uint32)
    words[:] = numbers.reshape(-1).view(np.uint32)
    return words


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_quad_sums_its_numbers_in_one_order_whatever_their_count(count):
    numbers = np.random.default_rng(0).standard_normal((32, count)).astype(np.float32)

    def kernel(out):
        lane = cuda.threadIdx.x
        sums = cuda.local.array(count, float32)
        for n in range(count):
            sums[n] = numbers[lane, n]
        out[lane] = QUAD_SUMS[count](sums, lane % 4)

    out = np.zeros(32, np.float32)
    run_warp(kernel, out)
    quads = numbers.reshape(8, 4, count)
    sums = (quads[:, 0] + quads[:, 1]) + (quads[:, 2] + quads[:, 3])
    expected = [[sums[quad, t % count] for t in range(4)] for quad in range(8)]
    np.testing.assert_array_equal(out.reshape(8, 4), expected)


def test_rows_are_summed_for_each_lane_of_a_quad():
    numbers = np.random.default_rng(1).integers(-99, 99, 32).astype(np.float32)

    def kernel(out):
        out[cuda.threadIdx.x] = rows_sum(numbers[cuda.threadIdx.x])

    out = np.zeros(32, np.float32)
    run_warp(kernel, out)
    np.testing.assert_array_equal(
        out.reshape(8, 4), np.tile(numbers.reshape(8, 4).sum(axis=0), (8, 1))
    )


@EVERY_ROW
def test_lanes_cover_a_row(row):
    item = np.dtype(DTYPES[row.kv_dtype]).itemsize
    assert row.vector * item == 16 and row.words * 4 == row.head_dim * item
    assert (row.chunks - 1) * CHUNK_WORDS < row.words <= row.chunks * CHUNK_WORDS
    assert row.lanes in (1, 2, 4, 8, 16, 32)
    assert row.words <= row.column_words < 2 * row.words + 4
    assert row.vectors_per_lane == 1 or row.lanes == 32


@EVERY_ROW
@pytest.mark.parametrize("is_shared", [True, False])
def test_beyond_a_row_vectors_are_zeros(row, is_shared):
    """In the last row of the memory, so that a read beyond it is a fault."""
    words = sim.poisoned(2 * row.words, np.uint32)
    words[:] = 1 + np.arange(2 * row.words)
    for reach in {row.chunks * CHUNK_WORDS, row.column_words}:
        load_vector = make_load_vector(row, reach, is_shared)
        for offset in range(0, reach, 4):
            expected = words[row.words + offset : row.words + offset + 4].tolist() or [0, 0, 0, 0]
            assert list(load_vector(words, row.words, offset)) == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_elements_come_in_their_order(dtype):
    numbers = np.array(
        [1.5, -2, 0.25, 3, -0.0, 7, np.inf, -9][: 16 // np.dtype(DTYPES[dtype]).itemsize]
    )
    assert list(UNPACK[dtype](tuple(stored(numbers, dtype)))) == numbers.tolist()


@EVERY_ROW
def test_quads_multiply_each_element_once(row):
    """As the scores of tokens and of pages are made: chunks, four lanes a row."""
    load_vector = make_load_vector(row, row.chunks * CHUNK_WORDS, True)
    dot_vector, unpack = make_dot_vector(row), UNPACK[row.kv_dtype]
    rng = np.random.default_rng(row.head_dim)
    numbers = rng.integers(-8, 8, (8, row.head_dim)).astype(np.float32)  # every sum is exact
    factors = sim.poisoned(row.head_dim, np.float32)
    factors[:] = rng.integers(-8, 8, row.head_dim)

    def kernel(words, factors, out):
        lane = cuda.threadIdx.x
        group, t = lane // 4, lane % 4
        total = float32(0)
        for chunk in range(row.chunks):
            x = load_vector(words, group * row.words, chunk * CHUNK_WORDS + 4 * t)
            d = (4 * chunk + t) * row.vector
            if d < row.head_dim:
                total = dot_vector(unpack(x), factors, d, total)
        out[lane] = quad_sum(total)

    out = np.zeros(32, np.float32)
    run_warp(kernel, stored(numbers, row.kv_dtype), factors, out)
    np.testing.assert_array_equal(out, np.repeat(numbers @ factors, 4))


@pytest.mark.parametrize("times", [1, 2, 5])
def test_a_body_is_unrolled_in_order(times):
    calls = []
    unroll(lambda i, *rest: calls.append((i, *rest)), times)("a", 2)
    assert calls == [(i, "a", 2) for i in range(times)]


def test_a_warp_multiplies_one_two_or_four_heads():
    assert [heads_of_warp(n) for n in (1, 2, 3, 4, 5, 16)] == [1, 2, 4, 4, 4, 4]
