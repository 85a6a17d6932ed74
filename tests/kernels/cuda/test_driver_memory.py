"""Memory in the order of a stream, as the driver is asked for it; no device is needed."""

from types import SimpleNamespace

import numpy as np
import pytest

cu = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")

from numbadsd.kernels.cuda import driver_memory  # noqa: E402
from numbadsd.kernels.cuda.launch import DeviceError  # noqa: E402

POOL, ADDRESS, STREAM = cu.CUmemoryPool(3), 4096, SimpleNamespace(handle=cu.CUstream(77))


@pytest.fixture
def asked(monkeypatch):
    """Return what the driver is asked from now on: (call, argument, ..)."""
    calls = []

    def stand_in(name, *values):
        def call(*arguments):
            calls.append((name, *arguments))
            return cu.CUresult.CUDA_SUCCESS, *values

        monkeypatch.setattr(driver_memory.cu, name, call)

    stand_in("cuMemPoolCreate", POOL)
    stand_in("cuMemPoolSetAttribute")
    stand_in("cuMemAllocFromPoolAsync", cu.CUdeviceptr(ADDRESS))
    stand_in("cuMemFreeAsync")
    return calls


def test_a_pool_keeps_what_is_free(asked):
    driver_memory.StreamPool(5)
    (_, wanted), (_, pool, attribute, value) = asked
    assert wanted.allocType == cu.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    assert wanted.location.type == cu.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    assert wanted.location.id == 5
    assert attribute == cu.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
    assert pool is POOL and int(value) == 2**64 - 1


def test_memory_is_taken_from_the_stream_and_given_back_to_it_also_after_an_error(asked):
    pool = driver_memory.StreamPool(0)
    del asked[:]
    with pytest.raises(KeyError), pool.scratch(6, np.int32, STREAM) as array:
        assert (array.address, array.shape, array.dtype) == (ADDRESS, (6,), np.int32)
        assert asked == [("cuMemAllocFromPoolAsync", 24, POOL, STREAM.handle)]
        raise KeyError
    assert asked[1:] == [("cuMemFreeAsync", ADDRESS, STREAM.handle)]


def test_a_refusal_says_how_much_was_asked_for(asked, monkeypatch):
    pool = driver_memory.StreamPool(0)
    no_memory = (cu.CUresult.CUDA_ERROR_OUT_OF_MEMORY, None)
    monkeypatch.setattr(driver_memory.cu, "cuMemAllocFromPoolAsync", lambda *a: no_memory)
    for name, text in (("cuGetErrorName", b"NO"), ("cuGetErrorString", b"no memory")):
        answer = (cu.CUresult.CUDA_SUCCESS, text)
        monkeypatch.setattr(driver_memory.cu, name, lambda status, answer=answer: answer)
    with pytest.raises(DeviceError, match=r"^NO: no memory \(asked for 24 bytes\)$"):
        pool.scratch(6, np.int32, STREAM).__enter__()
