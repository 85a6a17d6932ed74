"""Host memory to a device: page-locked, guarded by events, counted."""

from dataclasses import dataclass
from math import prod

import numpy as np

from numbadsd.kernels.cuda.launch import DeviceArray

LARGE_BYTES = 1 << 20  # a call that moves this much counts as large
_ALIGNMENT = 16  # of every array that travels with others
_FIRST_BYTES = 1 << 16


@dataclass
class TransferStats:
    """Bytes and calls between host and device since the last reset."""

    h2d_bytes: int = 0
    h2d_calls: int = 0
    h2d_large_calls: int = 0
    d2h_bytes: int = 0
    d2h_calls: int = 0
    d2h_large_calls: int = 0

    def count_h2d(self, num_bytes: int) -> None:
        """Count one copy to the device."""
        self.h2d_bytes += num_bytes
        self.h2d_calls += 1
        self.h2d_large_calls += num_bytes >= LARGE_BYTES

    def count_d2h(self, num_bytes: int) -> None:
        """Count one copy to the host."""
        self.d2h_bytes += num_bytes
        self.d2h_calls += 1
        self.d2h_large_calls += num_bytes >= LARGE_BYTES

    def reset(self) -> None:
        """Count from zero."""
        self.__init__()


class Block:
    """Arrays that cross between host and device together, at places that never change.

    Attributes
    ----------
    host, device : ndarray and DeviceArray of bytes
        All of them, each aligned to 16 bytes.
    on_host, on_device : dict
        Each of them by name.
    """

    def __init__(self, driver, arrays: dict[str, tuple[tuple, type]]):
        starts, end = [], 0
        for shape, dtype in arrays.values():
            starts.append(end)
            end += -(-prod(shape) * np.dtype(dtype).itemsize // _ALIGNMENT) * _ALIGNMENT
        self.host, self.device = driver.pinned(end, np.uint8), driver.empty(end, np.uint8)
        self.on_host, self.on_device = {}, {}
        for start, (name, (shape, dtype)) in zip(starts, arrays.items(), strict=True):
            array = DeviceArray(self.device.address + start, shape, dtype, self.device)
            part = self.host[start : start + array.nbytes]
            self.on_device[name], self.on_host[name] = array, part.view(dtype).reshape(shape)
        self._read = None

    def end_of(self, name: str) -> int:
        """Return the bytes up to the end of an array."""
        array = self.on_device[name]
        return array.address + array.nbytes - self.device.address

    def wait(self) -> None:
        """Wait until the host's memory may be written: the work before the last `guard` is done."""
        if self._read is not None:
            self._read.synchronize()

    def send(self, stream, stats: TransferStats) -> None:
        """Copy all of it to the device; `guard` it then."""
        stream.upload(self.device, self.host)
        stats.count_h2d(self.host.size)

    def guard(self, stream) -> None:
        """Let the next `wait` be for the work that the stream has now."""
        self._read = stream.record(self._read)


@dataclass
class _Buffer:
    """One of the two: host memory, its copy on the device, and when the copy is done."""

    host: np.ndarray
    device: DeviceArray
    copied: object | None = None


class Staging:
    """Sends host arrays to a device, several in one copy.

    There are two buffers, so that one is filled while the other travels. An event guards each: host
    memory is written again only after its copy is done. What the device does with its copies is in
    stream order, so nothing guards that.
    """

    def __init__(self, driver, stream, stats: TransferStats):
        self._driver, self._stream, self._stats = driver, stream, stats
        self._buffers = [self._new_buffer(_FIRST_BYTES) for _ in range(2)]

    def _new_buffer(self, num_bytes: int) -> _Buffer:
        driver = self._driver
        return _Buffer(driver.pinned(num_bytes, np.uint8), driver.empty(num_bytes, np.uint8))

    def send(self, *arrays: np.ndarray) -> list[DeviceArray]:
        """Return the arrays on the device; valid until the call after the next one."""
        starts, end = [], 0
        for array in arrays:
            starts.append(end)
            end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        buffer = self._next_buffer(end)
        for start, array in zip(starts, arrays, strict=True):
            host = buffer.host[start : start + array.nbytes]
            host[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._stream.upload(buffer.device[:end], buffer.host[:end])
        self._stats.count_h2d(end)
        buffer.copied = self._stream.record(buffer.copied)
        return [
            DeviceArray(buffer.device.address + start, array.shape, array.dtype, buffer.device)
            for start, array in zip(starts, arrays, strict=True)
        ]

    def _next_buffer(self, num_bytes: int) -> _Buffer:
        """Return the buffer that was used longest ago, when it is free and large enough."""
        self._buffers.reverse()
        buffer = self._buffers[0]
        if buffer.copied is not None:
            buffer.copied.synchronize()
        if buffer.host.size < num_bytes:
            self._stream.synchronize()  # the old device memory may still be read
            buffer = self._buffers[0] = self._new_buffer(1 << (num_bytes - 1).bit_length())
        return buffer
