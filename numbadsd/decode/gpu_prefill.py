"""Attention of prompts over their own pages on a CUDA device."""

import numpy as np

from numbadsd.kernels.cuda.attend_prompts import attend_prompts
from numbadsd.pages.device import DevicePagePool
from numbadsd.pages.staging import Staging


class GpuPromptAttention:
    """Causal attention over the pages of a device pool.

    Parameters
    ----------
    pool : DevicePagePool
        Where the prompts' keys and values are.
    brings_outputs : bool
        False leaves outputs on the device, where a model's next layer would read them.
    """

    def __init__(self, pool: DevicePagePool, brings_outputs: bool = True):
        self.pool = pool
        self._brings_outputs = brings_outputs
        self._staging = Staging(pool.driver, pool.stream, pool.stats)
        self._outputs = self._lse = None

    def attend(
        self, queries: np.ndarray, cu_seqlens, first_positions, request_ids
    ) -> np.ndarray | None:
        """Return the outputs of prompt tokens, [n, H, D] float32, or None where they stay.

        The arguments are those of `PromptAttention.attend`; the device is done when this returns.
        """
        pool, config = self.pool, self.pool.config
        table = pool.cache.page_table(request_ids)
        sent = self._staging.send(
            queries, np.asarray(cu_seqlens, np.int32), np.asarray(first_positions, np.int32),
            table.page_indptr, table.page_ids,
        )  # fmt: skip
        outputs, lse = self._room(len(queries))
        attend_prompts(
            *sent[:3], pool.keys, pool.values, *sent[3:], config.num_kv_heads, config.sm_scale,
            outputs, lse, stream=pool.stream,
        )  # fmt: skip
        on_host = None
        if self._brings_outputs:
            on_host = np.empty(queries.shape, np.float32)
            pool.stream.download(on_host, outputs)
            pool.stats.count_d2h(on_host.nbytes)
        pool.stream.synchronize()
        return on_host

    def _room(self, num_tokens: int):
        """Return memory for outputs and lse of so many tokens; kept from call to call."""
        config = self.pool.config
        if self._outputs is None or len(self._outputs) < num_tokens:
            shape = (num_tokens, config.num_heads, config.head_dim)
            self._outputs = self.pool.driver.empty(shape, np.float32)
            self._lse = self.pool.driver.empty(shape[:2], np.float32)
        return self._outputs[:num_tokens], self._lse[:num_tokens]
