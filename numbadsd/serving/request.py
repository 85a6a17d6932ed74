"""Request: what is asked of the engine, and how far the scheduler has brought it."""

from dataclasses import dataclass
from enum import Enum
from math import isfinite

from numbadsd.config import check, check_integer


class State(str, Enum):
    """Where a request is on its way; the last four are ends."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    FINISHED = "finished"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def is_end(self) -> bool:
        """Whether nothing happens to the request any more."""
        return self not in (State.WAITING, State.PREFILL, State.DECODE)


@dataclass(frozen=True, slots=True)
class Request:
    """One request: a prompt of so many tokens, and so many tokens to make.

    Parameters
    ----------
    request_id : int
        Its name in all of serving; at least 0.
    arrival : float
        When it comes, in the units of the clock: seconds or logical steps; finite, at least 0.
    prompt_tokens, new_tokens : int
        Lengths; at least 1 each.

    Raises
    ------
    ValueError
        Naming the argument, what it got and what it wants.
    """

    request_id: int
    arrival: float
    prompt_tokens: int
    new_tokens: int

    def __post_init__(self):
        # plain Python numbers from here on, whatever array a workload took them from
        for name, low in (("request_id", 0), ("prompt_tokens", 1), ("new_tokens", 1)):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), low))
        arrival = float(self.arrival)
        check(isfinite(arrival) and arrival >= 0, "arrival", arrival, "a finite number from 0 on")
        object.__setattr__(self, "arrival", arrival)

    @property
    def total_tokens(self) -> int:
        """Tokens of its context when it is done."""
        return self.prompt_tokens + self.new_tokens


class Progress:
    """How far the scheduler has brought a request; the scheduler's own, it changes.

    While a request decodes, it makes one token in every step: what it has made follows from the
    step in which it began, and nobody has to count it.

    Attributes
    ----------
    order : int
        Number of its last admission; -1 before the first.
    base_tokens : int
        Tokens it had made when it was admitted last: after a preemption they are prompt.
    made_tokens : int
        Tokens made, without those of the decode that is going on.
    first_decode : int
        Number of the step that made the first token since the last admission; -1 when it does
        not decode.
    prefilled_tokens : int
        Tokens of its prompt that are in its cache.
    lost_tokens : int
        Tokens that the last preemption threw away.
    """

    __slots__ = (
        "request", "state", "order", "base_tokens", "made_tokens", "first_decode",
        "prefilled_tokens", "lost_tokens",
    )  # fmt: skip

    def __init__(self, request: Request):
        self.request = request
        self.state = State.WAITING
        self.order = self.first_decode = -1
        self.base_tokens = self.made_tokens = self.prefilled_tokens = self.lost_tokens = 0

    @property
    def request_id(self) -> int:
        """The request's name."""
        return self.request.request_id

    @property
    def prompt_tokens(self) -> int:
        """Tokens to prefill since the last admission."""
        return self.request.prompt_tokens + self.base_tokens

    def generated(self, num_steps: int) -> int:
        """Return the tokens made in the first `num_steps` steps."""
        if self.first_decode < 0:
            return self.made_tokens
        return self.made_tokens + num_steps - self.first_decode

    def context(self, num_steps: int) -> int:
        """Return the tokens in its cache after `num_steps` steps."""
        return self.prefilled_tokens + self.generated(num_steps) - self.base_tokens

    def stop_decoding(self, num_steps: int) -> None:
        """Write down what was made; doing so twice changes nothing."""
        self.made_tokens = self.generated(num_steps)
        self.first_decode = -1
