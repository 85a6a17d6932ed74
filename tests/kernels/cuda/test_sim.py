"""The simulator: what it finds, and that its words mean what the instructions of a device do."""

import ast
import re
from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from numbadsd.kernels import cuda as cuda_package
from numbadsd.kernels.cuda import sim, sim_words
from numbadsd.kernels.cuda.sim import SimulatedFault, run_grid
from numbadsd.kernels.cuda.sim_words import cuda
from tests.kernels.cpu.test_append import special_numbers

POISONED = 0xCDCDCDCD
LANES = np.arange(32)


def run(function, *arguments, threads=32, grid=1):
    """Run a kernel of the simulator; return its arguments."""
    run_grid(function, grid, threads, arguments)
    return arguments


def fault(function, *arguments, **launch):
    """Return the message of the fault that the simulator finds."""
    with pytest.raises(SimulatedFault) as caught:
        run(function, *arguments, **launch)
    return str(caught.value)


# ---- what it finds


def test_a_barrier_that_some_threads_never_reach():
    def returns_early(out):
        if cuda.threadIdx.x >= 32:
            return
        cuda.syncthreads()

    def returns_late(out):
        if cuda.threadIdx.x < 40:
            cuda.syncthreads()

    def waits_once_more(out):
        for _ in range(2 if cuda.threadIdx.x < 5 else 1):
            cuda.syncthreads()

    for kernel, count in ((returns_early, 32), (returns_late, 40), (waits_once_more, 5)):
        message = fault(kernel, None, threads=64)
        assert message == f"deadlock in block 0: threads wait: {count} at syncthreads, first 0"


def test_a_barrier_while_a_warp_waits_for_its_own_lanes():
    def kernel():
        if cuda.threadIdx.x % 2:
            cuda.syncwarp()
        else:
            cuda.syncthreads()

    message = fault(kernel)
    assert "16 at syncthreads, first 0" in message and "16 at syncwarp, first 1" in message


def test_lanes_of_a_warp_at_different_operations():
    def kernel():
        if cuda.threadIdx.x < 20:
            sim_words.shfl_xor(1.0, 1)
        else:
            sim_words.ballot(1)

    message = fault(kernel)
    assert "warp divergence: lane 20 is at ballot, others at shfl_xor" in message
    assert "(block 0, thread 20)" in message


def test_lanes_that_never_join_their_warp():
    def kernel():
        if cuda.threadIdx.x != 7:
            sim_words.ballot(1)

    assert "31 at ballot, first 0" in fault(kernel)


def test_warps_may_differ():
    def kernel(out):
        thread = cuda.threadIdx.x
        out[thread] = sim_words.ballot(1) if thread < 32 else sim_words.shfl_up(thread, 1)
        cuda.syncthreads()

    (out,) = run(kernel, np.zeros(64, np.uint32), threads=64)
    assert np.all(out[:32] == 0xFFFFFFFF) and out[32:].tolist() == [32, *range(32, 63)]


@pytest.mark.parametrize("index", [-4, 2, 13, 14, 16])
@pytest.mark.parametrize("word", ["load4", "stream4"])
def test_vector_access_that_is_not_aligned_or_out_of_range(word, index):
    access, words = getattr(sim_words, word), sim.poisoned(16, np.uint32)
    message = fault(lambda words: access(words, index), words)
    assert f"vector access at {index} of 16 words: out of range or not aligned" in message


def test_vector_access_to_an_array_that_is_not_aligned():
    words = sim.poisoned(20, np.uint32)
    assert "not aligned" in fault(lambda words: sim_words.load4(words, 0), words[1:17])


@pytest.mark.parametrize("index", [-1, 16, 99])
def test_access_to_one_element_out_of_range(index):
    words = sim.poisoned(16, np.uint32)
    assert "out of range" in fault(lambda words: sim_words.load1(words, index), words)
    assert "out of range" in fault(lambda words: sim_words.store1(words, index, 1), words)


def test_memory_that_nobody_has_written_is_poisoned():
    def kernel(out):
        shared, local = cuda.shared.array(4, np.uint32), cuda.local.array((1, 4), np.uint32)
        out[0], out[1] = shared[2], local[0, 3]
        cuda.syncthreads()
        shared[2] = 1  # a block's own: the next one finds poison again

    (out,) = run(kernel, np.zeros(2, np.uint32), grid=2)
    assert out.tolist() == [POISONED, POISONED]
    assert np.all(sim.poisoned((2, 3), np.float16).view(np.uint16) == 0xCDCD)


def test_an_error_names_its_block_and_thread():
    def kernel(out):
        if cuda.blockIdx.x == 1:
            out[cuda.threadIdx.x] = 0

    message = fault(kernel, np.zeros(3), grid=2)
    assert re.search(r"^IndexError: .*out of bounds.* \(block 1, thread 3\)$", message)


def test_a_launch_after_a_fault_is_a_fresh_one():
    fault(lambda out: out[5], np.zeros(5))
    fault(lambda: cuda.syncthreads() if cuda.threadIdx.x else None)
    (out,) = run(lambda out: out.__setitem__(cuda.threadIdx.x, 1), np.zeros(32))
    assert np.all(out == 1)


