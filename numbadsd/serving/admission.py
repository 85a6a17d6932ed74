"""Who is admitted next: the queue of waiting requests, first come first served or packed."""

from collections import OrderedDict
from collections.abc import Callable
from itertools import islice

from numbadsd.serving.request import Progress

POLICIES = ("fifo", "pack")


class WaitingQueue:
    """Requests that wait for pages or for a place in the batch, in order of arrival.

    Parameters
    ----------
    policy : {"fifo", "pack"}
        Strictly in order, or the shortest of the first `look_ahead` that fit.
    look_ahead : int
        How many of the first waiting requests "pack" chooses from.
    fifo_every : int
        Every so many rounds are in order under "pack" too.

    Notes
    -----
    A round is a `take` that admits somebody. One in order that cannot admit the first request
    stays due until it can: with so many rounds counted by steps instead, short requests would
    keep the budget full, and a long one at the head would never find it free. So a request at the
    head is overtaken in fewer than `fifo_every` rounds.
    """

    def __init__(self, policy: str, look_ahead: int, fifo_every: int):
        assert policy in POLICIES, policy
        self._is_pack = policy == "pack"
        self._look_ahead = look_ahead
        self._fifo_every = fifo_every
        self._waiting: OrderedDict[int, Progress] = OrderedDict()
        self._num_rounds = 0
        self._is_blocked = False  # nobody fitted, and nothing has changed since

    def __len__(self) -> int:
        return len(self._waiting)

    def ids(self) -> tuple[int, ...]:
        """Return who waits, in order."""
        return tuple(self._waiting)

    def push(self, progress: Progress) -> None:
        """Put a request that arrived at the end."""
        self._waiting[progress.request_id] = progress
        self._is_blocked = False

    def push_front(self, progress: Progress) -> None:
        """Put a request that was preempted at the head."""
        self.push(progress)
        self._waiting.move_to_end(progress.request_id, last=False)

    def remove(self, request_id: int) -> None:
        """Take out a request that waits no more."""
        del self._waiting[request_id]
        self._is_blocked = False

    def pages_came_free(self) -> None:
        """Say that somebody who did not fit before may fit now."""
        self._is_blocked = False

    def take(self, num_places: int, reserve: Callable[[Progress], bool]) -> list[Progress]:
        """Return those who are admitted, in order; `reserve` gets their pages, or says no."""
        if self._is_blocked or num_places <= 0 or not self._waiting:
            return []
        in_order = not self._is_pack or (self._num_rounds + 1) % self._fifo_every == 0
        taken: list[Progress] = []
        for progress in self._waiting.values() if in_order else self._shortest_first():
            if reserve(progress):
                taken.append(progress)
                if len(taken) == num_places:
                    break
            elif in_order:
                break  # nobody overtakes
        for progress in taken:
            del self._waiting[progress.request_id]
        self._num_rounds += bool(taken)
        self._is_blocked = not taken
        return taken

    def _shortest_first(self) -> list[Progress]:
        """Return the first waiting requests by total length; the sort keeps equals in order."""
        window = islice(self._waiting.values(), self._look_ahead)
        return sorted(window, key=lambda progress: progress.request.total_tokens)
