"""The verdict: one plain sentence that answers the question for one configuration."""

from numbadsd.analysis.roofline import break_even_tokens
from numbadsd.config import ModelConfig

NEAR_LIMIT = 0.7  # of the measured bandwidth: dense this near is a fair opponent
SMALL_MS = 2.0  # below, fixed costs of a step are a large part of any path
CLEAR_MARGIN = 1.05  # faster by less is no difference
STEADY = 1.5  # p95 over median, above which the machine was busy with something else

_BACKENDS = ("gpu", "cpu")
SIMULATOR = "simulator"  # as it names itself: its times mean nothing


def decide(record: dict, model: ModelConfig) -> dict:
    """Return the verdict on a record: its numbers and its sentence."""
    paths = record["paths"]
    simulated = record["environment"]["gpu"] == SIMULATOR
    for backend in ("cpu",) if simulated else _BACKENDS:
        dense, sparse = paths.get(f"dense_{backend}"), paths.get(f"sparse_{backend}")
        if dense and sparse and dense["available"] and sparse["available"]:
            return _compare(backend, dense, sparse, record, model)
    sentence = "No verdict: it takes a dense and a sparse path of the same backend."
    if simulated:
        sentence = f"{sentence[:-1]}, and the times of the {SIMULATOR} mean nothing."
    return {"sentence": sentence, "speedup": None, "winner": None}


def _compare(backend: str, dense: dict, sparse: dict, record: dict, model: ModelConfig) -> dict:
    dense_ms, sparse_ms = dense["total_ms"]["median"], sparse["total_ms"]["median"]
    speedup = dense_ms / sparse_ms
    parts = {**sparse["stages_ms"], "overheads": sum(sparse["overheads_ms"].values())}
    largest = max(parts, key=parts.get)
    even_tokens = break_even_tokens(model)
    fraction = dense["bandwidth_fraction"]
    winner = "sparse" if speedup > CLEAR_MARGIN else "dense" if speedup < 1 / CLEAR_MARGIN else None
    sentence = (
        f"{_outcome(backend, winner, speedup)} ({sparse_ms:.3g} ms against {dense_ms:.3g} ms); "
        f"{parts[largest] / sparse_ms:.0%} of the sparse step is {largest}"
        f"{_stage_note(parts, sparse_ms, largest)}; {_fairness(fraction, dense_ms)}; "
        f"{_kept(record)}"
        f"{_break_even(even_tokens, record)}.{_steadiness(dense, sparse)}"
    )
    return {
        "sentence": sentence,
        "backend": backend,
        "speedup": speedup,
        "winner": winner,
        "largest_part": largest,
        "dense_bandwidth_fraction": fraction,
        "dense_near_limit": fraction >= NEAR_LIMIT,
        "break_even_context_tokens": even_tokens,
    }


def _outcome(backend: str, winner: str | None, speedup: float) -> str:
    if winner == "sparse":
        return f"Sparse wins here by {speedup:.2f}x on the {backend.upper()}"
    if winner == "dense":
        return f"Sparse loses here: it is {1 / speedup:.2f}x slower on the {backend.upper()}"
    return f"Sparse and dense are equal here on the {backend.upper()}, within 5 %"


def _stage_note(parts: dict, sparse_ms: float, largest: str) -> str:
    """Say what choosing pages costs, unless a part of it was named already."""
    if largest in ("score", "topk"):
        return ""
    return f" and {(parts['score'] + parts['topk']) / sparse_ms:.0%} is choosing the pages"


def _fairness(fraction: float, dense_ms: float) -> str:
    reached = f"dense reads at {fraction:.2f} of the bandwidth measured here"
    if fraction >= NEAR_LIMIT:
        return f"{reached}, near enough to the limit for the ratio to mean something"
    if dense_ms < SMALL_MS:
        return f"{reached}, since the batch is so small that fixed costs of a step show: try more"
    return f"{reached}, so the ratio flatters sparse"


def _kept(record: dict) -> str:
    """Say what the selection kept: a speed-up is worth no more than its output."""
    quality = record.get("quality")
    if not quality or quality["attention_mass"] != quality["attention_mass"]:
        return ""
    error = quality["output_relative_error"]
    return f"it keeps {quality['attention_mass']:.0%} of the attention, output error {error:.2g}; "


def _break_even(even_tokens: float, record: dict) -> str:
    data = record["data"]
    mean_tokens = data["context_tokens"] / max(1, data["requests"])
    if even_tokens == float("inf"):
        return "by bytes sparse never breaks even: the summaries outweigh what it saves"
    return (
        f"by bytes sparse breaks even at a context of {even_tokens:,.0f} tokens "
        f"(mean context here: {mean_tokens:,.0f})"
    )


def _steadiness(*paths: dict) -> str:
    spread = max(path["total_ms"]["p95"] / path["total_ms"]["median"] for path in paths)
    if spread <= STEADY:
        return ""
    return f" The samples are unsteady (p95 is {spread:.1f}x the median): measure again when idle."
