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
