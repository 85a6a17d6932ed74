"""Bytes and operations of a decode step, and the time below which it cannot go.

With T context tokens, P candidate pages and S selected tokens of a batch, E = G * D elements of a
token's keys, and a vectors per page summary, a step must read

    dense           2 T E                K and V of every token
    sparse_current  T E + 6 S E          every key to score it; selected K, V read, copied, re-read
    sparse_target   a P E + 2 S E        summaries, and selected K and V in place

elements (the reference system's model; it has a = 1). With share = query_head every query head
reads pages of its own, so that S counts H / G times.
"""

from dataclasses import dataclass

import numpy as np

from numbadsd.analysis.devices import Roof
from numbadsd.config import KV_DTYPES, ModelConfig, Summary

MODELS = ("dense", "sparse_current", "sparse_target")


@dataclass(frozen=True)
class Traffic:
    """Bytes and float32 operations of one decode step."""

    num_bytes: int
    flops: int

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.flops / self.num_bytes if self.num_bytes else 0.0

    def floors_us(self, roof: Roof) -> tuple[float, float]:
        """Return the bandwidth floor and the compute floor, in microseconds."""
        return self.num_bytes / roof.read_gbps / 1e3, self.flops / roof.fp32_gflops / 1e3


def step_traffic(config: ModelConfig, context_tokens: np.ndarray) -> dict[str, Traffic]:
    """Return the traffic of every model of `MODELS` for a batch with these contexts.

    Selected tokens count whole pages, as the reference does: ``sum min(k, pages) * page_size``.
    """
    context_tokens = np.asarray(context_tokens, np.int64)
    pages = -(-context_tokens // config.page_size)
    tokens, candidates = int(context_tokens.sum()), int(pages.sum())
    selected = int(np.minimum(config.top_k_pages, pages).sum()) * config.page_size
    token_bytes = config.token_bytes // 2  # of the keys alone
    query_elements = config.num_heads * config.head_dim
    arrays = Summary(config.summary).arrays
    selected_bytes = selected * token_bytes * _readers(config)
    sparse_flops = (2 * arrays * candidates + 4 * selected) * query_elements
    return {
        "dense": Traffic(2 * tokens * token_bytes, 4 * tokens * query_elements),
        "sparse_current": Traffic(tokens * token_bytes + 6 * selected_bytes, sparse_flops),
        "sparse_target": Traffic(
            candidates * config.summary_bytes + 2 * selected_bytes, sparse_flops
        ),
    }


def path_bytes(
    config: ModelConfig,
    context_tokens: np.ndarray,
    selected_pages: np.ndarray | None,
    fused: bool = True,
) -> int:
    """Return the bytes that a path has to move in one step, from what it really selected.

    Parameters
    ----------
    context_tokens : ndarray [B]
        Tokens of each request.
    selected_pages : ndarray [B, S, K] int32 or None
        What a sparse path selected; None for a dense one.
    fused : bool
        False adds the staged path's copy: selected tokens are written once and read once more.
    """
    context_tokens = np.asarray(context_tokens, np.int64)
    if selected_pages is None:
        return int(context_tokens.sum()) * config.token_bytes
    pages = -(-context_tokens // config.page_size)
    tokens = selected_tokens(config, context_tokens, selected_pages)
    kv_heads_per_unit = config.num_kv_heads if config.num_units == 1 else 1
    tile_token_bytes = 2 * config.head_dim * KV_DTYPES[config.kv_dtype].itemsize
    moves = 1 if fused else 3
    selected_bytes = int(tokens.sum()) * kv_heads_per_unit * tile_token_bytes
    return int(pages.sum()) * config.summary_bytes + moves * selected_bytes


def selected_tokens(
    config: ModelConfig, context_tokens: np.ndarray, selected_pages: np.ndarray
) -> np.ndarray:
    """Return the tokens on each unit's selected pages, [B, S] int64."""
    context = np.asarray(context_tokens, np.int64)[:, None, None]
    starts = selected_pages.astype(np.int64) * config.page_size
    tokens = np.clip(context - starts, 0, config.page_size)
    return np.where(selected_pages >= 0, tokens, 0).sum(axis=2)


def break_even_tokens(config: ModelConfig) -> float:
    """Return the context, in tokens, from which the sparse target moves fewer bytes than dense.

    Solves ``2 L E e = (L / page_size) a E e_s + 2 k page_size E e readers`` for L; inf when the
    summaries alone outweigh the cache.
    """
    saved_per_token = config.token_bytes - config.summary_bytes / config.page_size
    if saved_per_token <= 0:
        return float("inf")
    selected = config.top_k_pages * config.page_size * config.token_bytes * _readers(config)
    return selected / saved_per_token


def _readers(config: ModelConfig) -> int:
    """How often a selected token is read: once per kv head, or by every query head its own."""
    return config.group_size if config.share == "query_head" else 1
