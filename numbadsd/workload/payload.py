"""What a model would hand to attention: queries, keys and values of tokens, made from their names.

Every vector is a pure function of (seed, request, position, stream), so that no order of batches,
chunks or preemptions can change the data.
"""

from collections.abc import Sequence

import numpy as np

from numbadsd.config import ModelConfig
from numbadsd.kernels.cpu.prefill import make_tokens
from numbadsd.types import TokenSource


class UniformTokens:
    """Tokens uniform in [-1, 1), made when they are asked for."""

    def __init__(self, seed: int):
        self.seed = seed

    def make(
        self,
        request_ids: np.ndarray,
        positions: np.ndarray,
        queries: np.ndarray,
        keys: np.ndarray,
        values: np.ndarray,
    ) -> None:
        """Fill queries [n, H, D], keys and values [n, G, D] of n tokens; no rows: not wanted."""
        make_tokens(queries, keys, values, self.seed, request_ids, positions)


class StoredTokens:
    """The tokens that requests will decode, made beforehand; other tokens come from `source`.

    Parameters
    ----------
    source : TokenSource
        Makes them.
    config : ModelConfig
        Their shape.
    first_positions, counts : sequence of int
        Request i decodes the tokens at positions [first_positions[i], + counts[i]).
    queries_only : bool
        Whether keys and values are never asked for: a device makes them.
    """

    def __init__(
        self,
        source: TokenSource,
        config: ModelConfig,
        first_positions: Sequence[int],
        counts: Sequence[int],
        queries_only: bool = False,
    ):
        self._source = source
        self._first = np.asarray(first_positions, np.int64)
        self._counts = np.asarray(counts, np.int64)
        self._starts = np.cumsum(self._counts) - self._counts
        total = int(self._counts.sum())
        ids = np.repeat(np.arange(self._counts.size), self._counts)
        positions = np.arange(total) - np.repeat(self._starts - self._first, self._counts)
        row = (config.head_dim,)
        self._queries = np.empty((total, config.num_heads, *row), np.float32)
        num_kept = 0 if queries_only else total
        self._keys = np.empty((num_kept, config.num_kv_heads, *row), np.float32)
        self._values = np.empty_like(self._keys)
        source.make(ids, positions, self._queries, self._keys, self._values)

    @staticmethod
    def num_bytes(config: ModelConfig, num_tokens: int, queries_only: bool = False) -> int:
        """Return the memory that so many tokens take."""
        heads = config.num_heads + (0 if queries_only else 2 * config.num_kv_heads)
        return 4 * num_tokens * heads * config.head_dim

    def _places(self, request_ids: np.ndarray, positions: np.ndarray) -> np.ndarray | None:
        """Return where tokens are stored; None when they are not."""
        steps = positions - self._first[request_ids]
        if steps.size and (steps.min() < 0 or (steps >= self._counts[request_ids]).any()):
            return None
        return self._starts[request_ids] + steps

    def make(
        self,
        request_ids: np.ndarray,
        positions: np.ndarray,
        queries: np.ndarray,
        keys: np.ndarray,
        values: np.ndarray,
    ) -> None:
        """Fill queries [n, H, D], keys and values [n, G, D] of n tokens; no rows: not wanted."""
        places = self._places(request_ids, positions)
        asks_for_more = len(keys) and not len(self._keys)
        if places is None or asks_for_more:
            self._source.make(request_ids, positions, queries, keys, values)
            return
        stored = (self._queries, self._keys, self._values)
        for array, out in zip(stored, (queries, keys, values), strict=True):
            if len(out):
                np.take(array, places, axis=0, out=out)
