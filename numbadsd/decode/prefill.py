"""Attention of prompts over their own pages, before their requests decode."""

from typing import Protocol

import numpy as np

from numbadsd.kernels.cpu.attend_prompts import attend_prompts
from numbadsd.pages.cache import PagedKvCache


class PromptAttention(Protocol):
    """What the engine asks of a backend for tokens of prompts."""

    def attend(self, queries: np.ndarray, cu_seqlens, first_positions, request_ids) -> np.ndarray:
        """Return the outputs of prompt tokens that are in their requests' pages.

        Parameters
        ----------
        queries : ndarray [n, H, D] float32
            Chunk after chunk.
        cu_seqlens : sequence of int, length C + 1
            Chunk c has the queries [cu_seqlens[c], cu_seqlens[c + 1]).
        first_positions : sequence of int, length C
            Position in its prompt of each chunk's first token.
        request_ids : sequence of int, length C
            Whose chunk it is.

        Returns
        -------
        ndarray [n, H, D] float32
            A token attends to itself and to those before it; its output has the same bits in any
            chunk, and in any company.
        """


class CpuPromptAttention:
    """Causal attention over the pages of a cache, on the CPU."""

    def __init__(self, cache: PagedKvCache):
        self.cache = cache

    def attend(self, queries: np.ndarray, cu_seqlens, first_positions, request_ids) -> np.ndarray:
        """Return the outputs of prompt tokens, [n, H, D] float32."""
        config, pool = self.cache.config, self.cache.pool
        table = self.cache.page_table(request_ids)
        outputs = np.empty_like(queries)
        attend_prompts(
            queries, np.asarray(cu_seqlens, np.int32), np.asarray(first_positions, np.int32),
            pool.keys, pool.values, table.page_indptr, table.page_ids, config.num_kv_heads,
            config.sm_scale, outputs, np.empty(queries.shape[:2], np.float32),
        )  # fmt: skip
        return outputs
