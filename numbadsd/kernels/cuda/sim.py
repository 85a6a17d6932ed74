"""The words that CUDA kernels are written in, on the CPU: a simulator of one block at a time.

A thread is a greenlet that runs until it meets a barrier or an operation of its warp, so a run is
deterministic. It finds what a device would hide or hang on: a barrier that some threads never
reach, lanes of a warp at different operations, vector access that is not aligned or out of range,
memory read before it is written (shared, local and device memory start as 0xCD bytes).

It cannot show what depends on the compiler: accidental float64, spills, contracted sums.
"""

import contextvars
import sys
from collections import deque

import numpy as np

try:
    import greenlet
except ImportError:  # pragma: no cover (the test environment has it)
    greenlet = None

__all__ = [
    "add_rn", "ballot", "bf16_high", "bf16_low", "bits_to_f32", "cuda", "device", "div_rn", "ex2",
    "f16_high", "f16_low", "f32_to_bits", "float32", "fma", "fmax", "int32", "int64", "lg2",
    "load4", "lowest_lanes", "mul_rn", "popc", "quotient", "shfl_up", "shfl_xor", "sqrt_rn",
    "store4", "stream4", "to_bf16", "to_f16", "uint32",
]  # fmt: skip

WARP_SIZE = 32
POISON = 0xCD
float32, int32, int64, uint32 = np.float32, np.int32, np.int64, np.uint32


class SimulatedFault(RuntimeError):
    """A kernel did what would hang, corrupt memory or be undefined on a device."""


class _Index:
    """A place in a grid or block; kernels here use one dimension."""

    __slots__ = ("x",)

    def __init__(self, x: int):
        self.x = x


class _Thread:
    """One thread: where it is, and what it waits for."""

    __slots__ = ("index", "lane", "warp", "fiber", "waits_at", "done")

    def __init__(self, index: int, warp: "_Warp"):
        self.index = _Index(index)
        self.lane = index % WARP_SIZE
        self.warp = warp
        self.waits_at, self.done = None, False


class _Warp:
    """The operation that lanes of a warp are gathering at."""

    __slots__ = ("operation", "values", "waiting", "lanes")

    def __init__(self):
        self.operation, self.values, self.waiting, self.lanes = None, {}, [], 0


class _Block:
    """One block in flight: threads, shared arrays, and the barrier."""

    def __init__(self, function, arguments, index: int, num_threads: int, grid: int):
        self.function, self.arguments = function, arguments
        self.index, self.grid, self.size = _Index(index), _Index(grid), _Index(num_threads)
        self.shared, self.waiting, self.votes = {}, [], []
        self.live = num_threads
        self.ready = deque()
        self.current = None
        self.threads = []
        for thread in range(num_threads):
            warp = self.threads[-1].warp if thread % WARP_SIZE else _Warp()
            warp.lanes += 1
            self.threads.append(_Thread(thread, warp))

    def run(self) -> None:
        hub = greenlet.getcurrent()
        for thread in self.threads:
            thread.fiber = greenlet.greenlet(self._body, hub)
            thread.fiber.gr_context = contextvars.copy_context()  # NumPy's errstate is in it
            self.ready.append(thread)
        try:
            while self.ready:
                self.current = self.ready.popleft()
                self.current.fiber.switch(self.current)
            self._check_all_done()
        finally:
            for thread in self.threads:
                if not thread.fiber.dead and thread.fiber:
                    thread.fiber.throw(greenlet.GreenletExit)

    def _body(self, thread: _Thread) -> None:
        try:
            self.function(*self.arguments)
        except Exception as error:
            place = f"block {self.index.x}, thread {thread.index.x}"
            raise SimulatedFault(f"{type(error).__name__}: {error} ({place})") from error
        thread.done = True
        self.live -= 1
        self._release_barrier()

    def _park(self, place: str) -> None:
        thread = self.current
        thread.waits_at = place
        thread.fiber.parent.switch()
        thread.waits_at = None

    def barrier(self, vote=None) -> list:
        """Wait for every live thread of the block; return what they brought."""
        votes = self.votes
        votes.append(vote)
        self.waiting.append(self.current)
        if not self._release_barrier(keep=self.current):
            self._park("syncthreads")
        return votes

    def _release_barrier(self, keep: _Thread | None = None) -> bool:
        """Wake the barrier's threads when all live ones are there; `keep` runs on."""
        if not self.waiting or len(self.waiting) < self.live:
            return False
        self.ready.extend(thread for thread in self.waiting if thread is not keep)
        self.waiting, self.votes = [], []
        return True

    def gather(self, operation: str, value) -> dict:
        """Wait for all lanes of the warp; return every lane's value by lane."""
        thread = self.current
        warp = thread.warp
        if warp.operation not in (None, operation):
            message = f"lane {thread.lane} is at {operation}, others at {warp.operation}"
            raise SimulatedFault(f"warp divergence: {message}")
        warp.operation = operation
        values = warp.values
        values[thread.lane] = value
        if len(values) == warp.lanes:
            self.ready.extend(warp.waiting)
            warp.operation, warp.values, warp.waiting = None, {}, []
        else:
            warp.waiting.append(thread)
            self._park(operation)
        return values

    def _check_all_done(self) -> None:
        places = {}
        for thread in self.threads:
            if not thread.done:
                places.setdefault(thread.waits_at, []).append(thread.index.x)
        if places:
            held = "; ".join(f"{len(t)} at {p}, first {t[0]}" for p, t in places.items())
            raise SimulatedFault(f"deadlock in block {self.index.x}: threads wait: {held}")


