"""When requests arrive and how long they are: a list of requests, and two ways to draw one."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from numbadsd.config import check, check_integer

UNITS = ("steps", "s")  # logical steps of the engine, or seconds
MAX_TOKENS = 2**31 - 1  # of one prompt, or of one request's decode steps
MAX_SEED = 2**32 - 1


@dataclass(frozen=True, eq=False)
class RequestList:
    """Requests in the order of their arrival; the row of a request is its id.

    Parameters
    ----------
    arrival : ndarray [N] float64
        When each request arrives, in `unit`: finite, none below 0, ascending.
    prompt_tokens, new_tokens : ndarray [N] int64
        Tokens that each request brings, and those it decodes; in [1, 2**31 - 1].
    unit : {"steps", "s"}
        Unit of `arrival`: logical steps or seconds.
    source : dict
        Where the requests come from, in words and numbers that a record can hold.

    Raises
    ------
    ValueError
        Naming the argument, what it got and what it wants.

    Notes
    -----
    The arrays are copies that nobody can write to. Iterating gives ``(arrival, prompt_tokens,
    new_tokens)`` as Python numbers, so that ``enumerate`` gives the ids as well.
    """

    arrival: np.ndarray
    prompt_tokens: np.ndarray
    new_tokens: np.ndarray
    unit: str
    source: dict = field(default_factory=dict)

    def __post_init__(self):
        check(self.unit in UNITS, "unit", self.unit, "one of " + ", ".join(UNITS))
        for name, dtype in (("arrival", "f8"), ("prompt_tokens", "i8"), ("new_tokens", "i8")):
            values = np.array(getattr(self, name), dtype)
            check(values.ndim == 1, name, f"{values.ndim} dimensions", "1 dimension")
            check(len(values) == len(self.arrival), name, len(values), f"{len(self.arrival)} rows")
            values.flags.writeable = False
            object.__setattr__(self, name, values)
        in_order = np.isfinite(self.arrival).all() and (np.diff(self.arrival, prepend=0) >= 0).all()
        check(bool(in_order), "arrival", self.arrival, "finite numbers, none below 0, ascending")
        for name in ("prompt_tokens", "new_tokens"):
            tokens = getattr(self, name)
            in_range = bool(((tokens >= 1) & (tokens <= MAX_TOKENS)).all())
            check(in_range, name, tokens, f"integers in [1, {MAX_TOKENS}]")

    def __len__(self) -> int:
        return len(self.arrival)

    def __iter__(self) -> Iterator[tuple[float, int, int]]:
        columns = (self.arrival, self.prompt_tokens, self.new_tokens)
        return zip(*(column.tolist() for column in columns), strict=True)


def reference_requests(
    num_requests: int,
    arrival_window: int,
    min_prompt_tokens: int,
    max_prompt_tokens: int,
    min_decode_steps: int,
    max_decode_steps: int,
    seed: int = 7,
) -> RequestList:
    """Draw the reference's workload: arrivals and lengths uniform, every bound included.

    Parameters
    ----------
    num_requests : int
        N.
    arrival_window : int
        Last logical step at which a request may arrive; the first is 0.
    min_prompt_tokens, max_prompt_tokens : int
        Bounds of the tokens that a request brings.
    min_decode_steps, max_decode_steps : int
        Bounds of the tokens that a request decodes.
    seed : int
        Of NumPy's PCG64.

    Returns
    -------
    RequestList
        Arrivals in "steps". The reference sorts by (arrival, id) and keeps the ids it drew; here
        the same order decides, and the row after sorting is the id.

    Raises
    ------
    ValueError
        Naming the argument, what it got and what it wants.
    """
    source = {"workload": "reference"} | locals()
    rng = _generator(seed)
    lengths = _draw_lengths(
        rng, num_requests, min_prompt_tokens, max_prompt_tokens, min_decode_steps, max_decode_steps
    )
    check_integer("arrival_window", arrival_window, 0)
    steps = rng.integers(0, arrival_window, size=num_requests, endpoint=True)
    order = np.argsort(steps, kind="stable")  # equal steps stay in the order they were drawn
    prompt_tokens, new_tokens = lengths
    return RequestList(steps[order], prompt_tokens[order], new_tokens[order], "steps", source)


def poisson_requests(
    num_requests: int,
    min_prompt_tokens: int,
    max_prompt_tokens: int,
    min_decode_steps: int,
    max_decode_steps: int,
    request_rate: float,
    burstiness: float = 1.0,
    seed: int = 7,
) -> RequestList:
    """Draw requests with lengths uniform and gaps ~ Gamma(burstiness, 1 / (rate * burstiness)).

    Parameters
    ----------
    num_requests : int
        N.
    min_prompt_tokens, max_prompt_tokens : int
        Bounds, both included, of the tokens that a request brings.
    min_decode_steps, max_decode_steps : int
        Bounds, both included, of the tokens that a request decodes.
    request_rate : float
        Requests per second, on average; infinity lets all arrive at 0.
    burstiness : float
        Shape of the gaps: 1 is a Poisson process, less is burstier; their coefficient of variation
        is ``1 / sqrt(burstiness)``.
    seed : int
        Of NumPy's PCG64. The lengths do not depend on the rate, and the gaps at two rates differ
        by a factor: a sweep over rates varies the rate alone.

    Returns
    -------
    RequestList
        Arrivals in seconds; the first comes one gap after 0.

    Raises
    ------
    ValueError
        Naming the argument, what it got and what it wants.
    """
    source = {"workload": "poisson"} | locals()
    check(request_rate > 0, "request_rate", request_rate, "above 0")  # NaN is not
    check(0 < burstiness < np.inf, "burstiness", burstiness, "above 0 and finite")
    rng = _generator(seed)
    prompt_tokens, new_tokens = _draw_lengths(
        rng, num_requests, min_prompt_tokens, max_prompt_tokens, min_decode_steps, max_decode_steps
    )
    with np.errstate(over="ignore"):  # found just below
        arrival = np.cumsum(rng.standard_gamma(burstiness, num_requests) / burstiness)
        arrival /= request_rate
    finite = bool(np.isfinite(arrival).all())
    check(finite, "request_rate", request_rate, "a rate and burstiness whose gaps are finite")
    return RequestList(arrival, prompt_tokens, new_tokens, "s", source)


def _generator(seed: int) -> np.random.Generator:
    """The generator that a seed stands for; the same numbers in every version of NumPy's PCG64."""
    return np.random.Generator(np.random.PCG64(check_integer("seed", seed, 0, MAX_SEED)))


def _draw_lengths(
    rng: np.random.Generator,
    num_requests: int,
    min_prompt_tokens: int,
    max_prompt_tokens: int,
    min_decode_steps: int,
    max_decode_steps: int,
) -> tuple[np.ndarray, np.ndarray]:  # [N] int64 each
    """Prompt tokens and decode steps, drawn before all else: equal seeds give equal lengths."""
    check_integer("num_requests", num_requests, 1)
    for name, low, high in (
        ("prompt_tokens", min_prompt_tokens, max_prompt_tokens),
        ("decode_steps", min_decode_steps, max_decode_steps),
    ):
        check_integer(f"max_{name}", high, 1, MAX_TOKENS)
        check_integer(f"min_{name}", low, 1, MAX_TOKENS)
        check(low <= high, f"min_{name}", low, f"at most max_{name} = {high}")
    prompts = rng.integers(min_prompt_tokens, max_prompt_tokens, num_requests, endpoint=True)
    steps = rng.integers(min_decode_steps, max_decode_steps, num_requests, endpoint=True)
    return prompts, steps
