"""How long compiled kernels ran: what is left of a loop's time is the host's share."""

from collections.abc import Callable
from time import perf_counter_ns


class BusyTime:
    """Nanoseconds that this process spent in `timed` kernels since it began."""

    def __init__(self):
        self.ns = 0


BUSY = BusyTime()


def timed(kernel: Callable) -> Callable:
    """Return what calls a compiled kernel and adds its time to `BUSY`.

    The call itself, in which Numba looks at the arguments, counts as the kernel's.
    """

    def call(*arguments):
        start = perf_counter_ns()
        result = kernel(*arguments)
        BUSY.ns += perf_counter_ns() - start
        return result

    return call
