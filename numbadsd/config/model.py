"""ModelConfig: the shape of an attention layer and of its pages; and how arguments are checked."""

from dataclasses import dataclass
from enum import Enum
from math import sqrt

import ml_dtypes
import numpy as np

MAX_HEAD_DIM = 512
HEAD_DIM_MULTIPLE = 16  # lanes of the widest vector a kernel loads

KV_DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


class Summary(str, Enum):
    """What a page is reduced to for scoring (DESIGN: page summaries)."""

    MEAN = "mean"
    MINMAX = "minmax"
    CUBOID_MEAN = "cuboid_mean"
    MEAN_STD = "mean_std"

    @property
    def arrays(self) -> int:
        """Vectors of head_dim elements kept per (page, kv head)."""
        return 1 if self is Summary.MEAN else 2


class Share(str, Enum):
    """Which heads share one list of selected pages."""

    REQUEST = "request"
    KV_HEAD = "kv_head"
    QUERY_HEAD = "query_head"


def check(condition: bool, argument: str, got: object, want: str) -> None:
    """Raise ValueError naming the argument, what it got and what it wants."""
    if not condition:
        raise ValueError(f"{argument}: got {got!r}, want {want}")


def check_choice(argument: str, value: object, options) -> str:
    """Return `value` as one of the strings `options`, or raise ValueError."""
    value = value.value if isinstance(value, Enum) else value
    check(value in options, argument, value, "one of " + ", ".join(options))
    return value


def check_integer(argument: str, value: object, low: int, high: int = 2**31 - 1) -> int:
    """Return `value` as an int within [low, high], or raise ValueError."""
    is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    check(is_integer and low <= value <= high, argument, value, f"an integer in [{low}, {high}]")
    return int(value)


@dataclass(frozen=True)
class ModelConfig:
    """Shape of one attention layer, its paged cache, and the page selection.

    Parameters
    ----------
    num_heads : int
        Query heads, H.
    num_kv_heads : int, optional
        Key/value heads, G; divides `num_heads`; `num_heads` when None. Query head i reads kv
        head ``i // (H // G)``.
    head_dim : int
        Elements of a head, D; a multiple of 16, at most 512.
    page_size : int
        Tokens of a page, T.
    top_k_pages : int
        Pages a selection unit keeps, K, the forced ones included; 0 selects nothing.
    kv_dtype, summary_dtype : {"float32", "float16", "bfloat16"}
        Storage of K and V, and of the page summaries (`kv_dtype` when None).
    summary : {"mean", "minmax", "cuboid_mean", "mean_std"}
        What a page is scored by.
    share : {"request", "kv_head", "query_head"}
        Which heads share one selection.
    num_sink_pages, num_recent_pages : int
        First and last pages that are always selected; they count towards `top_k_pages`.

    Raises
    ------
    ValueError
        Naming the argument, what it got and what it wants.
    """

    num_heads: int = 8
    num_kv_heads: int | None = None
    head_dim: int = 16
    page_size: int = 16
    top_k_pages: int = 8
    kv_dtype: str = "float32"
    summary: str = "mean"
    share: str = "request"
    num_sink_pages: int = 0
    num_recent_pages: int = 0
    summary_dtype: str | None = None

    def __post_init__(self):
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731 (frozen)
        put("num_heads", check_integer("num_heads", self.num_heads, 1, 4096))
        kv_heads = self.num_heads if self.num_kv_heads is None else self.num_kv_heads
        put("num_kv_heads", check_integer("num_kv_heads", kv_heads, 1, self.num_heads))
        check(
            self.num_heads % self.num_kv_heads == 0,
            "num_kv_heads",
            self.num_kv_heads,
            f"a divisor of num_heads = {self.num_heads}",
        )
        put("head_dim", check_integer("head_dim", self.head_dim, 1, MAX_HEAD_DIM))
        check(
            self.head_dim % HEAD_DIM_MULTIPLE == 0,
            "head_dim",
            self.head_dim,
            f"a multiple of {HEAD_DIM_MULTIPLE}",
        )
        put("page_size", check_integer("page_size", self.page_size, 1, 1 << 16))
        put("top_k_pages", check_integer("top_k_pages", self.top_k_pages, 0))
        put("kv_dtype", check_choice("kv_dtype", self.kv_dtype, tuple(KV_DTYPES)))
        put("summary", check_choice("summary", self.summary, tuple(s.value for s in Summary)))
        put("share", check_choice("share", self.share, tuple(s.value for s in Share)))
        put("num_sink_pages", check_integer("num_sink_pages", self.num_sink_pages, 0))
        put("num_recent_pages", check_integer("num_recent_pages", self.num_recent_pages, 0))
        check(
            self.num_sink_pages + self.num_recent_pages <= self.top_k_pages,
            "num_sink_pages + num_recent_pages",
            self.num_sink_pages + self.num_recent_pages,
            f"at most top_k_pages = {self.top_k_pages}",
        )
        summary_dtype = self.kv_dtype if self.summary_dtype is None else self.summary_dtype
        put("summary_dtype", check_choice("summary_dtype", summary_dtype, tuple(KV_DTYPES)))

    @property
    def group_size(self) -> int:
        """Query heads that read one kv head."""
        return self.num_heads // self.num_kv_heads

    @property
    def sm_scale(self) -> float:
        """Factor of every score, 1 / sqrt(head_dim)."""
        return 1.0 / sqrt(self.head_dim)

    @property
    def num_units(self) -> int:
        """Selection units of a request, S."""
        return {"request": 1, "kv_head": self.num_kv_heads, "query_head": self.num_heads}[
            self.share
        ]

    @property
    def page_bytes(self) -> int:
        """Bytes of K and V of one page."""
        return self.page_size * self.token_bytes

    @property
    def token_bytes(self) -> int:
        """Bytes of K and V of one token."""
        return 2 * self.num_kv_heads * self.head_dim * KV_DTYPES[self.kv_dtype].itemsize

    @property
    def summary_bytes(self) -> int:
        """Bytes of the summary of one page."""
        element_bytes = KV_DTYPES[self.summary_dtype].itemsize
        return Summary(self.summary).arrays * self.num_kv_heads * self.head_dim * element_bytes
