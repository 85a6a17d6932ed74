"""ServingLog: when each request came, waited and got its tokens; and what users make of it."""

import re
from typing import NamedTuple

import numpy as np

from numbadsd.config import check

GOODPUT_METRICS = ("ttft", "tpot", "e2el")
LATENCIES = ("ttft", "tpot", "itl", "e2el", "queue_wait")
PERCENTILES = (50, 95, 99)
NUMBER = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,12})?")


class ServingLog:
    """Events of a run, times in seconds; what it costs does not depend on how many decode.

    A request's tokens are logged with the step that made them: who decoded, and when it was over.
    """

    def __init__(self):
        self.arrivals: dict[int, float] = {}
        self.prompt_tokens: dict[int, int] = {}
        self.admissions: dict[int, float] = {}
        self.steps: list[tuple[int, ...]] = []
        self.step_times: list[float] = []
        self.finished: dict[int, float] = {}
        self.failed: dict[int, float] = {}
        self.cancelled: dict[int, float] = {}
        self.rejected: dict[int, str] = {}
        self.num_preempted = 0

    def on_arrival(self, request_id: int, t: float, prompt_tokens: int) -> None:
        """A request came."""
        self.arrivals[request_id] = t
        self.prompt_tokens[request_id] = prompt_tokens

    def on_admit(self, request_id: int, t: float) -> None:
        """A request was admitted; only its first admission ends its wait."""
        self.admissions.setdefault(request_id, t)

    def on_tokens(self, ids: tuple[int, ...], t: float) -> None:
        """Each of `ids` got one token; the tuple is kept, not copied."""
        self.steps.append(ids)
        self.step_times.append(t)

    def on_finish(self, ids: tuple[int, ...], t: float) -> None:
        """Requests got all their tokens."""
        self.finished.update(dict.fromkeys(ids, t))

    def on_fail(self, ids: tuple[int, ...], t: float) -> None:
        """Requests ended because a step failed."""
        self.failed.update(dict.fromkeys(ids, t))

    def on_cancel(self, ids: tuple[int, ...], t: float) -> None:
        """Requests were cancelled."""
        self.cancelled.update(dict.fromkeys(ids, t))

    def on_reject(self, request_id: int, reason: str) -> None:
        """A request was refused."""
        self.rejected[request_id] = reason

    def on_preempt(self, ids: tuple[int, ...]) -> None:
        """Requests lost their place and their tokens' pages."""
        self.num_preempted += len(ids)


class Tokens(NamedTuple):
    """All tokens of a log, request by request and then by time.

    Attributes
    ----------
    request_ids : ndarray [R] int64
        Requests with a token, ascending.
    starts, counts : ndarray [R] int64
        Where a request's tokens begin, and how many they are.
    times : ndarray [n] float64
        When each token was made.
    """

    request_ids: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    times: np.ndarray

    @property
    def is_gap(self) -> np.ndarray:
        """Whether a token has the one before it in the same request, [n] bool."""
        is_gap = np.ones(self.times.size, bool)
        is_gap[self.starts] = False
        return is_gap


def collect_tokens(log: ServingLog) -> Tokens:
    """Return the tokens of a log by request."""
    arrays: list[np.ndarray] = []
    last: tuple[int, ...] | None = None
    for ids in log.steps:
        if ids is not last:  # a batch that did not change is the same tuple, step after step
            array, last = np.array(ids, np.int64), ids
        arrays.append(array)
    sizes = np.array([array.size for array in arrays], np.int64)
    owners = np.concatenate(arrays) if arrays else np.empty(0, np.int64)
    times = np.repeat(np.array(log.step_times, np.float64), sizes)
    order = np.argsort(owners, kind="stable")  # stable: a request's tokens stay in time order
    request_ids, starts, counts = np.unique(owners[order], return_index=True, return_counts=True)
    return Tokens(request_ids, starts, counts, times[order])


def decode_contexts(log: ServingLog) -> np.ndarray:
    """Return the context of every token that was made, [n] int64: what it could attend to."""
    tokens = collect_tokens(log)
    prompts = np.array([log.prompt_tokens[i] for i in tokens.request_ids.tolist()], np.int64)
    made_before = np.arange(tokens.times.size) - np.repeat(tokens.starts, tokens.counts)
    return np.repeat(prompts, tokens.counts) + made_before


