"""The CUDA driver as this library uses it: memory, streams, events, graphs, launches.

`sim_driver.py` has the same classes over host memory. A launch is one driver call with arguments
laid out as numba-cuda's kernels expect them; nothing here allocates, copies or waits unasked.
"""

import ctypes
from dataclasses import dataclass

import numpy as np
from cuda.bindings import driver as cu

from numbadsd.kernels.cuda.compile import compile_cached
from numbadsd.kernels.cuda.launch import PARAMETER_DTYPES, DeviceArray, DeviceError, Kernel

_ATTRIBUTE = cu.CUdevice_attribute
_NO_FLAGS = 0


def _check(answer):
    """Return what a driver call gave, or raise DeviceError with the driver's words."""
    status, *values = answer
    if status != cu.CUresult.CUDA_SUCCESS:
        _, name = cu.cuGetErrorName(status)
        _, text = cu.cuGetErrorString(status)
        raise DeviceError(f"{(name or b'?').decode()}: {(text or b'?').decode()}")
    return values[0] if len(values) == 1 else values


class Event:
    """A moment in a stream's work."""

    def __init__(self):
        self.handle = _check(cu.cuEventCreate(_NO_FLAGS))

    def elapsed_ms(self, earlier: "Event") -> float:
        """Return the milliseconds since an earlier event; both have happened."""
        return _check(cu.cuEventElapsedTime(earlier.handle, self.handle))

    def synchronize(self) -> None:
        """Wait until the event has happened."""
        _check(cu.cuEventSynchronize(self.handle))

    def __del__(self):
        cu.cuEventDestroy(self.handle)


class Graph:
    """Work that was recorded once and is started by one call."""

    def __init__(self, recorded, keep: list):
        self._recorded, self._keep = recorded, keep
        self.handle = _check(cu.cuGraphInstantiate(recorded, _NO_FLAGS))

    def __del__(self):
        cu.cuGraphExecDestroy(self.handle)
        cu.cuGraphDestroy(self._recorded)


@dataclass(frozen=True)
class LoadedKernel:
    """A kernel on the device, and what it uses there."""

    handle: object
    registers: int
    local_bytes: int
    shared_bytes: int


class Stream:
    """Work in order."""

    def __init__(self, driver: "CudaDriver"):
        self.driver = driver
        flags = cu.CUstream_flags.CU_STREAM_NON_BLOCKING
        self.handle = _check(cu.cuStreamCreate(int(flags)))
        self._captured: list | None = None  # what a graph has to keep alive

    def launch(self, kernel: Kernel, grid: int, *arguments) -> None:
        """Run a kernel with `grid` blocks."""
        kernel.check_arguments(arguments)
        loaded = self.driver.load(kernel)
        slots, pointers = _lay_out(kernel.parameters, arguments)
        config = cu.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid, 1, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = kernel.num_threads, 1, 1
        config.hStream = self.handle
        _check(cu.cuLaunchKernelEx(config, loaded.handle, ctypes.addressof(pointers), 0))
        self._keep(arguments)

    def _keep(self, things) -> None:
        if self._captured is not None:
            self._captured.append(things)

    def upload(self, target: DeviceArray, source: np.ndarray) -> None:
        """Copy from the host; the source must not change before the copy is done."""
        assert target.nbytes == source.nbytes and source.flags.c_contiguous
        if target.nbytes:
            call = cu.cuMemcpyHtoDAsync
            _check(call(target.address, source.ctypes.data, target.nbytes, self.handle))
            self._keep((target, source))

    def download(self, target: np.ndarray, source: DeviceArray) -> None:
        """Copy to the host; the target is ready after `synchronize`."""
        assert target.nbytes == source.nbytes and target.flags.c_contiguous
        if target.nbytes:
            call = cu.cuMemcpyDtoHAsync
            _check(call(target.ctypes.data, source.address, target.nbytes, self.handle))
            self._keep((target, source))

    def copy(self, target: DeviceArray, source: DeviceArray) -> None:
        """Copy within the device."""
        assert target.nbytes == source.nbytes
        if target.nbytes:
            call = cu.cuMemcpyDtoDAsync
            _check(call(target.address, source.address, target.nbytes, self.handle))
            self._keep((target, source))

    def fill(self, target: DeviceArray, byte: int) -> None:
        """Set every byte."""
        if target.nbytes:
            _check(cu.cuMemsetD8Async(target.address, byte, target.nbytes, self.handle))
            self._keep(target)

    def record(self) -> Event:
        """Return an event that happens when the work so far is done."""
        event = Event()
        external = cu.CUevent_record_flags.CU_EVENT_RECORD_EXTERNAL
        flags = _NO_FLAGS if self._captured is None else int(external)
        _check(cu.cuEventRecordWithFlags(event.handle, self.handle, flags))
        self._keep(event)
        return event

    def synchronize(self) -> None:
        """Wait for all work."""
        _check(cu.cuStreamSynchronize(self.handle))

    def capture(self, function) -> Graph:
        """Return the work that `function` gives to this stream, recorded and not done."""
        mode = cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._captured = kept = []
        _check(cu.cuStreamBeginCapture(self.handle, mode))
        try:
            function()
        finally:
            self._captured = None
            recorded = _check(cu.cuStreamEndCapture(self.handle))
        return Graph(recorded, kept)

    def replay(self, graph: Graph) -> None:
        """Do a graph's work."""
        _check(cu.cuGraphLaunch(graph.handle, self.handle))

    def __del__(self):
        cu.cuStreamDestroy(self.handle)


