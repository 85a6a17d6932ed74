"""Memory of the CUDA driver: freed with its last user, or given back in the order of a stream."""

import weakref
from contextlib import contextmanager

import numpy as np
from cuda.bindings import driver as cu

from numbadsd.kernels.cuda.launch import DeviceArray, DeviceError

_SUCCESS = cu.CUresult.CUDA_SUCCESS
_NO_FLAGS = 0


def check(answer, asked: str = ""):
    """Return what a driver call gave, or raise DeviceError with the driver's words."""
    status, *values = answer
    if status is not _SUCCESS and status != _SUCCESS:
        _, name = cu.cuGetErrorName(status)
        _, text = cu.cuGetErrorString(status)
        message = f"{(name or b'?').decode()}: {(text or b'?').decode()}"
        raise DeviceError(f"{message} (asked for {asked})" if asked else message)
    return values[0] if len(values) == 1 else values


def free_after(owner, free, handle) -> None:
    """Call free(handle) when `owner` is gone; what lives at exit is left to the process's end."""
    _, context = cu.cuCtxGetCurrent()
    weakref.finalize(owner, _free, context, free, handle).atexit = False


def _free(context, free, handle) -> None:
    """Free in the context of the handle: the garbage collector may run on any thread."""
    cu.cuCtxPushCurrent(context)
    free(handle)
    cu.cuCtxPopCurrent()


class Memory:
    """An allocation, freed with its last user."""

    def __init__(self, num_bytes: int):
        self.address = int(check(cu.cuMemAlloc(num_bytes), f"{num_bytes} bytes"))
        free_after(self, cu.cuMemFree, self.address)


class PinnedMemory:
    """Page-locked host memory, freed with its last user."""

    def __init__(self, num_bytes: int):
        answer = cu.cuMemHostAlloc(num_bytes, _NO_FLAGS)
        self.address = int(check(answer, f"{num_bytes} page-locked bytes"))
        free_after(self, cu.cuMemFreeHost, self.address)
        self.__array_interface__ = {
            "shape": (num_bytes,), "typestr": "|u1", "data": (self.address, False), "version": 3,
        }  # fmt: skip


class StreamPool:
    """Memory that streams take and give back in the order of their work; it lives as the process.

    `cuMemFree` may wait for the whole device, or free what a kernel still uses. Here the driver
    gives memory to other work when the work before it is done, and nobody waits. What is free is
    kept: at most as much as was used at one time. A graph owns what is taken while it is captured.
    """

    def __init__(self, device: int):
        wanted = cu.CUmemPoolProps()
        wanted.allocType = cu.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        wanted.location.type = cu.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        wanted.location.id = device
        self._pool = check(cu.cuMemPoolCreate(wanted), "memory in the order of a stream")
        attribute = cu.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
        check(cu.cuMemPoolSetAttribute(self._pool, attribute, cu.cuuint64_t(2**64 - 1)))

    @contextmanager
    def scratch(self, size: int, dtype, stream):
        """Give an array [size] to work on a stream, which is all given to it in this context."""
        num_bytes = size * np.dtype(dtype).itemsize
        answer = cu.cuMemAllocFromPoolAsync(max(1, num_bytes), self._pool, stream.handle)
        address = int(check(answer, f"{num_bytes} bytes"))
        try:
            yield DeviceArray(address, (size,), dtype, self)
        finally:
            check(cu.cuMemFreeAsync(address, stream.handle))