_block: _Block | None = None


def run_grid(function, grid: int, num_threads: int, arguments: tuple) -> None:
    """Run every block of a launch, one after the other."""
    global _block
    if greenlet is None:
        raise SimulatedFault("the simulator needs greenlet: pip install 'numbadsd[sim]'")
    assert _block is None and num_threads % WARP_SIZE == 0
    try:
        with np.errstate(all="ignore"):
            for index in range(grid):
                _block = _Block(function, arguments, index, num_threads, grid)
                _block.run()
    finally:
        _block = None


def poisoned(shape, dtype) -> np.ndarray:
    """Return an array of memory that nobody has written."""
    array = np.empty(shape, dtype)
    array.reshape(-1).view(np.uint8).fill(POISON)
    return array


class _Shared:
    @staticmethod
    def array(shape, dtype, alignment=None):
        """Return the block's array of this call, the same for every thread."""
        frame = sys._getframe(1)
        key = (frame.f_code, frame.f_lasti)
        if key not in _block.shared:
            _block.shared[key] = poisoned(shape, dtype)
        return _block.shared[key]


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
    threadIdx = property(lambda self: _block.current.index)
    blockIdx = property(lambda self: _block.index)
    blockDim = property(lambda self: _block.size)
    gridDim = property(lambda self: _block.grid)

    @staticmethod
    def syncthreads():
        _block.barrier()

    @staticmethod
    def syncwarp():
        _block.gather("syncwarp", None)


cuda = _Cuda()


def device(function):
    """A function that kernels call needs no compiler here."""
    return function


# ---- arithmetic, as the instructions of ptx.py define it


def _f32(operation):
    return lambda *numbers: np.float32(operation(*(np.float32(n) for n in numbers)))


fma = _f32(lambda a, b, c: np.float64(a) * np.float64(b) + np.float64(c))
add_rn, mul_rn, div_rn = _f32(np.add), _f32(np.multiply), _f32(np.divide)
sqrt_rn, lg2, fmax = _f32(np.sqrt), _f32(np.log2), _f32(np.fmax)


def ex2(x):
    """Return 2 to the x; subnormal results are 0."""
    power = np.exp2(np.float32(x))
    return np.float32(0.0) if power < np.float32(2.0**-126) else power


def f32_to_bits(x):
    return np.float32(x).view(np.uint32)


def bits_to_f32(word):
    return np.uint32(word).view(np.float32)


def f16_low(word):
    return np.float32(np.uint16(int(word) & 0xFFFF).view(np.float16))


def f16_high(word):
    return np.float32(np.uint16(int(word) >> 16).view(np.float16))


def bf16_low(word):
    return bits_to_f32((int(word) & 0xFFFF) << 16)


def bf16_high(word):
    return bits_to_f32(int(word) & 0xFFFF0000)


def to_f16(x):
    return np.uint32(np.float16(np.float32(x)).view(np.uint16))


def to_bf16(x):
    """Return bfloat16 bits, rounded to nearest even; NaN is the one the device makes."""
    if x != x:
        return np.uint32(0x7FFF)
    bits = int(f32_to_bits(x))
    return np.uint32((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)


def popc(word):
    return int(word).bit_count()


def lowest_lanes(count):
    return np.uint32((1 << int(count)) - 1)


def quotient(a, b):
    return int(a) // int(b)


# ---- operations of a warp


def shfl_xor(value, mask):
    """Return the value of the lane whose number differs from ours by `mask`."""
    values = _block.gather("shfl_xor", np.float32(value))
    return values[_block.current.lane ^ int(mask)]


def shfl_up(value, delta):
    """Return the value of the lane `delta` below; our own where there is none."""
    values = _block.gather("shfl_up", np.uint32(value))
    return values.get(_block.current.lane - int(delta), np.uint32(value))


def ballot(predicate):
    """Return a bit for each lane whose predicate is not 0."""
    values = _block.gather("ballot", int(predicate) != 0)
    return np.uint32(sum(1 << lane for lane, value in values.items() if value))


# ---- vectors of four words


def _quad(words, index):
    index = int(index)
    address = words.ctypes.data + index * words.itemsize
    if index < 0 or index + 4 > words.size or address % 16:
        fault = f"vector access at {index} of {words.size} words"
        raise SimulatedFault(f"{fault}: out of range or not aligned to 16 bytes")
    return words[index : index + 4]


def load4(words, index):
    return tuple(_quad(words, index))


stream4 = load4


def store4(words, index, a, b, c, d):
    _quad(words, index)[:] = (a, b, c, d)
