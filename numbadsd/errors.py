"""The exceptions that are numbadsd's own; wrong arguments raise ValueError."""


class NumbadsdError(Exception):
    """Base of all exceptions that only numbadsd raises."""


class PoolExhausted(NumbadsdError):
    """A reservation needs more pages than are free; nothing was changed.

    Parameters
    ----------
    needed_pages, free_pages, capacity_pages : int
        What was asked for, what was free, and the size of the pool.
    """

    def __init__(self, needed_pages: int, free_pages: int, capacity_pages: int):
        self.needed_pages = needed_pages
        self.free_pages = free_pages
        self.capacity_pages = capacity_pages
        super().__init__(
            f"the pool has {free_pages} free pages of {capacity_pages}, {needed_pages} are needed"
        )


class PageStateError(NumbadsdError):
    """A page was used in a state that forbids it: freed twice, or read while free."""


class StorageUnavailable(NumbadsdError):
    """A metadata-only pool (``allocate_storage=False``) was asked for keys or values."""


class IntegrityError(NumbadsdError):
    """`check_integrity` found a page that is lost, shared, or wrongly counted."""


class CudaUnavailable(NumbadsdError):
    """A GPU path was asked for where it cannot run.

    Parameters
    ----------
    reason : str
        Why it cannot run here.
    remedy : str
        What the reader can do about it.
    """

    def __init__(self, reason: str, remedy: str):
        self.reason = reason
        self.remedy = remedy
        super().__init__(f"{reason}; {remedy}")


class CaptureError(NumbadsdError, ValueError):
    """A file of captured tensors cannot be used; the message names the file and the fault."""


class TraceError(NumbadsdError, ValueError):
    """A file of request arrivals cannot be used; the message names the file, the row, the fault."""


class SchedulerStuck(NumbadsdError):
    """Work is pending and a step could do none of it; this is a fault of the scheduler.

    Parameters
    ----------
    step : int
        The step that would have done nothing.
    num_waiting, num_active : int
        Requests that wait, and requests that hold pages.
    free_pages : int | None
        Pages of the budget that nobody holds; None when it is unlimited.
    """

    def __init__(self, step: int, num_waiting: int, num_active: int, free_pages: int | None):
        self.step = step
        self.num_waiting = num_waiting
        self.num_active = num_active
        self.free_pages = free_pages
        free = "unlimited" if free_pages is None else free_pages
        super().__init__(
            f"step {step} would do nothing while {num_waiting} requests wait and {num_active} "
            f"are active (free pages: {free})"
        )


class EngineError(NumbadsdError):
    """A backend failed in a step; what was active then is lost, what waited was not started.

    Parameters
    ----------
    step : int
        The step that failed.
    error : Exception
        What the backend raised.
    num_failed, num_waiting : int
        Requests that were active, and requests that waited.
    """

    def __init__(self, step: int, error: Exception, num_failed: int, num_waiting: int):
        self.step = step
        self.num_failed = num_failed
        self.num_waiting = num_waiting
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        super().__init__(
            f"step {step} failed ({what}); {num_failed} active requests are lost, "
            f"{num_waiting} that waited were not started"
        )
