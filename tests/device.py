"""Device memory for tests: of the simulator or of a real device, whichever kernels run on."""

from functools import cache

import numpy as np

from numbadsd.kernels.cuda.launch import DeviceArray
from numbadsd.kernels.cuda.runtime import get_driver

POISON = 0xCD  # what memory holds that nobody has written
_MARGIN_BYTES = 256  # on both sides of an output


@cache
def stream():
    """Return the stream that tests work in."""
    return get_driver().stream()


def up(array: np.ndarray) -> DeviceArray:
    """Return a copy of an array on the device."""
    array = np.ascontiguousarray(array)
    copy = get_driver().empty(array.shape, array.dtype)
    stream().upload(copy, array)
    stream().synchronize()
    return copy


def down(array: DeviceArray) -> np.ndarray:
    """Return a copy of a device array on the host, when all work is done."""
    copy = np.empty(array.shape, array.dtype)
    stream().download(copy, array)
    stream().synchronize()
    return copy


def output(shape, dtype, byte: int = POISON) -> DeviceArray:
    """Return an array for a kernel to write: every byte is `byte`, here and around it."""
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    around = get_driver().empty(num_bytes + 2 * _MARGIN_BYTES, np.uint8)
    stream().fill(around, byte)
    return DeviceArray(around.address + _MARGIN_BYTES, shape, dtype, around)


def intact(array: DeviceArray) -> bool:
    """Tell whether nothing was written around an `output`."""
    around = down(array.owner)
    return bool(
        np.all(around[:_MARGIN_BYTES] == around[0])
        and np.all(around[around.size - _MARGIN_BYTES :] == around[0])
    )


def written(array: DeviceArray) -> np.ndarray:
    """Return a copy of an `output`: every 4-byte number is written, and nothing around them."""
    assert intact(array), "written out of range"
    around = down(array.owner)
    words = around[_MARGIN_BYTES : around.size - _MARGIN_BYTES].view(np.uint32)
    unwritten = np.flatnonzero(words == np.uint32(int(around[0]) * 0x01010101))
    assert not unwritten.size, f"{unwritten.size} numbers are not written, first {unwritten[:8]}"
    return down(array)


def bits(array: np.ndarray) -> np.ndarray:
    """Return the bytes of an array, so that NaN and signed zeros compare."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def assert_same_bits(left, right) -> None:
    """Fail unless two arrays, or two sequences of them, are the same bit for bit."""
    pairs = [(left, right)] if isinstance(left, np.ndarray) else zip(left, right, strict=True)
    for a, b in pairs:
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_array_equal(bits(a), bits(b))
