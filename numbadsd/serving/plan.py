"""What a scheduler is told, its configuration, and what it tells: the plan of one step."""

from bisect import bisect_left
from dataclasses import dataclass
from typing import NamedTuple

from numbadsd.config import check, check_integer
from numbadsd.serving.admission import POLICIES
from numbadsd.serving.budget import KvBudget
from numbadsd.serving.request import Progress

PREFILLS = ("none", "blocking", "chunked", "packed")


@dataclass(frozen=True)
class SchedulerConfig:
    """How requests are admitted and prefilled.

    Parameters
    ----------
    max_active : int
        Requests that hold pages at once.
    page_size : int
        Tokens of a page.
    capacity_pages : int | None
        Pages that requests may hold together; None for no limit.
    prefill : {"none", "blocking", "chunked", "packed"}
        Prompts cost nothing; they run whole in the step that admits them; or in chunks beside
        the decode. To the scheduler "packed" is "chunked".
    prefill_chunk_tokens : int
        Prompt tokens of a step, shared by all prompts in prefill.
    admission : {"fifo", "pack"}
        See `WaitingQueue`, also for `look_ahead` and `fifo_every`.
    preempt : bool
        Reserve pages as a request grows, and preempt the youngest one when there are none;
        otherwise reserve all that it will ever need at its admission.
    """

    max_active: int = 32
    page_size: int = 16
    capacity_pages: int | None = None
    prefill: str = "none"
    prefill_chunk_tokens: int = 256
    admission: str = "fifo"
    look_ahead: int = 64
    fifo_every: int = 8
    preempt: bool = False

    def __post_init__(self):
        for name in ("max_active", "prefill_chunk_tokens", "look_ahead", "fifo_every"):
            check_integer(name, getattr(self, name), 1)
        for name, names in (("prefill", PREFILLS), ("admission", POLICIES)):
            value = getattr(self, name)
            check(value in names, name, value, "one of " + ", ".join(names))
        KvBudget(self.capacity_pages, self.page_size)  # checks its own arguments


class Chunk(NamedTuple):
    """A run of a prompt's tokens that one step prefills."""

    request_id: int
    start: int
    count: int
    is_last: bool


class StepPlan(NamedTuple):
    """What a backend does in one step, in the order of the fields.

    Attributes
    ----------
    number : int
        Steps completed before this one; one that failed is planned anew under its number.
    dropped : tuple of int
        Cancelled while they were active: release them.
    preempted : tuple of int
        Release them too; they wait again, and their prompts then hold what they had made.
    admitted : tuple of int
        They hold pages from now on.
    chunks : tuple of Chunk
        What to prefill; at most one chunk a request.
    decode : tuple of int
        Make one token of each and append it; in admission order. The same object as in the step
        before while nobody joined or left.
    """

    number: int
    dropped: tuple[int, ...]
    preempted: tuple[int, ...]
    admitted: tuple[int, ...]
    chunks: tuple[Chunk, ...]
    decode: tuple[int, ...]


class DecodeBatch:
    """Who decodes, in admission order; a tuple that is made anew only when it changed."""

    def __init__(self):
        self._orders: list[int] = []
        self._ids: list[int] = []
        self._batch: tuple[int, ...] | None = ()

    def add(self, progress: Progress) -> None:
        """Let a request decode from the next step on."""
        position = bisect_left(self._orders, progress.order)
        self._orders.insert(position, progress.order)
        self._ids.insert(position, progress.request_id)
        self._batch = None

    def remove(self, progress: Progress) -> None:
        """Let a request decode no more."""
        position = bisect_left(self._orders, progress.order)
        assert self._ids[position] == progress.request_id, "it does not decode"
        del self._orders[position], self._ids[position]
        self._batch = None

    def ids(self) -> tuple[int, ...]:
        """Return who decodes."""
        if self._batch is None:
            self._batch = tuple(self._ids)
        return self._batch
