"""ContinuousBenchConfig: what `dsd_continuous_bench` measures."""

from dataclasses import dataclass, fields
from math import isfinite

from numbadsd.config.model import ModelConfig, check, check_choice, check_integer

# The reference system's codes: a mode's code is its place.
ADMISSION_MODES = ("cpu_cache", "direct_gpu_upload", "synthetic_gpu_prefill")
OUTPUT_MODES = ("full_outputs", "outputs_only", "no_outputs")
TIMING_MODES = ("host_wall", "kernel_events", "disabled")
BENCHMARK_MODES = ("sparse", "dense_gpu")
MODES = {
    "admission_mode": ADMISSION_MODES,
    "run_batch_output_mode": OUTPUT_MODES,
    "run_batch_timing_mode": TIMING_MODES,
    "benchmark_mode": BENCHMARK_MODES,
}
SWITCHES = (
    "preadmit_prompts", "precompute_decode_payloads", "gpu_synthetic_decode_append",
    "lazy_release",
)  # fmt: skip

BACKENDS = ("auto", "cpu", "gpu")
PREFILLS = ("none", "blocking", "chunked", "packed")
ADMISSIONS = ("fifo", "pack")
CLOCKS = ("steps", "virtual", "wall")


def mode_name(argument: str, value: object) -> str:
    """Return the name of a mode, given by its name or by the reference system's code."""
    names = MODES[argument]
    codes = {str(code): name for code, name in enumerate(names)}
    known = codes.get(str(value), value)
    want = ", ".join(f"{code} or {name}" for code, name in codes.items())
    check(known in names, argument, value, f"one of {want}")
    return known


@dataclass(frozen=True)
class ContinuousBenchConfig:
    """What `dsd_continuous_bench` measures: requests that come, decode together, and go.

    The first twenty fields are the command's positional arguments in order; the rest its options.
    """

    num_requests: int = 128
    max_active_requests: int = 32
    arrival_window: int = 64
    min_prompt_tokens: int = 1024
    max_prompt_tokens: int = 4096
    min_decode_steps: int = 16
    max_decode_steps: int = 64
    seed: int = 7
    num_heads: int = 32
    head_dim: int = 128
    page_size: int = 16
    top_k_pages: int = 8
    admission_mode: str = "direct_gpu_upload"
    preadmit_prompts: int = 0
    precompute_decode_payloads: int = 0
    gpu_synthetic_decode_append: int = 0
    lazy_release: int = 0
    run_batch_output_mode: str = "outputs_only"
    run_batch_timing_mode: str = "kernel_events"
    benchmark_mode: str = "sparse"
    num_kv_heads: int | None = None
    kv_dtype: str = "float32"
    summary: str = "mean"
    share: str = "request"
    num_sink_pages: int = 0
    num_recent_pages: int = 0
    backend: str = "auto"
    prefill: str = "none"
    prefill_chunk_tokens: int = 256
    admission: str = "fifo"
    preempt: bool = False
    kv_budget: str = "auto"
    gate_tokens: int = 0
    clock: str = "steps"
    step_ms: float | None = None  # of the virtual clock; None: as measured
    serial: bool = True  # also the same requests, one at a time

    def __post_init__(self):
        for name, low in (
            ("num_requests", 1), ("max_active_requests", 1), ("arrival_window", 0),
            ("min_prompt_tokens", 1), ("max_prompt_tokens", 1), ("min_decode_steps", 1),
            ("max_decode_steps", 1), ("prefill_chunk_tokens", 1), ("gate_tokens", 0),
        ):  # fmt: skip
            check_integer(name, getattr(self, name), low)
        check_integer("seed", self.seed, 0, 2**32 - 1)
        for what in ("prompt_tokens", "decode_steps"):
            low, high = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            check(low <= high, f"min_{what}", low, f"at most max_{what} = {high}")
        for name in SWITCHES:
            object.__setattr__(self, name, check_integer(name, getattr(self, name), 0, 1))
        for name in MODES:
            object.__setattr__(self, name, mode_name(name, getattr(self, name)))
        check_choice("backend", self.backend, BACKENDS)
        check_choice("prefill", self.prefill, PREFILLS)
        check_choice("admission", self.admission, ADMISSIONS)
        check_choice("clock", self.clock, CLOCKS)
        assert self.model  # built here: a wrong model shape is a wrong configuration
        self._check_combinations()

    def _check_combinations(self) -> None:
        """Raise ValueError for modes that exclude each other."""
        makes_steps = self.gpu_synthetic_decode_append
        excluded = (
            (makes_steps and self.admission_mode == "cpu_cache", "gpu_synthetic_decode_append",
             "0 with admission_mode cpu_cache, whose tokens are the host's"),
            (self.preadmit_prompts and self.prefill != "none",
             "preadmit_prompts", "0 with --prefill: prompts are attended to in the loop"),
            (self.preadmit_prompts and self.preempt,
             "preadmit_prompts", "0 with --preempt: all pages are taken before the loop"),
            (self.lazy_release and self.preempt,
             "lazy_release", "0 with --preempt: a request that grows takes pages at once"),
            (self.gate_tokens and self.benchmark_mode != "sparse",
             "gate_tokens", "0 with a dense benchmark_mode: everything is attended to"),
        )  # fmt: skip
        for is_wrong, argument, want in excluded:
            check(not is_wrong, argument, getattr(self, argument), want)
        if self.step_ms is not None:
            check(self.clock == "virtual", "step_ms", self.step_ms, "--clock virtual with it")
            is_time = self.step_ms > 0 and isfinite(self.step_ms)
            check(is_time, "step_ms", self.step_ms, "a finite number above 0")

    @property
    def is_sparse(self) -> bool:
        """Whether pages are selected."""
        return self.benchmark_mode == "sparse"

    @property
    def model(self) -> ModelConfig:
        """The layer that is decoded."""
        names = {field.name for field in fields(ModelConfig)}
        return ModelConfig(**{n: getattr(self, n) for n in names if hasattr(self, n)})