def _lay_out(parameters: tuple[str, ...], arguments: tuple):
    """Return the values of a launch, and pointers to them.

    numba-cuda passes a flat array as (meminfo, parent, size, itemsize, address, shape, stride).
    """
    values = []
    for parameter, argument in zip(parameters, arguments, strict=True):
        dtype = PARAMETER_DTYPES[parameter.removesuffix("[]")]
        if parameter.endswith("[]"):
            size = argument.nbytes // dtype.itemsize
            values += [0, 0, size, dtype.itemsize, argument.address, size, dtype.itemsize]
        else:
            values.append(int.from_bytes(dtype.type(argument).tobytes(), "little"))
    slots = (ctypes.c_uint64 * len(values))(*values)
    base = ctypes.addressof(slots)
    pointers = (ctypes.c_void_p * len(values))(*(base + 8 * i for i in range(len(values))))
    return slots, pointers


class _Memory:
    """An allocation, freed with its last user."""

    def __init__(self, num_bytes: int):
        self.address = int(_check(cu.cuMemAlloc(num_bytes)))

    def __del__(self):
        if hasattr(self, "address"):
            cu.cuMemFree(self.address)


class _PinnedMemory:
    """Page-locked host memory, freed with its last user."""

    def __init__(self, num_bytes: int):
        self.address = int(_check(cu.cuMemHostAlloc(num_bytes, _NO_FLAGS)))
        self.__array_interface__ = {
            "shape": (num_bytes,), "typestr": "|u1", "data": (self.address, False), "version": 3,
        }  # fmt: skip

    def __del__(self):
        if hasattr(self, "address"):
            cu.cuMemFreeHost(self.address)


class CudaDriver:
    """The first CUDA device of this process."""

    is_simulated = False

    def __init__(self):
        _check(cu.cuInit(_NO_FLAGS))
        self._device = _check(cu.cuDeviceGet(0))
        self._context = _check(cu.cuDevicePrimaryCtxRetain(self._device))
        _check(cu.cuCtxSetCurrent(self._context))
        self.name = _check(cu.cuDeviceGetName(128, self._device)).split(b"\0")[0].decode()
        self.version = str(_check(cu.cuDriverGetVersion()))
        self.num_multiprocessors = self._attribute("MULTIPROCESSOR_COUNT")
        self.compute_capability = (
            self._attribute("COMPUTE_CAPABILITY_MAJOR"),
            self._attribute("COMPUTE_CAPABILITY_MINOR"),
        )
        self._loaded: dict[Kernel, LoadedKernel] = {}

    def _attribute(self, name: str) -> int:
        attribute = getattr(_ATTRIBUTE, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(_check(cu.cuDeviceGetAttribute(attribute, self._device)))

    def stream(self) -> Stream:
        """Return a new stream."""
        return Stream(self)

    def empty(self, shape, dtype) -> DeviceArray:
        """Return memory that nobody has written."""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        dtype = np.dtype(dtype)
        memory = _Memory(max(1, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize))
        return DeviceArray(memory.address, shape, dtype, memory)

    def pinned(self, shape, dtype) -> np.ndarray:
        """Return page-locked host memory."""
        dtype = np.dtype(dtype)
        num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        memory = np.asarray(_PinnedMemory(max(1, num_bytes)))
        return memory[:num_bytes].view(dtype).reshape(shape)

    def memory_bytes(self) -> tuple[int, int]:
        """Return the free and the total bytes of the device."""
        free, total = _check(cu.cuMemGetInfo())
        return int(free), int(total)

    def load(self, kernel: Kernel) -> LoadedKernel:
        """Return a kernel that is ready to launch; the first time it is compiled and loaded."""
        if kernel not in self._loaded:
            code = compile_cached(kernel, self.compute_capability)
            library = _check(cu.cuLibraryLoadData(code.cubin, [], [], 0, [], [], 0))
            handle = _check(cu.cuLibraryGetKernel(library, code.entry.encode()))
            function = _check(cu.cuKernelGetFunction(handle))  # loads it now, not in a capture
            use = [
                int(_check(cu.cuFuncGetAttribute(attribute, function)))
                for attribute in (
                    cu.CUfunction_attribute.CU_FUNC_ATTRIBUTE_NUM_REGS,
                    cu.CUfunction_attribute.CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES,
                    cu.CUfunction_attribute.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
                )
            ]
            self._loaded[kernel] = LoadedKernel(function, *use)
        return self._loaded[kernel]
