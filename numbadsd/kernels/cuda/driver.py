"""The CUDA driver as this library uses it: memory, streams, events, graphs, launches.

`sim_driver.py` has the same classes over host memory. A launch is one driver call: what it takes
but its arguments is made once. Nothing here allocates, copies or waits unasked.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from cuda.bindings import driver as cu

from numbadsd.kernels.cuda.compile import compile_cached
from numbadsd.kernels.cuda.driver_memory import (
    Memory,
    PinnedMemory,
    StreamPool,
    check,
    free_after,
)
from numbadsd.kernels.cuda.launch import DeviceArray, Kernel
from numbadsd.kernels.cuda.slots import ArgumentSlots

_ATTRIBUTE = cu.CUdevice_attribute
_EXTERNAL = int(cu.CUevent_record_flags.CU_EVENT_RECORD_EXTERNAL)
_NO_FLAGS = 0
LEGACY_STREAM = 1  # the default stream, by the number that is not 0


class Event:
    """A moment in a stream's work."""

    def __init__(self):
        self.handle = check(cu.cuEventCreate(_NO_FLAGS))
        free_after(self, cu.cuEventDestroy, self.handle)

    def elapsed_ms(self, earlier: "Event") -> float:
        """Return the milliseconds since an earlier event; both have happened."""
        return check(cu.cuEventElapsedTime(earlier.handle, self.handle))

    def synchronize(self) -> None:
        """Wait until the event has happened."""
        check(cu.cuEventSynchronize(self.handle))


class Graph:
    """Work that was recorded once and is started by one call."""

    def __init__(self, recorded, keep: list):
        self._keep = keep
        instantiated = cu.cuGraphInstantiate(recorded, _NO_FLAGS)
        cu.cuGraphDestroy(recorded)
        self.handle = check(instantiated)
        free_after(self, cu.cuGraphExecDestroy, self.handle)


@dataclass(frozen=True)
class LoadedKernel:
    """A kernel on the device, what it uses there, and what its launches take."""

    handle: object
    registers: int
    local_bytes: int
    shared_bytes: int
    slots: ArgumentSlots
    config: cu.CUlaunchConfig


class Stream:
    """Work in order: a new stream, or the one of another library that has this number."""

    def __init__(self, driver: "CudaDriver", number: int | None = None):
        self.driver = driver
        if number is None:
            flags = cu.CUstream_flags.CU_STREAM_NON_BLOCKING
            self.handle = check(cu.cuStreamCreate(int(flags)))
            free_after(self, cu.cuStreamDestroy, self.handle)
        else:
            self.handle = cu.CUstream(number or LEGACY_STREAM)
        self._captured: list | None = None  # what a graph has to keep alive

    def launch(self, kernel: Kernel, grid: int, *arguments) -> None:
        """Run a kernel with `grid` blocks; with 0 nothing is done."""
        kernel.check_arguments(arguments)
        if grid == 0:  # the driver refuses it
            return
        loaded = self.driver.load(kernel)
        loaded.slots.fill(arguments)
        config = loaded.config
        config.gridDimX, config.hStream = grid, self.handle
        check(cu.cuLaunchKernelEx(config, loaded.handle, loaded.slots.address, 0))
        self._keep(arguments)

    def _keep(self, things) -> None:
        if self._captured is not None:
            self._captured.append(things)

    def upload(self, target: DeviceArray, source: np.ndarray) -> None:
        """Copy from the host; the source must not change before the copy is done."""
        assert target.nbytes == source.nbytes and source.flags.c_contiguous
        if target.nbytes:
            call = cu.cuMemcpyHtoDAsync
            check(call(target.address, source.ctypes.data, target.nbytes, self.handle))
            self._keep((target, source))

    def download(self, target: np.ndarray, source: DeviceArray) -> None:
        """Copy to the host; the target is ready after `synchronize`."""
        assert target.nbytes == source.nbytes and target.flags.c_contiguous
        if target.nbytes:
            call = cu.cuMemcpyDtoHAsync
            check(call(target.ctypes.data, source.address, target.nbytes, self.handle))
            self._keep((target, source))

    def copy(self, target: DeviceArray, source: DeviceArray) -> None:
        """Copy within the device."""
        assert target.nbytes == source.nbytes
        if target.nbytes:
            call = cu.cuMemcpyDtoDAsync
            check(call(target.address, source.address, target.nbytes, self.handle))
            self._keep((target, source))

    def fill(self, target: DeviceArray, byte: int) -> None:
        """Set every byte."""
        if target.nbytes:
            check(cu.cuMemsetD8Async(target.address, byte, target.nbytes, self.handle))
            self._keep(target)

    def record(self, event: Event | None = None) -> Event:
        """Return an event, a new one or this one, that happens when the work so far is done."""
        event = Event() if event is None else event
        flags = _NO_FLAGS if self._captured is None else _EXTERNAL
        check(cu.cuEventRecordWithFlags(event.handle, self.handle, flags))
        self._keep(event)
        return event

    def wait_for(self, number: int) -> None:
        """Let what follows start after the work that another stream has now."""
        if number != int(self.handle):
            event = Event()
            check(cu.cuEventRecord(event.handle, cu.CUstream(number)))
            check(cu.cuStreamWaitEvent(self.handle, event.handle, _NO_FLAGS))

    def synchronize(self) -> None:
        """Wait for all work."""
        check(cu.cuStreamSynchronize(self.handle))

    def capture(self, function) -> Graph:
        """Return the work that `function` gives to this stream, recorded and not done."""
        # relaxed: memory that the garbage collector frees meanwhile does not spoil the capture
        mode = cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        check(cu.cuStreamBeginCapture(self.handle, mode))
        self._captured = kept = []
        try:
            function()
        except BaseException:
            _, recorded = cu.cuStreamEndCapture(self.handle)
            if recorded is not None:
                cu.cuGraphDestroy(recorded)
            raise
        finally:
            self._captured = None
        return Graph(check(cu.cuStreamEndCapture(self.handle)), kept)

    def replay(self, graph: Graph) -> None:
        """Do a graph's work."""
        check(cu.cuGraphLaunch(graph.handle, self.handle))
        self._keep(graph)


