"""The words that CUDA kernels are written in, on the CPU: twins of `ptx.py` for the simulator."""

import sys
from math import copysign, frexp, inf, nextafter

import numpy as np

from numbadsd.kernels.cuda.sim import SimulatedFault, current_block, poisoned

__all__ = [
    "ballot", "bf16_high", "bf16_low", "bits_to_f32", "cuda", "device", "div_rn", "ex2",
    "f16_high", "f16_low", "f32_to_bits", "float32", "fma", "fmax", "int32", "int64", "lg2",
    "load1", "load4", "mma_bf16", "mma_f16", "mul_rn", "pack_bf16", "pack_f16", "pack_high",
    "pack_low", "popc", "quotient", "shfl_from", "shfl_up", "shfl_xor", "sqrt_rn", "store1",
    "stream4", "to_bf16", "to_f16", "uint32",
]  # fmt: skip

float32, int32, int64, uint32 = np.float32, np.int32, np.int64, np.uint32


class _Shared:
    @staticmethod
    def array(shape, dtype, alignment=None):
        """Return the block's array of this call, the same for every thread."""
        frame = sys._getframe(1)
        key = (frame.f_code, frame.f_lasti)
        if key not in current_block().shared:
            current_block().shared[key] = poisoned(shape, dtype)
        return current_block().shared[key]


class _Local:
    @staticmethod
    def array(shape, dtype):
        return poisoned(shape, dtype)


class _Atomic:
    @staticmethod
    def add(array, index, value):
        """Add to an element; return what it was."""
        before = array[index]
        array[index] = before + array.dtype.type(value)
        return before


class _Cuda:
    """What kernels use of `numba.cuda`."""

    shared, local, atomic = _Shared, _Local, _Atomic
    threadIdx = property(lambda self: current_block().current.index)
    blockIdx = property(lambda self: current_block().index)
    blockDim = property(lambda self: current_block().size)
    gridDim = property(lambda self: current_block().grid)

    @staticmethod
    def syncthreads():
        current_block().barrier()

    @staticmethod
    def syncwarp():
        current_block().gather("syncwarp", None)


cuda = _Cuda()


def device(function):
    """A function that kernels call needs no compiler here."""
    return function


# ---- arithmetic, as the instructions of ptx.py define it


def _f32(operation):
    return lambda *numbers: np.float32(operation(*(np.float32(n) for n in numbers)))


def fma(a, b, c):
    """Return a * b + c, rounded once: exact product in float64, sum rounded to odd."""
    product, c = float(a) * float(b), float(c)
    total = product + c
    added = total - product
    rest = (product - (total - added)) + (c - added)  # what the rounded sum lacks; NaN at infinity
    if (rest > 0 or rest < 0) and int(frexp(total)[0] * 2**53) % 2 == 0:
        total = nextafter(total, copysign(inf, rest))
    return np.float32(total)


mul_rn, div_rn = _f32(np.multiply), _f32(np.divide)
sqrt_rn, lg2, fmax = _f32(np.sqrt), _f32(np.log2), _f32(np.fmax)


def ex2(x):
    """Return 2 to the x; subnormal results are 0."""
    power = np.exp2(np.float32(x))
    return np.float32(0.0) if power < np.float32(2.0**-126) else power


def f32_to_bits(x):
    """Return the word that a float32 is."""
    return np.float32(x).view(np.uint32)


def bits_to_f32(word):
    """Return the float32 that a word is."""
    return np.uint32(word).view(np.float32)


def f16_low(word):
    """Return the float16 in the low half as float32."""
    return np.float32(np.uint16(int(word) & 0xFFFF).view(np.float16))


def f16_high(word):
    """Return the float16 in the high half as float32."""
    return np.float32(np.uint16(int(word) >> 16).view(np.float16))


def bf16_low(word):
    """Return the bfloat16 in the low half as float32."""
    return bits_to_f32((int(word) & 0xFFFF) << 16)


def bf16_high(word):
    """Return the bfloat16 in the high half as float32."""
    return bits_to_f32(int(word) & 0xFFFF0000)


def to_f16(x):
    """Return float16 bits, rounded to nearest even; NaN is the one the device makes."""
    if x != x:
        return np.uint32(0x7FFF)
    return np.uint32(np.float16(np.float32(x)).view(np.uint16))


