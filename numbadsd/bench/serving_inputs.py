"""What the options of `dsd_continuous_bench` name: requests and limits."""

from numbadsd.config import ContinuousBenchConfig, check
from numbadsd.serving.metrics import parse_goodput
from numbadsd.workload.arrivals import RequestList, poisson_requests
from numbadsd.workload.traces import load_trace

TRACE_FORMATS = ("auto", "azure", "mooncake", "burstgpt")

__all__ = ["TRACE_FORMATS", "load_requests", "parse_goodput", "poisson"]


def poisson(config: ContinuousBenchConfig, request_rate: float, burstiness: float) -> RequestList:
    """Return requests whose gaps are drawn from a gamma distribution."""
    return poisson_requests(
        config.num_requests, config.min_prompt_tokens, config.max_prompt_tokens,
        config.min_decode_steps, config.max_decode_steps, request_rate, burstiness, config.seed,
    )  # fmt: skip


def load_requests(
    config: ContinuousBenchConfig, trace, trace_format: str, **options
) -> RequestList:
    """Return the requests of a trace file; ValueError when none is usable."""
    requests = load_trace(trace, trace_format, seed=config.seed, **options)
    dropped = ", ".join(f"{n} {reason}" for reason, n in requests.source["dropped"].items())
    rows = requests.source["rows_read"]
    got = f"{rows} rows, none of them usable ({dropped or 'no rows'})"
    if not len(requests):
        check(False, "trace", got, "at least one request")
    return requests