def _size(shape) -> int:
    return int(np.prod(shape, dtype=object))  # exact: a size that wraps around would be small


class CudaDriver:
    """The first CUDA device of this process, for the thread that makes the driver."""

    is_simulated = False

    def __init__(self):
        check(cu.cuInit(_NO_FLAGS))
        self._device = check(cu.cuDeviceGet(0))
        self._context = check(cu.cuDevicePrimaryCtxRetain(self._device))
        check(cu.cuCtxSetCurrent(self._context))
        self.name = check(cu.cuDeviceGetName(128, self._device)).split(b"\0")[0].decode()
        self.version = str(check(cu.cuDriverGetVersion()))
        self.num_multiprocessors = self._attribute("MULTIPROCESSOR_COUNT")
        self.compute_capability = (
            self._attribute("COMPUTE_CAPABILITY_MAJOR"),
            self._attribute("COMPUTE_CAPABILITY_MINOR"),
        )
        self._loaded: dict[Kernel, LoadedKernel] = {}

    def _attribute(self, name: str) -> int:
        attribute = getattr(_ATTRIBUTE, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(check(cu.cuDeviceGetAttribute(attribute, self._device)))

    def stream(self) -> Stream:
        """Return a new stream."""
        return Stream(self)

    def stream_of(self, number: int) -> Stream:
        """Return the stream of another library; 0 is the default stream."""
        return Stream(self, number)

    def empty(self, shape, dtype) -> DeviceArray:
        """Return memory that nobody has written."""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        dtype = np.dtype(dtype)
        memory = Memory(max(1, _size(shape) * dtype.itemsize))
        return DeviceArray(memory.address, shape, dtype, memory)

    @cached_property
    def _stream_pool(self) -> StreamPool:
        return StreamPool(int(self._device))

    def scratch(self, size: int, dtype, stream: Stream):
        """Return a context with memory for what is given to a stream in it; nobody waits."""
        return self._stream_pool.scratch(size, dtype, stream)

    def pinned(self, shape, dtype) -> np.ndarray:
        """Return page-locked host memory."""
        dtype = np.dtype(dtype)
        num_bytes = _size(shape) * dtype.itemsize
        memory = np.asarray(PinnedMemory(max(1, num_bytes)))
        return memory[:num_bytes].view(dtype).reshape(shape)

    def memory_bytes(self) -> tuple[int, int]:
        """Return the free and the total bytes of the device."""
        free, total = check(cu.cuMemGetInfo())
        return int(free), int(total)

    def load(self, kernel: Kernel) -> LoadedKernel:
        """Return a kernel that is ready to launch; the first time it is compiled and loaded."""
        loaded = self._loaded.get(kernel)
        if loaded is None:
            code = compile_cached(kernel, self.compute_capability)
            library = check(cu.cuLibraryLoadData(code.cubin, [], [], 0, [], [], 0))
            handle = check(cu.cuLibraryGetKernel(library, code.entry.encode()))
            function = check(cu.cuKernelGetFunction(handle))  # loads it now, not in a capture
            use = [
                int(check(cu.cuFuncGetAttribute(attribute, function)))
                for attribute in (
                    cu.CUfunction_attribute.CU_FUNC_ATTRIBUTE_NUM_REGS,
                    cu.CUfunction_attribute.CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES,
                    cu.CUfunction_attribute.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
                )
            ]
            config = cu.CUlaunchConfig()
            config.gridDimY = config.gridDimZ = config.blockDimY = config.blockDimZ = 1
            config.blockDimX = kernel.num_threads
            loaded = LoadedKernel(function, *use, ArgumentSlots(kernel), config)
            self._loaded[kernel] = loaded
        return loaded
