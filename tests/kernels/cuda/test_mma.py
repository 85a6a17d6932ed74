"""Products of halves: the instruction, numbers as sums of halves, and how lanes share a row."""

import ml_dtypes
import numpy as np
import pytest

from numbadsd.kernels.cuda import sim, sim_words
from numbadsd.kernels.cuda.attend_spec import FMA, MMA, AttendSpec
from numbadsd.kernels.cuda.mma_parts import HALVES, KEY_LANES
from numbadsd.kernels.cuda.mma_step import VALUE_LANES, key_pieces, value_pieces
from numbadsd.kernels.cuda.ops import cuda
from numbadsd.kernels.cuda.tiles import Row, in_turn

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES)
EVERY_ROW = pytest.mark.parametrize(
    "row", [Row(d, t) for t in DTYPES for d in range(16, 129, 16)], ids=str
)


def pair(low, high, dtype):
    """Return two numbers as a word."""
    return np.array([low, high], np.float32).astype(DTYPES[dtype]).view(np.uint32)[0]


def multiply(a, b, c, dtype):
    """Return a [16, 16] x b [16, 8] + c, by one warp and one instruction."""
    out = np.zeros((16, 8), np.float32)

    def kernel():
        g, t = divmod(cuda.threadIdx.x, 4)
        words = [
            pair(*a[row, column : column + 2], dtype)
            for column in (2 * t, 2 * t + 8)
            for row in (g, g + 8)
        ]
        words += [pair(*b[row : row + 2, g], dtype) for row in (2 * t, 2 * t + 8)]
        sums = [c[row, column] for row in (g, g + 8) for column in (2 * t, 2 * t + 1)]
        product = HALVES[dtype].mma(*words, *sums)
        out[g, 2 * t : 2 * t + 2], out[g + 8, 2 * t : 2 * t + 2] = product[:2], product[2:]

    sim.run_grid(kernel, 1, 32, ())
    return out


@EVERY_DTYPE
def test_a_warp_multiplies_matrices(dtype):
    rng = np.random.default_rng(0)
    a, b, c = (rng.integers(-8, 8, shape) for shape in ((16, 16), (16, 8), (16, 8)))
    np.testing.assert_array_equal(multiply(a, b, c, dtype), a @ b + c)


@EVERY_DTYPE
def test_a_product_is_rounded_towards_zero(dtype):
    a, b, c = np.zeros((16, 16)), np.zeros((16, 8)), np.zeros((16, 8))
    a[0, 0] = b[0, 0] = 2.0**-6  # 2^-12 is beyond what a float32 of 8192 can hold
    c[0, 0] = np.nextafter(np.float32(8192), np.float32(0))
    assert multiply(a, b, c, dtype)[0, 0] == c[0, 0]
    a[0, 0] = -a[0, 0]
    c[0, 0] = -c[0, 0]
    assert multiply(a, b, c, dtype)[0, 0] == c[0, 0]


@EVERY_DTYPE
def test_what_is_no_number_stays_in_its_row_and_column(dtype):
    a, b, c = np.ones((16, 16)), np.ones((16, 8)), np.zeros((16, 8))
    a[3, 5], b[7, 2] = np.nan, np.inf
    product = multiply(a, b, c, dtype)
    assert np.all(np.isnan(product[3])) and np.all(np.delete(product[:, 2], 3) == np.inf)
    assert np.all(np.delete(np.delete(product, 3, 0), 2, 1) == 16)


def parts_of(x, dtype):
    """Return a positive number's parts, as they go into products."""
    halves = HALVES[dtype]
    parts = []
    for _ in range(halves.num_parts - 1):
        parts.append(halves.part(x))
        x = x - parts[-1]
    return [*parts, x]


@pytest.mark.parametrize("dtype, bits", [("float16", 21), ("bfloat16", 23)])
def test_a_number_is_the_sum_of_halves(dtype, bits):
    rng = np.random.default_rng(1)
    numbers = (rng.uniform(1, 2, 2000) * 2.0 ** rng.integers(0, 15, 2000)).astype(np.float32)
    numbers[:45] = 2.0 ** np.arange(15).repeat(3) * np.float32([1, 1.5, 1 + 2**-10] * 15)
    for x in numbers:
        parts = parts_of(x, dtype)
        assert all(part > 0 for part in parts)  # so that a product with infinity is infinity
        stored = [np.float64(np.float32(part).astype(DTYPES[dtype])) for part in parts]
        assert all(part > 0 for part in stored)
        assert stored[:-1] == parts[:-1]  # of these, nothing is rounded away
        assert abs(sum(stored) - float(x)) <= float(x) * 2.0**-bits


@EVERY_DTYPE
def test_the_parts_of_zero_are_zeros_and_those_of_nan_are_nan(dtype):
    assert parts_of(np.float32(0), dtype) == [0] * HALVES[dtype].num_parts
    with np.errstate(invalid="ignore"):
        assert np.all(np.isnan(parts_of(np.float32(np.nan), dtype)))


@EVERY_ROW
@pytest.mark.parametrize("pieces, lanes", [(key_pieces, KEY_LANES), (value_pieces, VALUE_LANES)])
def test_lanes_share_a_row(row, pieces, lanes):
    """Each word is one lane's, and a lane's words have consecutive numbers."""
    parts = pieces(row)
    words = [
        piece.row_word + piece.count * lane + i
        for piece in parts
        for lane in range(lanes)
        for i in range(piece.count)
    ]
    assert sorted(words) == list(range(row.words))
    numbers = [piece.first + i for piece in parts for i in range(piece.count)]
    assert numbers == list(range(row.words // lanes))
    assert all(piece.row_word % piece.count == 0 for piece in parts)  # reads are aligned


def test_words_are_put_together():
    first, second = np.uint32(0x11112222), np.uint32(0x33334444)
    assert sim_words.pack_low(first, second) == 0x44442222
    assert sim_words.pack_high(first, second) == 0x33331111
    for dtype, halves in HALVES.items():
        for low, high in ((1.5, -2.25), (np.inf, -0.0), (1e-7, 3e4)):
            word = halves.pack(np.float32(low), np.float32(high))
            assert word == pair(low, high, dtype)


def test_shfl_from_takes_the_number_of_a_lane():
    out = np.zeros(64, np.float32)

    def kernel():
        thread = cuda.threadIdx.x
        out[thread] = sim_words.shfl_from(np.float32(thread), np.uint32(thread * 7))

    sim.run_grid(kernel, 1, 64, ())
    lanes = np.arange(64)
    np.testing.assert_array_equal(out, lanes // 32 * 32 + lanes * 7 % 32)


def test_functions_are_called_in_turn():
    calls = []
    in_turn([lambda *a, i=i: calls.append((i, a)) for i in range(3)])("x", 1)
    assert calls == [(i, ("x", 1)) for i in range(3)]


@pytest.mark.parametrize("way, most", [(FMA, 4), (MMA, 8)])
@pytest.mark.parametrize("group", range(1, 17))
def test_warps_take_all_heads_and_share_out_the_tokens(group, way, most):
    whole = AttendSpec(64, "float16", 16, group, group, way)
    assert group <= whole.warp_heads * whole.head_warps and whole.warp_heads <= most
    assert whole.head_warps * whole.token_warps == 4
    alone = AttendSpec(64, "float16", 16, 1, group, way)
    assert (alone.warp_heads, alone.head_warps) == (1, 1)
    assert alone.token_warps == whole.token_warps  # so that a head's sums have the same order