def summarise(log: ServingLog, slo: dict[str, float] | None = None) -> dict:
    """Return what serving benchmarks report, under vLLM's names.

    Parameters
    ----------
    log : ServingLog
        A run.
    slo : dict | None
        Milliseconds that a good request may take: any of ttft, tpot and e2el.

    Returns
    -------
    dict
        Counts, seconds, rates a second and milliseconds. What nothing was measured for is NaN
        (TPOT when every request made one token); `request_goodput` is None without an SLO.

    Notes
    -----
    `duration` is from the first arrival to the last event. Totals and latencies are those of
    completed requests. `max_concurrent_requests` counts those that have arrived and not ended;
    one that arrives just when another one ends is not concurrent with it. Gaps between tokens
    (`longest_gap_ms`, `p95_gap_ms`) are those of all requests, completed or not.
    """
    tokens = collect_tokens(log)
    done = np.array(sorted(log.finished), np.int64)
    position = np.searchsorted(tokens.request_ids, done)
    has_tokens = np.isin(done, tokens.request_ids)
    assert has_tokens.all(), f"finished without a token: {done[~has_tokens][:8]}"
    samples, counts = _latencies(log, tokens, done, position)
    duration = _duration(log)
    num_input = sum(log.prompt_tokens[request_id] for request_id in done.tolist())
    num_output = int(counts.sum())
    gaps_ms = 1e3 * np.diff(tokens.times, prepend=0.0)[tokens.is_gap]
    result = {
        "duration": duration,
        "completed": int(done.size),
        "failed": len(log.failed),
        "cancelled": len(log.cancelled),
        "rejected": len(log.rejected),
        "preempted": log.num_preempted,
        "total_input_tokens": num_input,
        "total_output_tokens": num_output,
        "request_throughput": _rate(done.size, duration),
        "output_throughput": _rate(num_output, duration),
        "total_token_throughput": _rate(num_input + num_output, duration),
        "request_goodput": _rate(_num_good(samples, slo), duration) if slo else None,
        "max_concurrent_requests": _max_concurrent(log),
    }
    for name in LATENCIES:
        result |= _statistics(name, samples[name][~np.isnan(samples[name])])
    result["longest_gap_ms"] = float(gaps_ms.max()) if gaps_ms.size else np.nan
    result["p95_gap_ms"] = float(np.percentile(gaps_ms, 95)) if gaps_ms.size else np.nan
    return result


def _latencies(
    log: ServingLog, tokens: Tokens, done: np.ndarray, position: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return milliseconds, one a completed request (ITL: one a gap), and tokens a request."""
    starts, counts = tokens.starts[position], tokens.counts[position]
    first, last = tokens.times[starts], tokens.times[starts + counts - 1]
    arrival = np.array([log.arrivals[i] for i in done.tolist()], np.float64)
    admission = np.array([log.admissions[i] for i in done.tolist()], np.float64)
    is_done = np.repeat(np.isin(tokens.request_ids, done), tokens.counts)
    gaps = np.diff(tokens.times, prepend=0.0)[tokens.is_gap & is_done]
    tpot = np.full(done.size, np.nan)
    np.divide(last - first, counts - 1, out=tpot, where=counts > 1)
    samples = {
        "ttft": first - arrival,
        "tpot": tpot,
        "itl": gaps,
        "e2el": last - arrival,
        "queue_wait": admission - arrival,
    }
    return {name: 1e3 * values for name, values in samples.items()}, counts


def _duration(log: ServingLog) -> float:
    """Return the seconds from the first arrival to the last event."""
    if not log.arrivals:
        return 0.0
    ends = [*log.step_times[-1:], *log.arrivals.values(), *log.admissions.values()]
    for ended in (log.finished, log.failed, log.cancelled):
        ends += ended.values()
    return float(max(ends) - min(log.arrivals.values()))


def _rate(count: int, duration: float) -> float:
    return float(count / duration) if duration > 0 else np.nan


def _num_good(samples: dict[str, np.ndarray], slo: dict[str, float]) -> int:
    """Return how many requests meet every SLO; one token has no TPOT that could be too long."""
    for name in slo:
        check(name in GOODPUT_METRICS, "slo", name, "one of " + ", ".join(GOODPUT_METRICS))
    is_good = [~(samples[name] > limit_ms) for name, limit_ms in slo.items()]
    return int(np.logical_and.reduce(is_good).sum())


def _max_concurrent(log: ServingLog) -> int:
    """Return the most requests that had arrived and not ended."""
    ended = log.cancelled | log.failed | log.finished
    came = [t for request_id, t in log.arrivals.items() if request_id not in log.rejected]
    times = np.array([*ended.values(), *came], np.float64)
    changes = np.repeat(np.array([-1, 1]), (len(ended), len(came)))
    order = np.argsort(times, kind="stable")  # ends were put first
    return int(np.cumsum(changes[order]).max(initial=0))


def _statistics(name: str, values_ms: np.ndarray) -> dict[str, float]:
    """Return vLLM's names for one latency."""
    names = ("mean", "median", "std", *(f"p{p}" for p in PERCENTILES))
    if not values_ms.size:
        return {f"{statistic}_{name}_ms": np.nan for statistic in names}
    values = (
        values_ms.mean(),
        np.median(values_ms),
        values_ms.std(),
        *np.percentile(values_ms, PERCENTILES),
    )
    return {f"{s}_{name}_ms": float(v) for s, v in zip(names, values, strict=True)}


def parse_goodput(text: str) -> dict[str, float]:
    """Return the milliseconds of ``--goodput``, as in ``"ttft:500 tpot:50"``.

    Raises
    ------
    ValueError
        When a part is no NAME:MILLISECONDS, a name is unknown or comes twice, or nothing is there.
    """
    slo: dict[str, float] = {}
    want = "NAME:MILLISECONDS, as in 'ttft:500 tpot:50', of " + ", ".join(GOODPUT_METRICS)
    for part in text.split():
        name, _, value = part.partition(":")
        check(name in GOODPUT_METRICS and NUMBER.fullmatch(value), "goodput", part, want)
        check(name not in slo, "goodput", part, f"{name} once")
        check(float(value) > 0, "goodput", part, "more than 0 ms")
        slo[name] = float(value)
    check(bool(slo), "goodput", text, want)
    return slo
