"""Values that cross layers: page tables, decode results, times."""

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np


class PageTable(NamedTuple):
    """Ragged page lists of a batch, in FlashInfer's CSR form.

    Attributes
    ----------
    page_indptr : ndarray [B + 1] int32
        Request b owns ``page_ids[page_indptr[b] : page_indptr[b + 1]]``.
    page_ids : ndarray [n] int32
        Physical pages, in logical order.
    last_page_tokens : ndarray [B] int32
        Tokens in each request's last page, 1 .. page_size; 0 for an empty context.
    """

    page_indptr: np.ndarray
    page_ids: np.ndarray
    last_page_tokens: np.ndarray

    @property
    def num_requests(self) -> int:
        """Rows of the table, B."""
        return len(self.page_indptr) - 1

    @property
    def page_counts(self) -> np.ndarray:
        """Pages of each request, [B] int32."""
        return self.page_indptr[1:] - self.page_indptr[:-1]

    def context_tokens(self, page_size: int) -> np.ndarray:
        """Tokens of each request, [B] int64."""
        full_pages = np.maximum(self.page_counts.astype(np.int64) - 1, 0)
        return full_pages * page_size + self.last_page_tokens


@dataclass(frozen=True)
class StageTimes:
    """Wall time of one decode step and of its stages, in milliseconds.

    ``total_ms`` is measured around the whole call; `overheads_ms` names the host work that belongs
    to no stage. Stages and overheads add up to the total. `kernel_ms` is the part of it in which
    a GPU ran kernels, by its own events; 0 on the CPU.
    """

    score_ms: float = 0.0
    topk_ms: float = 0.0
    gather_ms: float = 0.0
    attend_ms: float = 0.0
    total_ms: float = 0.0
    overheads_ms: dict[str, float] = field(default_factory=dict)
    kernel_ms: float = 0.0


@dataclass(frozen=True)
class DecodeResult:
    """What one decode step returns.

    Attributes
    ----------
    outputs : ndarray [B, H, D] float32
        Attention outputs; zeros where nothing was attended. None where they stay on a GPU.
    lse : ndarray [B, H] float32
        Natural log of the softmax denominator; -inf where nothing was attended.
    selected_pages : ndarray [B, S, K] int32 or None
        Logical positions within the request, ascending, -1 at the tail; None on dense paths.
    stages : StageTimes
        Where the time of this call went.
    scores : ndarray [B, S, P] float32 or None
        Page scores, from a sparse GPU path in its debug mode.
    on_device : dict or None
        From a GPU path: "outputs", "lse" and, if sparse, "selected" and "scores" as device arrays,
        which the path's next call overwrites.
    """

    outputs: np.ndarray
    lse: np.ndarray
    selected_pages: np.ndarray | None
    stages: StageTimes
    scores: np.ndarray | None = None
    on_device: dict[str, object] | None = None


class TokenSource(Protocol):
    """Where an engine gets its tokens from; position p of request r is row (r, p)."""

    def make(
        self,
        request_ids: np.ndarray,
        positions: np.ndarray,
        queries: np.ndarray,
        keys: np.ndarray,
        values: np.ndarray,
    ) -> None:
        """Fill queries [n, H, D], keys and values [n, G, D] of n tokens; no rows: not wanted."""
