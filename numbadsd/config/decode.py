"""DecodeBenchConfig: what `dsd_bench` measures."""

from dataclasses import dataclass, fields

from numbadsd.config.model import ModelConfig, check, check_choice, check_integer

DATA_KINDS = ("uniform", "structured")
CONTENDERS = ("torch",)  # other libraries' attention, beside our paths


@dataclass(frozen=True)
class DecodeBenchConfig:
    """What `dsd_bench` measures: a batch of requests, decoded once per iteration.

    The first ten fields are the command's positional arguments in order; the rest its options.
    """

    top_k_pages: int = 8
    batch_size: int = 16
    min_context_tokens: int = 512
    max_context_tokens: int = 2048
    seed: int = 7
    iterations: int = 5
    warmup: int = 1
    num_heads: int = 8
    head_dim: int = 16
    page_size: int = 16
    num_kv_heads: int | None = None
    kv_dtype: str = "float32"
    summary: str = "mean"
    share: str = "request"
    num_sink_pages: int = 0
    num_recent_pages: int = 0
    data: str = "uniform"
    fused: bool = True
    paths: tuple[str, ...] | None = None  # None: every one that can run here
    versus: str | None = None  # one of CONTENDERS

    def __post_init__(self):
        check_integer("batch_size", self.batch_size, 1, 1 << 20)
        check_integer("min_context_tokens", self.min_context_tokens, 1)
        check_integer("max_context_tokens", self.max_context_tokens, 1)
        check(
            self.min_context_tokens <= self.max_context_tokens,
            "min_context_tokens",
            self.min_context_tokens,
            f"at most max_context_tokens = {self.max_context_tokens}",
        )
        check_integer("seed", self.seed, 0, 2**32 - 1)
        check_integer("iterations", self.iterations, 1)
        check_integer("warmup", self.warmup, 0)
        check_choice("data", self.data, DATA_KINDS)
        if self.versus is not None:
            check_choice("versus", self.versus, CONTENDERS)
        assert self.model  # built here: a wrong model shape is a wrong configuration

    @property
    def model(self) -> ModelConfig:
        """The layer that is decoded."""
        names = {field.name for field in fields(ModelConfig)}
        return ModelConfig(**{n: getattr(self, n) for n in names if hasattr(self, n)})
