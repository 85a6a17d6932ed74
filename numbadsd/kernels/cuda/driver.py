"""The CUDA driver as this library uses it: memory, streams, events, graphs, launches.

`sim_driver.py` has the same classes over host memory. A launch is one driver call with arguments
laid out as numba-cuda's kernels expect them; nothing here allocates, copies or waits unasked.
"""

import ctypes
import weakref
from dataclasses import dataclass

import numpy as np
from cuda.bindings import driver as cu

from numbadsd.kernels.cuda.compile import compile_cached
from numbadsd.kernels.cuda.launch import PARAMETER_DTYPES, DeviceArray, DeviceError, Kernel

_ATTRIBUTE = cu.CUdevice_attribute
_NO_FLAGS = 0
LEGACY_STREAM = 1  # the default stream, by the number that is not 0


def _check(answer, asked: str = ""):
    """Return what a driver call gave, or raise DeviceError with the driver's words."""
    status, *values = answer
    if status != cu.CUresult.CUDA_SUCCESS:
        _, name = cu.cuGetErrorName(status)
        _, text = cu.cuGetErrorString(status)
        message = f"{(name or b'?').decode()}: {(text or b'?').decode()}"
        raise DeviceError(f"{message} (asked for {asked})" if asked else message)
    return values[0] if len(values) == 1 else values


def _free_after(owner, free, handle) -> None:
    """Call free(handle) when `owner` is gone; what lives at exit is left to the process's end."""
    _, context = cu.cuCtxGetCurrent()
    weakref.finalize(owner, _free, context, free, handle).atexit = False


def _free(context, free, handle) -> None:
    """Free in the context of the handle: the garbage collector may run on any thread."""
    cu.cuCtxPushCurrent(context)
    free(handle)
    cu.cuCtxPopCurrent()


class Event:
    """A moment in a stream's work."""

    def __init__(self):
        self.handle = _check(cu.cuEventCreate(_NO_FLAGS))
        _free_after(self, cu.cuEventDestroy, self.handle)

    def elapsed_ms(self, earlier: "Event") -> float:
        """Return the milliseconds since an earlier event; both have happened."""
        return _check(cu.cuEventElapsedTime(earlier.handle, self.handle))

    def synchronize(self) -> None:
        """Wait until the event has happened."""
        _check(cu.cuEventSynchronize(self.handle))


class Graph:
    """Work that was recorded once and is started by one call."""

    def __init__(self, recorded, keep: list):
        self._keep = keep
        instantiated = cu.cuGraphInstantiate(recorded, _NO_FLAGS)
        cu.cuGraphDestroy(recorded)
        self.handle = _check(instantiated)
        _free_after(self, cu.cuGraphExecDestroy, self.handle)


@dataclass(frozen=True)
class LoadedKernel:
    """A kernel on the device, and what it uses there."""

    handle: object
    registers: int
    local_bytes: int
    shared_bytes: int


class Stream:
    """Work in order: a new stream, or the one of another library that has this number."""

    def __init__(self, driver: "CudaDriver", number: int | None = None):
        self.driver = driver
        if number is None:
            flags = cu.CUstream_flags.CU_STREAM_NON_BLOCKING
            self.handle = _check(cu.cuStreamCreate(int(flags)))
            _free_after(self, cu.cuStreamDestroy, self.handle)
        else:
            self.handle = cu.CUstream(number or LEGACY_STREAM)
        self._captured: list | None = None  # what a graph has to keep alive

    def launch(self, kernel: Kernel, grid: int, *arguments) -> None:
        """Run a kernel with `grid` blocks; with 0 nothing is done."""
        kernel.check_arguments(arguments)
        if grid == 0:  # the driver refuses it
            return
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

    def wait_for(self, number: int) -> None:
        """Let what follows start after the work that another stream has now."""
        if number != int(self.handle):
            event = Event()
            _check(cu.cuEventRecord(event.handle, cu.CUstream(number)))
            _check(cu.cuStreamWaitEvent(self.handle, event.handle, _NO_FLAGS))

    def synchronize(self) -> None:
        """Wait for all work."""
        _check(cu.cuStreamSynchronize(self.handle))

    def capture(self, function) -> Graph:
        """Return the work that `function` gives to this stream, recorded and not done."""
        # relaxed: memory that the garbage collector frees meanwhile does not spoil the capture
        mode = cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        _check(cu.cuStreamBeginCapture(self.handle, mode))
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
        return Graph(_check(cu.cuStreamEndCapture(self.handle)), kept)

    def replay(self, graph: Graph) -> None:
        """Do a graph's work."""
        _check(cu.cuGraphLaunch(graph.handle, self.handle))
        self._keep(graph)


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


def _size(shape) -> int:
    return int(np.prod(shape, dtype=object))  # exact: a size that wraps around would be small


class _Memory:
    """An allocation, freed with its last user."""

    def __init__(self, num_bytes: int):
        self.address = int(_check(cu.cuMemAlloc(num_bytes), f"{num_bytes} bytes"))
        _free_after(self, cu.cuMemFree, self.address)


class _PinnedMemory:
    """Page-locked host memory, freed with its last user."""

    def __init__(self, num_bytes: int):
        answer = cu.cuMemHostAlloc(num_bytes, _NO_FLAGS)
        self.address = int(_check(answer, f"{num_bytes} page-locked bytes"))
        _free_after(self, cu.cuMemFreeHost, self.address)
        self.__array_interface__ = {
            "shape": (num_bytes,), "typestr": "|u1", "data": (self.address, False), "version": 3,
        }  # fmt: skip


class CudaDriver:
    """The first CUDA device of this process, for the thread that makes the driver."""

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

    def stream_of(self, number: int) -> Stream:
        """Return the stream of another library; 0 is the default stream."""
        return Stream(self, number)

    def empty(self, shape, dtype) -> DeviceArray:
        """Return memory that nobody has written."""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        dtype = np.dtype(dtype)
        memory = _Memory(max(1, _size(shape) * dtype.itemsize))
        return DeviceArray(memory.address, shape, dtype, memory)

    def pinned(self, shape, dtype) -> np.ndarray:
        """Return page-locked host memory."""
        dtype = np.dtype(dtype)
        num_bytes = _size(shape) * dtype.itemsize
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
