"""RunStats: where the time of an engine's run went, and what it did."""

from dataclasses import dataclass, field

STAGES = (
    "schedule", "release", "admission", "prefill", "payload", "decode", "append", "idle",
)  # fmt: skip


@dataclass
class RunStats:
    """What a run did; times in nanoseconds."""

    total_ns: int = 0
    stages_ns: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    step_ns: list[int] = field(default_factory=list)  # of steps that decoded
    num_steps: int = 0
    generated_tokens: int = 0
    prompt_tokens: int = 0  # prefilled, again after a preemption
    active_steps: int = 0  # requests that decoded, summed over steps
    page_steps: int = 0  # pages that were held, summed over the steps that decoded
    peak_pages: int = 0  # most pages that were held at once
    not_started: int = 0  # requests that had not arrived when the run was stopped
