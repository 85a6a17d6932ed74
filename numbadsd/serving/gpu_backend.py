"""Steps over pages that live on a GPU."""

from collections.abc import Callable, Sequence

import numpy as np

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
    makes_prompts, makes_steps : bool
        Whether the device makes the tokens of prompts, and those that decode appends.
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
        **options,
    ):
        super().__init__(pool.cache, path, tokens, attention, device_pool=pool, **options)
        self.pool, self._seed = pool, seed
        self._makes_prompts, self._makes_steps = makes_prompts, makes_steps

    def _write_prompts(self, chunks: Sequence[Chunk], lap: Callable[[str], None]) -> None:
        if not self._makes_prompts:
            return super()._write_prompts(chunks, lap)
        for chunk in chunks:
            self.pool.prefill_synthetic(chunk.request_id, chunk.count, self._seed)
        lap("admission")

    def _store_prompt(self, request_id: int, keys: np.ndarray, values: np.ndarray) -> None:
        self.pool.upload_prompt(request_id, keys, values)

    def _step_rows(self, num_tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        queries, keys, values = super()._step_rows(num_tokens)
        count = 0 if self._makes_steps else num_tokens
        return queries, keys[:count], values[:count]

    def _store_step(self, request_ids, keys: np.ndarray, values: np.ndarray) -> None:
        if self._makes_steps:
            self.pool.append_synthetic(request_ids, self._seed)
        else:
            self.pool.append_step(request_ids, keys, values)
