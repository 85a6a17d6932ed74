"""What translated PTX runs on: memory that is checked, lanes of a warp, a driver that launches it.

Blocks, barriers and the gathering of lanes are those of the simulator (`sim.py`).
"""

import bisect
import ctypes
import weakref
from pathlib import Path

import numpy as np

from numbadsd.kernels.cuda import sim, sim_words
from numbadsd.kernels.cuda.launch import DeviceArray, Kernel
from numbadsd.kernels.cuda.sim_driver import SimDriver, SimStream
from numbadsd.kernels.cuda.slots import ArgumentSlots
from tests.ptx.translate import Program, translate

_INTEGERS = {2: ctypes.c_uint16, 4: ctypes.c_uint32, 8: ctypes.c_uint64}
_VECTORS = {(size, n): kind * n for size, kind in _INTEGERS.items() for n in (1, 2, 4)}
_ALIGN_BYTES = 256  # of an allocation, as on a device


class Memory:
    """Memory whose every access is whole, aligned to its size and in range."""

    name = "device"

    def __init__(self):
        self._starts, self._ends = [], {}

    def add(self, address: int, num_bytes: int, owner: object) -> None:
        """Let an allocation be accessed as long as its owner lives."""
        bisect.insort(self._starts, address)
        self._ends[address] = address + num_bytes
        weakref.finalize(owner, self._remove, address)

    def _remove(self, address: int) -> None:
        self._starts.remove(address)
        del self._ends[address]

    def _holds(self, address: int, num_bytes: int) -> bool:
        place = bisect.bisect_right(self._starts, address) - 1
        return place >= 0 and address + num_bytes <= self._ends[self._starts[place]]

    def _view(self, address: int, size: int, count: int):
        return _VECTORS[size, count].from_address(address)

    def _words(self, address: int, size: int, count: int):
        num_bytes = size * count
        if address % num_bytes:
            fault = "is not aligned"
        elif not self._holds(address, num_bytes):
            fault = "is out of range"
        else:
            return self._view(address, size, count)
        raise sim.SimulatedFault(f"{self.name} access of {num_bytes} bytes at {address:#x} {fault}")

    def load(self, address: int, size: int, count: int) -> list[int]:
        """Return `count` integers of `size` bytes."""
        return self._words(address, size, count)[:]

    def store(self, address: int, size: int, values: list[int]) -> None:
        """Store integers of `size` bytes."""
        self._words(address, size, len(values))[:] = values


class SharedMemory(Memory):
    """The shared memory of one block, from address 0 on."""

    name = "shared"

    def __init__(self, num_bytes: int):
        self._bytes = bytearray([sim.POISON]) * num_bytes

    def _holds(self, address: int, num_bytes: int) -> bool:
        return 0 <= address and address + num_bytes <= len(self._bytes)

    def _view(self, address: int, size: int, count: int):
        return _VECTORS[size, count].from_buffer(self._bytes, address)


# ---- the names that translated PTX uses


def divide(a: int, b: int) -> int:
    """Return a / b without its fraction."""
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def f32_bits(number: np.float32) -> int:
    """Return the bits of a float32."""
    return int(number.view(np.uint32))


def fmin(a, b):
    """Return the smaller number, the other one where one is NaN."""
    return np.fmin(a, b)


def shfl_bfly(site: str, value: int, mask: int) -> int:
    """Return the value of the lane whose number differs from ours by `mask`."""
    block = sim.current_block()
    return block.gather(site, value)[block.current.lane ^ mask]


def shfl_idx(site: str, value: int, lane: int) -> int:
    """Return the value of a lane."""
    return sim.current_block().gather(site, value)[lane & 31]


def shfl_up(site: str, value: int, delta: int) -> int:
    """Return the value of the lane `delta` below; our own where there is none."""
    block = sim.current_block()
    return block.gather(site, value).get(block.current.lane - delta, value)


