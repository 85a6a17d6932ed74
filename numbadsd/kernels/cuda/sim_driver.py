"""The simulator behind the interface of `driver.py`: device memory is host memory."""

import ctypes
from contextlib import contextmanager
from time import perf_counter

import numpy as np

from numbadsd.kernels.cuda import sim
from numbadsd.kernels.cuda.launch import PARAMETER_DTYPES, DeviceArray, Kernel

MEMORY_BYTES = 1 << 32


def _view(array: DeviceArray, dtype=None) -> np.ndarray:
    """Return the memory of a device array as a flat host array."""
    if array.nbytes == 0:
        return np.empty(0, dtype or array.dtype)
    buffer = (ctypes.c_uint8 * array.nbytes).from_address(array.address)
    return np.frombuffer(buffer, np.uint8).view(dtype or array.dtype)


class SimEvent:
    """A moment in a stream's work."""

    def __init__(self):
        self._time = 0.0

    def _happen(self) -> None:
        self._time = perf_counter()

    def elapsed_ms(self, earlier: "SimEvent") -> float:
        """Return the milliseconds since an earlier event."""
        return (self._time - earlier._time) * 1e3

    def synchronize(self) -> None:
        """Wait until the event has happened."""


class SimGraph:
    """Work that was recorded once."""

    def __init__(self, work: list):
        self.work = work


class SimStream:
    """Work in order; here it is done at once, unless it is being captured."""

    handle = 1

    def __init__(self):
        self._captured: list | None = None

    def _do(self, work) -> None:
        if self._captured is None:
            work()
        else:
            self._captured.append(work)

    def launch(self, kernel: Kernel, grid: int, *arguments) -> None:
        """Run a kernel with `grid` blocks."""
        kernel.check_arguments(arguments)
        numbers = tuple(map(_argument, kernel.parameters, arguments))
        self._do(lambda: sim.run_grid(kernel.function, grid, kernel.num_threads, numbers))

    def upload(self, target: DeviceArray, source: np.ndarray) -> None:
        """Copy from the host; the source must not change before the copy is done."""
        assert target.nbytes == source.nbytes and source.flags.c_contiguous
        self._do(lambda: np.copyto(_view(target, np.uint8), source.reshape(-1).view(np.uint8)))

    def download(self, target: np.ndarray, source: DeviceArray) -> None:
        """Copy to the host; the target is ready after `synchronize`."""
        assert target.nbytes == source.nbytes and target.flags.c_contiguous
        self._do(lambda: np.copyto(target.reshape(-1).view(np.uint8), _view(source, np.uint8)))

    def copy(self, target: DeviceArray, source: DeviceArray) -> None:
        """Copy within the device."""
        assert target.nbytes == source.nbytes
        self._do(lambda: np.copyto(_view(target, np.uint8), _view(source, np.uint8)))

    def fill(self, target: DeviceArray, byte: int) -> None:
        """Set every byte."""
        self._do(lambda: _view(target, np.uint8).fill(byte))

    def record(self, event: SimEvent | None = None) -> SimEvent:
        """Return an event, a new one or this one, that happens when the work so far is done."""
        event = SimEvent() if event is None else event
        self._do(event._happen)
        return event

    def wait_for(self, number: int) -> None:
        """Let what follows start after the work that another stream has now."""

    def synchronize(self) -> None:
        """Wait for all work."""

    def capture(self, function) -> SimGraph:
        """Return the work that `function` gives to this stream, recorded and not done."""
        self._captured = []
        try:
            function()
            return SimGraph(self._captured)
        finally:
            self._captured = None

    def replay(self, graph: SimGraph) -> None:
        """Do a graph's work."""
        for work in graph.work:
            self._do(work)


class SimDriver:
    """The simulated device."""

    name = "simulator"
    is_simulated = True
    compute_capability = (9, 0)
    num_multiprocessors = 2

    def __init__(self):
        self.version = "none"

    def stream(self) -> SimStream:
        """Return a new stream."""
        return SimStream()

    def stream_of(self, number: int) -> SimStream:
        """Return the stream of another library."""
        return SimStream()

    def empty(self, shape, dtype) -> DeviceArray:
        """Return memory that nobody has written."""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        memory = sim.poisoned(max(1, int(np.prod(shape))), np.dtype(dtype))
        return DeviceArray(memory.ctypes.data, shape, dtype, memory)

    @contextmanager
    def scratch(self, size: int, dtype, stream: SimStream):
        """Give memory for what is given to a stream in this context; lost after that work."""
        memory = self.empty(size, dtype)
        try:
            yield memory
        finally:
            stream.fill(memory, sim.POISON)  # and so it lives until then

    def pinned(self, shape, dtype) -> np.ndarray:
        """Return page-locked host memory."""
        return sim.poisoned(shape, np.dtype(dtype))

    def memory_bytes(self) -> tuple[int, int]:
        """Return the free and the total bytes of the device."""
        return MEMORY_BYTES, MEMORY_BYTES


def _argument(parameter: str, argument):
    dtype = PARAMETER_DTYPES[parameter.removesuffix("[]")]
    if parameter.endswith("[]"):
        return _view(argument, dtype)
    return np.float32(argument) if dtype == np.float32 else int(argument)
