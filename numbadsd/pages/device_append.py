"""One more token of each request of a batch, made where it is stored: a graph of its own.

Random keys and values are made, written into their pages with the summaries, and the page tables
are brought up to date. All that travels is in one block: who, where, what changes in the tables.
"""

import numpy as np

from numbadsd.kernels.cuda.prefill import fill_uniform
from numbadsd.kernels.cuda.tables import scatter_numbers
from numbadsd.kernels.shared import KEY, VALUE
from numbadsd.pages.staging import Block

_CHANGES = 2  # of a request's row by one token: its count, and perhaps a page


class AppendStep:
    """The append of up to `batch` tokens to the pages of a DevicePagePool."""

    def __init__(self, pool, batch: int, seed: int):
        self.seed, self.generation = seed, pool.tables.generation
        self._pool, self._graph = pool, None
        config, driver = pool.config, pool.driver
        self._block = Block(
            driver,
            {
                "request_ids": ((batch,), np.int64), "positions": ((batch,), np.int64),
                "page_ids": ((batch,), np.int32), "slots": ((batch,), np.int32),
                "token_indptr": ((batch + 1,), np.int64),
                "places": ((_CHANGES * batch,), np.int64),
                "numbers": ((_CHANGES * batch,), np.int32),
            },
        )  # fmt: skip
        self._block.on_host["token_indptr"][:] = np.arange(batch + 1)
        for name in ("request_ids", "positions", "slots", "numbers"):
            self._block.on_host[name][:] = 0
        shape = (batch, config.num_kv_heads, config.head_dim)
        self._tokens = [driver.empty(shape, np.float32) for _ in range(2)]

    def run(self, request_ids, positions, page_ids, slots) -> None:
        """Append token positions[i] of request_ids[i] at slots[i] of page_ids[i], [B] each.

        The batch is the one that the pool's tables have located. Nothing is waited for but the copy
        of the step before, so that the host is at most a step ahead of the device.
        """
        block, tables, count = self._block, self._pool.tables, len(request_ids)
        block.wait()
        host = block.on_host
        host["request_ids"][:count], host["positions"][:count] = request_ids, positions
        host["page_ids"][:count], host["page_ids"][count:] = page_ids, -1
        host["slots"][:count] = slots
        num_changes = tables.list_changes(host["places"], host["numbers"])
        fits = num_changes <= host["places"].size  # else the next decode sends them
        host["places"][num_changes if fits else 0 :] = -1
        block.send(self._pool.stream, self._pool.stats)
        block.guard(self._pool.stream)
        self._start()
        if fits:
            tables.mark_sent()

    def _start(self) -> None:
        """Give the work to the stream; the first time launch by launch, which loads the kernels."""
        stream = self._pool.stream
        if self._graph is not None:
            stream.replay(self._graph)
        else:
            self._enqueue()
            self._graph = stream.capture(self._enqueue)

    def _enqueue(self) -> None:
        pool, sent, stream = self._pool, self._block.on_device, self._pool.stream
        for target, kind in zip(self._tokens, (KEY, VALUE), strict=True):
            fill_uniform(
                target, self.seed, sent["request_ids"], sent["positions"], kind, stream=stream
            )
        pool.store(*self._tokens, sent["page_ids"], sent["slots"], sent["token_indptr"])
        scatter_numbers(pool.tables.numbers, sent["places"], sent["numbers"], stream=stream)