def ballot(site: str, predicate: bool) -> int:
    """Return a bit for each lane whose predicate is true."""
    votes = sim.current_block().gather(site, predicate)
    return sum(1 << lane for lane, vote in votes.items() if vote)


def sync_warp(site: str) -> None:
    """Wait for the warp."""
    sim.current_block().gather(site, None)


def sync_threads() -> None:
    """Wait for the block."""
    sim.current_block().barrier()


_WORDS = {
    name: getattr(sim_words, name)
    for name in (
        "bits_to_f32 div_rn ex2 f16_low float32 fma fmax lg2 mma_bf16 mma_f16 pack_bf16 pack_f16 "
        "sqrt_rn to_bf16 to_f16"
    ).split()
}
_WORDS |= {
    f.__name__: f
    for f in (ballot, divide, f32_bits, fmin, shfl_bfly, shfl_idx, shfl_up, sync_threads, sync_warp)
}


# ---- launches


class LoadedProgram:
    """A translated kernel, ready to run."""

    def __init__(self, program: Program):
        self.program = program
        names = dict(_WORDS)
        exec(compile(program.source, program.entry, "exec"), names)
        self._run = names["run"]

    def run_grid(self, memory: Memory, grid: int, num_threads: int, parameters: list[int]) -> None:
        """Run every thread; parameters are given as their bits."""
        bits = self.program.parameter_bits
        assert all(value >> n == 0 for value, n in zip(parameters, bits, strict=True))

        def thread():
            block = sim.current_block()
            if not block.shared:
                block.shared["all"] = SharedMemory(self.program.shared_bytes)
            shared = block.shared["all"]
            self._run(parameters, memory, shared, block.current.index.x, block.index.x)

        sim.run_grid(thread, grid, num_threads, ())


class PtxStream(SimStream):
    """Work in order; a kernel is run from its PTX."""

    def __init__(self, driver: "PtxDriver"):
        super().__init__()
        self._driver = driver

    def launch(self, kernel: Kernel, grid: int, *arguments) -> None:
        """Run a kernel with `grid` blocks; arguments are laid out as for a device."""
        kernel.check_arguments(arguments)
        slots = ArgumentSlots(kernel)
        slots.fill(arguments)
        loaded, memory = self._driver.load(kernel), self._driver.memory
        self._do(lambda: loaded.run_grid(memory, grid, kernel.num_threads, list(slots.values)))


class PtxDriver(SimDriver):
    """A device whose machine code is PTX, compiled as for `compute_capability`."""

    name = "translated PTX"

    def __init__(self, folder: Path):
        super().__init__()
        self.memory = Memory()
        self._folder = folder  # keeps PTX for other processes
        self._loaded: dict[Kernel, LoadedProgram] = {}

    def stream(self) -> PtxStream:
        """Return a new stream."""
        return PtxStream(self)

    def empty(self, shape, dtype) -> DeviceArray:
        """Return memory that nobody has written; what lies around it is out of range."""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        num_bytes = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        around = sim.poisoned(num_bytes + 2 * _ALIGN_BYTES, np.uint8)
        address = -(-around.ctypes.data // _ALIGN_BYTES) * _ALIGN_BYTES
        self.memory.add(address, num_bytes, around)
        return DeviceArray(address, shape, dtype, around)

    def load(self, kernel: Kernel) -> LoadedProgram:
        """Return a kernel that is ready to launch; the first time it is compiled and translated."""
        if kernel not in self._loaded:
            self._loaded[kernel] = LoadedProgram(translate(self._compiled(kernel)))
        return self._loaded[kernel]

    def _compiled(self, kernel: Kernel) -> str:
        from numbadsd.kernels.cuda.compile import ptx_of

        file = self._folder / f"{kernel.name}.ptx"
        if not file.exists():
            entry, ptx = ptx_of(kernel, self.compute_capability)
            assert f".entry {entry}(" in ptx
            file.write_text(ptx)
        return file.read_text()
