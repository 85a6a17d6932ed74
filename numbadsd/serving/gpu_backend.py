"""Steps over pages that live on a GPU."""

from collections.abc import Callable, Sequence

import numpy as np

from numbadsd.decode.inputs import UniformQueries
from numbadsd.decode.path import DecodePath
from numbadsd.pages.device import DevicePagePool
from numbadsd.serving.backend import CacheBackend
from numbadsd.serving.plan import Chunk
from numbadsd.types import TokenSource


class DeviceBackend(CacheBackend):
    """Steps over a `DevicePagePool` of a cache without storage.

    Parameters
    ----------
    pool : DevicePagePool
        Where tokens are written.
    path : DecodePath
        Of the GPU.
    tokens : TokenSource
        What the model would say.
    seed : int
        Of tokens that are made on the device: those of `tokens`.
    makes_prompts, makes_steps, makes_queries : bool
        Whether the device makes the tokens of prompts, those that decode appends, and the queries
        of steps whose tokens it appends: then names of requests travel, and nothing else.
    """

    def __init__(
        self,
        pool: DevicePagePool,
        path: DecodePath,
        tokens: TokenSource,
        attention=None,
        *,
        seed: int = 0,
        makes_prompts: bool = False,
        makes_steps: bool = False,
        makes_queries: bool = False,
        **options,
    ):
        super().__init__(pool.cache, path, tokens, attention, device_pool=pool, **options)
        self.pool, self._seed = pool, seed
        self._makes_prompts, self._makes_steps = makes_prompts, makes_steps
        self._made_queries = UniformQueries(seed) if makes_steps and makes_queries else None

    def _write_prompts(self, chunks: Sequence[Chunk], lap: Callable[[str], None]) -> None:
        if not self._makes_prompts:
            return super()._write_prompts(chunks, lap)
        for chunk in chunks:
            self.pool.prefill_synthetic(chunk.request_id, chunk.count, self._seed)
        lap("admission")

    def _store_prompt(self, request_id: int, keys: np.ndarray, values: np.ndarray) -> None:
        self.pool.upload_prompt(request_id, keys, values)

    def _make_step(self, positions: np.ndarray) -> tuple:
        if not self._makes_steps:
            return super()._make_step(positions)
        if self._made_queries is not None:
            return self._made_queries, None, None
        queries, keys, values = self._rows(positions.size)
        self._tokens.make(self._id_array, positions, queries, keys[:0], values[:0])
        return queries, None, None

    def _store_step(self, request_ids, keys, values) -> None:
        if self._makes_steps:
            self.pool.append_synthetic(request_ids, self._seed)
        else:
            self.pool.append_step(request_ids, keys, values)
