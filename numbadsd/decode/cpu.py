"""Decode on the CPU: dense over every page, sparse over the selected ones."""

import numpy as np

from numbadsd.decode.inputs import checked_queries
from numbadsd.kernels.cpu.attend import attend_pages
from numbadsd.kernels.cpu.gather import gather_pages, select_rows
from numbadsd.kernels.cpu.score import score_pages
from numbadsd.kernels.cpu.step import STAGE_SLOTS, plan_sparse_step, sparse_step
from numbadsd.kernels.cpu.topk import topk_rows
from numbadsd.pages.cache import PagedKvCache
from numbadsd.timing import StageClock
from numbadsd.types import DecodeResult, PageTable


class _CpuPath:
    """What both CPU paths share: arguments, outputs, and the attend stage."""

    def __init__(self, cache: PagedKvCache, *, fused: bool = True):
        self.cache = cache
        self.config = cache.config
        cache.pool.keys  # noqa: B018 (raises here where there is no storage to read)
        self.fused = fused
        self._last_table = (None, -1, None)  # rows, version of the cache, page table

    def decode(self, queries: np.ndarray, request_ids) -> DecodeResult:
        """Attend one query per request to that request's context.

        Parameters
        ----------
        queries : ndarray [B, H, D] float32
            One query per request.
        request_ids : sequence of int, length B
            Requests of the cache.

        Returns
        -------
        DecodeResult
            Zeros and lse = -inf where nothing is attended.
        """
        clock = StageClock()
        queries = checked_queries(queries, request_ids, self.config)
        table = self._page_table(request_ids)
        clock.lap("page_table")
        outputs = np.empty_like(queries)
        lse = np.empty(queries.shape[:2], np.float32)
        clock.lap("malloc")
        selected = self._attend(queries, table, outputs, lse, clock)
        return DecodeResult(outputs, lse, selected, clock.times())

    def _page_table(self, request_ids) -> PageTable:
        """Return the batch's page lists: those of the last step while the cache is unchanged.

        A model's layers decode over the same lists, one step after the other.
        """
        request_ids = tuple(request_ids)
        rows, version = self.cache.rows(request_ids), self.cache.version
        last_rows, last_version, table = self._last_table
        if rows is not last_rows or version != last_version:
            table = self.cache.page_table(request_ids)
            self._last_table = (rows, version, table)
        return table

    def _attend_rows(self, queries, pool, rows, outputs, lse) -> None:
        keys, values = pool
        config = self.config
        attend_pages(
            queries, keys, values, *rows, config.num_kv_heads, config.sm_scale, outputs, lse
        )


class DenseCpuPath(_CpuPath):
    """Attention over every page: one row per request that lists them all."""

    def _attend(self, queries, table: PageTable, outputs, lse, clock: StageClock) -> None:
        pool = self.cache.pool
        self._attend_rows(queries, (pool.keys, pool.values), table, outputs, lse)
        clock.lap("attend")


class SparseCpuPath(_CpuPath):
    """Score pages, select the best, attend to them.

    Fused: one compiled call that attends to the pages in place. Staged: a call per stage, with the
    selected pages copied before they are attended to. The outputs are the same bits.
    """

    def __init__(self, cache: PagedKvCache, *, fused: bool = True):
        super().__init__(cache, fused=fused)
        config, pool = self.config, cache.pool
        self._plan = plan_sparse_step(
            pool.keys, pool.values, cache.summaries, config.num_heads, config.summary,
            config.share, config.num_sink_pages, config.num_recent_pages, config.sm_scale,
        )  # fmt: skip
        self._copies = self._new_copies(0)  # K and V of the staged path's pages

    def _attend(self, queries, table: PageTable, outputs, lse, clock: StageClock) -> np.ndarray:
        config = self.config
        selected = np.empty((len(queries), config.num_units, config.top_k_pages), np.int32)
        stage_ns = np.zeros(len(STAGE_SLOTS), np.int64)
        clock.lap("malloc")
        if not self.fused:
            self._attend_staged(queries, table, selected, outputs, lse, clock)
            return selected
        sparse_step(self._plan, queries, *table, selected, outputs, lse, stage_ns)
        clock.lap_parts(dict(zip(STAGE_SLOTS, stage_ns.tolist(), strict=True)), rest="launch")
        return selected

    def _attend_staged(self, queries, table: PageTable, selected, outputs, lse, clock) -> None:
        self._select(queries, table, selected, clock)
        rows = select_rows(selected, *table, self.config.page_size)
        clock.lap("sparse_layout")
        pool, rows = self._gather((self.cache.pool.keys, self.cache.pool.values), rows, clock)
        self._attend_rows(queries, pool, rows, outputs, lse)
        clock.lap("attend")

    def _select(self, queries, table: PageTable, selected, clock: StageClock) -> None:
        config, counts = self.config, table.page_counts
        shape = (len(queries), config.num_units, int(counts.max(initial=0)))
        scores = np.empty(shape, np.float32)
        clock.lap("malloc")
        score_pages(
            queries, self.cache.summaries, table.page_indptr, table.page_ids,
            config.summary, config.share, config.sm_scale, scores,
        )  # fmt: skip
        clock.lap("score")
        topk_rows(
            scores.reshape(-1), shape[2], shape[2], counts,
            config.num_sink_pages, config.num_recent_pages, "position",
            selected.reshape(len(queries) * config.num_units, config.top_k_pages),
        )  # fmt: skip
        clock.lap("topk")

    def _new_copies(self, num_pages: int) -> np.ndarray:
        """Return room for K and V of `num_pages` selected pages of one row."""
        keys = self.cache.pool.keys
        row_kv_heads = self.config.num_kv_heads if self.config.num_units == 1 else 1
        return np.empty((2, num_pages, row_kv_heads, *keys.shape[2:]), keys.dtype)

    def _gather(self, pool, rows, clock: StageClock):
        """Copy the selected pages into a compact pool, in which page i is the i-th selected."""
        row_indptr, page_ids, last_page_tokens = rows
        if page_ids.size > self._copies.shape[1]:  # kept: fresh memory costs more than the copy
            self._copies = self._new_copies(page_ids.size)
        copies = tuple(copy[: page_ids.size] for copy in self._copies)
        clock.lap("malloc")
        gather_pages(*pool, row_indptr, page_ids, self.config.num_units, *copies)
        clock.lap("gather")
        return copies, (row_indptr, np.arange(page_ids.size, dtype=np.int32), last_page_tokens)