def to_bf16(x):
    """Return bfloat16 bits, as `to_f16`."""
    if x != x:
        return np.uint32(0x7FFF)
    bits = int(f32_to_bits(x))
    return np.uint32((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)


def pack_f16(low, high):
    """Return two numbers as float16, the first one low."""
    return to_f16(low) | to_f16(high) << np.uint32(16)


def pack_bf16(low, high):
    """Return two numbers as bfloat16, the first one low."""
    return to_bf16(low) | to_bf16(high) << np.uint32(16)


def pack_low(first, second):
    """Return the low halves of two words, the first word's low."""
    return np.uint32(int(first) & 0xFFFF | (int(second) & 0xFFFF) << 16)


def pack_high(first, second):
    """Return the high halves of two words, the first word's low."""
    return np.uint32(int(first) >> 16 | int(second) & 0xFFFF0000)


def popc(word):
    """Return how many bits are 1."""
    return int(word).bit_count()


def quotient(a, b):
    """Return a // b of numbers that are not negative."""
    return int(a) // int(b)


# ---- operations of a warp


def shfl_xor(value, mask):
    """Return the value of the lane whose number differs from ours by `mask`."""
    values = current_block().gather("shfl_xor", np.float32(value))
    return values[current_block().current.lane ^ int(mask)]


def shfl_from(value, lane):
    """Return the value of a lane."""
    return current_block().gather("shfl_from", np.float32(value))[int(lane) & 31]


def shfl_up(value, delta):
    """Return the value of the lane `delta` below; our own where there is none."""
    values = current_block().gather("shfl_up", np.uint32(value))
    return values.get(current_block().current.lane - int(delta), np.uint32(value))


def ballot(predicate):
    """Return a bit for each lane whose predicate is not 0."""
    values = current_block().gather("ballot", int(predicate) != 0)
    return np.uint32(sum(1 << lane for lane, value in values.items() if value))


def _towards_zero(sums):
    """Return float64 numbers as float32, rounded as tensor cores do (Fasi et al. 2021)."""
    rounded = sums.astype(np.float32)
    is_beyond = np.abs(rounded) > np.abs(sums)
    return np.where(is_beyond, np.nextafter(rounded, np.float32(0)), rounded)


def _product(operands, low, high):
    """Return c + a b of the lanes' operands; `low`, `high` read the halves of a word."""
    a, b, c = (np.zeros(shape) for shape in ((16, 16), (16, 8), (16, 8)))
    for lane, (a0, a1, a2, a3, b0, b1, *sums) in operands.items():
        g, t = divmod(lane, 4)
        for word, row, column in ((a0, g, 0), (a1, g + 8, 0), (a2, g, 8), (a3, g + 8, 8)):
            a[row, column + 2 * t : column + 2 * t + 2] = low(word), high(word)
        for word, row in ((b0, 0), (b1, 8)):
            b[row + 2 * t : row + 2 * t + 2, g] = low(word), high(word)
        c[g, 2 * t : 2 * t + 2], c[g + 8, 2 * t : 2 * t + 2] = sums[:2], sums[2:]
    return _towards_zero(a @ b + c)


def _make_mma(low, high):
    def mma(*operands, site="mma"):
        """Return the lane's part of the product of a warp's matrices, see `ptx.py`."""
        values = current_block().gather(site, operands)
        if "product" not in values:  # the lane that runs first
            values["product"] = _product(values, low, high)
        g, t = divmod(current_block().current.lane, 4)
        sums = values["product"]
        return sums[g, 2 * t], sums[g, 2 * t + 1], sums[g + 8, 2 * t], sums[g + 8, 2 * t + 1]

    return mma


mma_f16, mma_bf16 = _make_mma(f16_low, f16_high), _make_mma(bf16_low, bf16_high)


# ---- vectors of four words


def _quad(words, index):
    index = int(index)
    address = words.ctypes.data + index * words.itemsize
    if index < 0 or index + 4 > words.size or address % 16:
        fault = f"vector access at {index} of {words.size} words"
        raise SimulatedFault(f"{fault}: out of range or not aligned to 16 bytes")
    return words[index : index + 4]


def _place(array, index):
    if not 0 <= int(index) < array.size:
        raise SimulatedFault(f"access at {int(index)} of {array.size} elements: out of range")
    return int(index)


def load1(array, index):
    """Load one element, index not negative."""
    return array[_place(array, index)]


def store1(array, index, number):
    """Store one element, as `load1` loads it."""
    array[_place(array, index)] = number


def load4(words, index):
    """Load four 32-bit words, index a multiple of 4."""
    return tuple(_quad(words, index))


stream4 = load4