def test_two_runs_take_the_same_order():
    def kernel(order, next_place):
        thread = cuda.threadIdx.x
        if thread % 3:
            order[cuda.atomic.add(next_place, 0, 1)] = thread
        cuda.syncthreads()
        order[cuda.atomic.add(next_place, 0, 1)] = thread

    orders = [run(kernel, np.zeros(200), np.zeros(1, np.int32), threads=96)[0] for _ in range(2)]
    np.testing.assert_array_equal(*orders)


# ---- blocks, threads, shared memory


def test_places_in_a_grid():
    def kernel(out):
        place = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        out[place] = 100 * cuda.gridDim.x + cuda.blockIdx.x

    (out,) = run(kernel, np.zeros(192, np.int64), threads=64, grid=3)
    np.testing.assert_array_equal(out, 300 + np.arange(192) // 64)


def test_a_barrier_shows_what_other_threads_have_written():
    def kernel(out):
        mine = cuda.shared.array(64, np.int32)
        other = cuda.shared.array(64, np.int32, alignment=16)
        thread = cuda.threadIdx.x
        for step in range(3):
            mine[thread], other[thread] = thread + step, -thread
            cuda.syncthreads()
            out[step, thread] = mine[63 - thread] + 1000 * other[(thread + 1) % 64]
            cuda.syncthreads()

    (out,) = run(kernel, np.zeros((3, 64)), threads=64)
    thread = np.arange(64)
    for step in range(3):
        np.testing.assert_array_equal(out[step], 63 - thread + step - 1000 * ((thread + 1) % 64))


# ---- the words


def public_words(stem):
    """Return `__all__` and the names that a module binds, read without importing it."""
    tree = ast.parse((Path(cuda_package.__path__[0]) / f"{stem}.py").read_text(encoding="utf-8"))
    bound, words = set(), None
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            bound.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            bound |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            targets = [name for target in node.targets for name in ast.walk(target)]
            bound |= {name.id for name in targets if isinstance(name, ast.Name)}
            if "__all__" in bound and words is None:
                words = ast.literal_eval(node.value)
    return words, bound


def test_both_worlds_have_the_same_words():
    (words, bound), (device_words, device_bound) = map(public_words, ("sim_words", "ptx"))
    assert words == device_words == sorted(words)
    assert set(words) <= bound and set(words) <= device_bound


@pytest.mark.parametrize("mask", range(1, 32))
def test_shfl_xor_exchanges_lanes(mask):
    values = np.random.default_rng(mask).standard_normal(64).astype(np.float32)
    values[3] = np.nan

    def kernel(out):
        out[cuda.threadIdx.x] = sim_words.shfl_xor(values[cuda.threadIdx.x], np.uint32(mask))

    (out,) = run(kernel, np.zeros(64, np.float32), threads=64)
    np.testing.assert_array_equal(out, values.reshape(2, 32)[:, LANES ^ mask].reshape(-1))


@pytest.mark.parametrize("delta", [1, 2, 4, 8, 16, 31])
def test_shfl_up_moves_numbers_to_higher_lanes(delta):
    values = np.random.default_rng(delta).integers(0, 2**32, 64, dtype=np.uint32)

    def kernel(out):
        out[cuda.threadIdx.x] = sim_words.shfl_up(values[cuda.threadIdx.x], np.uint32(delta))

    (out,) = run(kernel, np.zeros(64, np.uint32), threads=64)
    moved = values.reshape(2, 32)[:, np.where(LANES < delta, LANES, LANES - delta)]
    np.testing.assert_array_equal(out, moved.reshape(-1))


@pytest.mark.parametrize("word", [0, 1, 0x80000000, 0xFFFFFFFF, 0x12345678])
def test_ballot_collects_a_bit_of_each_lane(word):
    def kernel(out):
        lane = cuda.threadIdx.x % 32
        out[cuda.threadIdx.x] = sim_words.ballot(np.uint32(word >> lane) & np.uint32(1))

    (out,) = run(kernel, np.zeros(64, np.uint32), threads=64)
    assert np.all(out == word)
    assert sim_words.popc(np.uint32(word)) == bin(word).count("1")


def test_an_atomic_sum_has_the_type_of_its_array():
    array = np.array([1, 2], np.int32)
    assert cuda.atomic.add(array, np.uint32(1), 5) == 2
    assert array.tolist() == [1, 7]


def test_vectors_are_loaded_and_stored():
    words = sim.poisoned(12, np.float32)
    words[4:8] = range(4)
    assert sim_words.load4(words, 4) == sim_words.stream4(words, np.int64(4)) == (0, 1, 2, 3)
    assert np.all(words.view(np.uint32)[[0, 3, 8, 11]] == POISONED)
    sim_words.store1(words, np.int64(9), np.float32(5))
    assert sim_words.load1(words, 9) == words[9] == 5


@pytest.mark.parametrize(
    "dtype, low, high, pack",
    [(np.float16, sim_words.f16_low, sim_words.f16_high, sim_words.to_f16),
     (ml_dtypes.bfloat16, sim_words.bf16_low, sim_words.bf16_high, sim_words.to_bf16)],
    ids=["float16", "bfloat16"],
)  # fmt: skip
def test_half_precision_is_that_of_numpy(dtype, low, high, pack):
    halves = np.arange(2**16, dtype=np.uint32)
    expected = halves.astype(np.uint16).view(dtype).astype(np.float32)
    for number in halves[:: 1 if dtype == np.float16 else 7]:
        for got in (low(number | np.uint32(0xABCD0000)), high(number << np.uint32(16))):
            assert got == expected[number] or np.isnan(got) and np.isnan(expected[number])
    numbers = np.random.default_rng(0).permutation(special_numbers(dtype))[:20_000]
    edges = np.float32([0.0, -0.0, np.inf, -np.inf, 65504, 65519.99, 65520, 1e-8, 3.4e38, 6e-8])
    with np.errstate(over="ignore"):
        for number in (*numbers, *edges):
            assert pack(number) == number.astype(dtype).view(np.uint16), number
    for nan in (np.nan, -np.nan, np.uint32(0x7F800001).view(np.float32)):
        assert pack(np.float32(nan)) == 0x7FFF  # the one NaN that a device makes


def nearest_float32(exact: Fraction):
    """Return the float32 that is nearest to a number, ties to even."""
    near = np.float32(float(exact))
    around = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
    return min(around, key=lambda x: (abs(Fraction(float(x)) - exact), int(x.view(np.uint32)) & 1))


def fma_numbers():
    """Yield a, b, c around every way of rounding a * b + c."""
    rng = np.random.default_rng(0)
    for _ in range(700):  # a product with 25 bits is halfway between two numbers
        a, b = (1 + rng.integers(0, 4096, 2) / 4096).astype(np.float32)
        yield a, b, np.float32(rng.choice([-1, 0, 1]) * 2.0 ** rng.integers(-60, -22))
        yield a, -b, np.float32(rng.standard_normal() * 2.0 ** rng.integers(-30, 10))
        yield *rng.standard_normal(2).astype(np.float32), np.float32(rng.standard_normal())
    for _ in range(300):  # subnormal results
        a, b = (rng.standard_normal(2) * 2.0**-70).astype(np.float32)
        yield a, b, np.float32(rng.choice([0, 1, -3]) * 2.0**-149)


def test_fma_rounds_once():
    for a, b, c in fma_numbers():
        exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
        got = sim_words.fma(a, b, c)
        assert got.dtype == np.float32
        assert got == nearest_float32(exact), (a, b, c)


def test_fma_at_the_ends():
    one, inf, largest = np.float32(1), np.float32(np.inf), np.finfo(np.float32).max
    assert sim_words.fma(inf, one, one) == inf
    assert np.isnan(sim_words.fma(inf, one, -inf)) and np.isnan(sim_words.fma(inf, 0 * one, one))
    assert np.isnan(sim_words.fma(one, np.float32(np.nan), one))
    with np.errstate(over="ignore"):
        assert sim_words.fma(largest, largest, one) == inf
    assert np.signbit(sim_words.fma(-one, 0 * one, np.float32(-0.0)))


def test_arithmetic_is_that_of_float32():
    rng = np.random.default_rng(1)
    for a, b in rng.standard_normal((50, 2)).astype(np.float32):
        assert sim_words.mul_rn(a, b) == a * b
        assert sim_words.div_rn(a, b) == a / b and sim_words.sqrt_rn(abs(a)) == np.sqrt(abs(a))
        assert sim_words.fmax(a, b) == max(a, b)
        assert sim_words.bits_to_f32(sim_words.f32_to_bits(a)) == a
        assert sim_words.mul_rn(a, b).dtype == np.float32
    nan, one = np.float32(np.nan), np.float32(1)
    assert sim_words.fmax(nan, one) == sim_words.fmax(one, nan) == one
    assert sim_words.quotient(np.int32(17), 5) == 3


def test_powers_and_logarithms_to_base_2():
    x = np.linspace(-126, 100, 301).astype(np.float32)
    powers = np.array([sim_words.ex2(number) for number in x])
    np.testing.assert_allclose(powers, np.exp2(x.astype(np.float64)), rtol=2.0**-22)
    assert [sim_words.ex2(np.float32(n)) for n in (0, -np.inf, -127)] == [1, 0, 0]
    assert np.isnan(sim_words.ex2(np.float32(np.nan)))
    assert sim_words.ex2(np.float32(np.inf)) == np.inf
    numbers = powers[powers > 0]
    logs = np.array([sim_words.lg2(number) for number in numbers])
    np.testing.assert_allclose(logs, np.log2(numbers.astype(np.float64)), rtol=1e-6, atol=1e-7)
    with np.errstate(divide="ignore"):
        assert sim_words.lg2(np.float32(0)) == -np.inf
