"""A simulator of CUDA blocks on the CPU, one block at a time.

A thread is a greenlet that runs until it meets a barrier or an operation of its warp, so a run is
deterministic. It finds what a device would hide or hang on: a barrier that some threads never
reach, lanes of a warp at different operations, vector access that is not aligned or out of range,
memory read before it is written (shared, local and device memory start as 0xCD bytes).

It cannot show what depends on the compiler: accidental float64, spills, contracted sums.
"""

import contextvars
from collections import deque

import numpy as np

try:
    import greenlet
except ImportError:  # pragma: no cover (the test environment has it)
    greenlet = None

WARP_SIZE = 32
POISON = 0xCD


class SimulatedFault(RuntimeError):
    """A kernel did what would hang, corrupt memory or be undefined on a device."""


class Index:
    """A place in a grid or block; kernels here use one dimension."""

    __slots__ = ("x",)

    def __init__(self, x: int):
        self.x = x


class Thread:
    """One thread: where it is, and what it waits for."""

    __slots__ = ("index", "lane", "warp", "fiber", "waits_at", "done")

    def __init__(self, index: int, warp: "Warp"):
        self.index = Index(index)
        self.lane = index % WARP_SIZE
        self.warp = warp
        self.waits_at, self.done = None, False


class Warp:
    """The operation that lanes of a warp are gathering at."""

    __slots__ = ("operation", "values", "waiting", "lanes")

    def __init__(self):
        self.operation, self.values, self.waiting, self.lanes = None, {}, [], 0


class Block:
    """One block in flight: threads, shared arrays, and the barrier."""

    def __init__(self, function, arguments, index: int, num_threads: int, grid: int):
        self.function, self.arguments = function, arguments
        self.index, self.grid, self.size = Index(index), Index(grid), Index(num_threads)
        self.shared, self.waiting, self.votes = {}, [], []
        self.ready = deque()
        self.current = None
        self.threads = []
        for thread in range(num_threads):
            warp = self.threads[-1].warp if thread % WARP_SIZE else Warp()
            warp.lanes += 1
            self.threads.append(Thread(thread, warp))

    def run(self) -> None:
        """Run every thread to its end, in turns."""
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

    def _body(self, thread: Thread) -> None:
        try:
            self.function(*self.arguments)
        except Exception as error:
            place = f"block {self.index.x}, thread {thread.index.x}"
            raise SimulatedFault(f"{type(error).__name__}: {error} ({place})") from error
        thread.done = True

    def _park(self, place: str) -> None:
        thread = self.current
        thread.waits_at = place
        thread.fiber.parent.switch()
        thread.waits_at = None

    def barrier(self, vote=None) -> list:
        """Wait for every thread of the block; return what they brought."""
        votes = self.votes
        votes.append(vote)
        if len(votes) == self.size.x:
            self.ready.extend(self.waiting)
            self.waiting, self.votes = [], []
        else:
            self.waiting.append(self.current)
            self._park("syncthreads")
        return votes

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


_block: Block | None = None


def current_block() -> Block:
    """Return the block whose thread is running."""
    return _block


def run_grid(function, grid: int, num_threads: int, arguments: tuple) -> None:
    """Run every block of a launch, one after the other."""
    global _block
    if greenlet is None:
        raise SimulatedFault("the simulator needs greenlet: pip install 'numbadsd[sim]'")
    assert _block is None and num_threads % WARP_SIZE == 0
    try:
        with np.errstate(all="ignore"):
            for index in range(grid):
                _block = Block(function, arguments, index, num_threads, grid)
                _block.run()
    finally:
        _block = None


def poisoned(shape, dtype) -> np.ndarray:
    """Return an array of memory that nobody has written."""
    array = np.empty(shape, dtype)
    array.reshape(-1).view(np.uint8).fill(POISON)
    return array
