"""One decode step on a device: its buffers, its kernels in order, and the graph of them.

A step is made for a shape (batch, most pages, dense or sparse). It reads everything that changes
from memory: queries and table rows from one page-locked block, page ids and lengths from the tables
on the device. So the host's part of a step is to fill that block and to start one graph.
"""

from dataclasses import dataclass, field

import numpy as np

from numbadsd.kernels import shared
from numbadsd.kernels.cuda.attend import attend_pages, workspace_sizes
from numbadsd.kernels.cuda.launch import DeviceArray
from numbadsd.kernels.cuda.score import factors_size, score_pages
from numbadsd.kernels.cuda.tables import count_outside, pack_tables
from numbadsd.kernels.cuda.topk import topk_rows, topk_workspace_size
from numbadsd.kernels.score_shape import score_shape
from numbadsd.pages.device import DevicePagePool

_FIRST_PAGES = 8


@dataclass(frozen=True)
class StepOptions:
    """What a step brings back, and what it measures.

    Attributes
    ----------
    output_mode : {"none", "outputs", "debug"}
        Nothing, outputs and lse, or these with scores and selected pages.
    timing : bool
        Record events between the stages.
    """

    output_mode: str = "outputs"
    timing: bool = True


@dataclass(frozen=True)
class StepShape:
    """What a step is made for."""

    batch: int
    max_pages: int
    is_sparse: bool
    has_queries: bool = False  # on the device, before the step starts

    @staticmethod
    def holding(
        batch: int, max_pages: int, is_sparse: bool, has_queries: bool = False
    ) -> "StepShape":
        """Return the shape that a batch uses: both sizes are rounded up to a power of two.

        So an engine whose batch and contexts change with every step has few graphs.
        """
        pages = _power_of_two(max(_FIRST_PAGES, max_pages))
        return StepShape(_power_of_two(batch), pages, is_sparse, has_queries)


def _power_of_two(number: int) -> int:
    """Return the least power of two that is not below a positive number."""
    return 1 << (number - 1).bit_length()


@dataclass
class _Block:
    """Arrays that cross between host and device together, each aligned to 16 bytes."""

    host: np.ndarray
    device: DeviceArray
    parts: dict[str, tuple[int, tuple, np.dtype]] = field(default_factory=dict)

    @staticmethod
    def of(driver, arrays: dict[str, tuple[tuple, type]]) -> "_Block":
        parts, end = {}, 0
        for name, (shape, dtype) in arrays.items():
            parts[name] = (end, shape, np.dtype(dtype))
            num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
            end += -(-num_bytes // 16) * 16
        return _Block(driver.pinned(end, np.uint8), driver.empty(end, np.uint8), parts)

    def on_host(self, name: str) -> np.ndarray:
        start, shape, dtype = self.parts[name]
        num_bytes = int(np.prod(shape)) * dtype.itemsize
        return self.host[start : start + num_bytes].view(dtype).reshape(shape)

    def on_device(self, name: str) -> DeviceArray:
        start, shape, dtype = self.parts[name]
        return DeviceArray(self.device.address + start, shape, dtype, self.device)


class GpuStep:
    """A decode step of one shape over one pool."""

    def __init__(self, pool: DevicePagePool, shape: StepShape, options: StepOptions):
        self.pool, self.shape, self.options = pool, shape, options
        self.generation = pool.tables.generation
        config, batch = pool.config, shape.batch
        heads, dim, units = config.num_heads, config.head_dim, config.num_units
        empty = pool.driver.empty
        rows, queries = ((batch,), np.int32), ((batch, heads, dim), np.float32)
        if shape.has_queries:
            self._inputs = _Block.of(pool.driver, {"rows": rows})
            self._queries = empty(*queries)
        else:
            self._inputs = _Block.of(pool.driver, {"rows": rows, "queries": queries})
            self._queries = self._inputs.on_device("queries")
        outputs = {
            "outputs": ((batch, heads, dim), np.float32),
            "lse": ((batch, heads), np.float32),
        }
        sparse_outputs = {
            "selected": ((batch, units, config.top_k_pages), np.int32),
            "scores": ((batch, units, shape.max_pages), np.float32),
        }
        self._outputs = _Block.of(
            pool.driver, outputs | (sparse_outputs if shape.is_sparse else {})
        )
        self._table = [empty(batch + 1, np.int32), empty(batch * shape.max_pages, np.int32),
                       empty(batch, np.int32)]  # fmt: skip
        self._page_counts = empty(batch, np.int32)
        self._faults = _Block.of(pool.driver, {"faults": ((1,), np.int32)})
        max_splits = shared.most_splits(shape.max_pages, config.page_size)
        self._partials = [
            empty(size, np.float32) for size in workspace_sizes(batch, heads, dim, max_splits)
        ]
        if shape.is_sparse:
            scoring = score_shape(config.summary, config.share, pool.summaries.shape, heads)
            self._factors = empty(factors_size(batch, scoring, dim), np.float32)
            self._topk_memory = empty(topk_workspace_size(batch * units, shape.max_pages), np.int32)
        self._events: list[tuple[str, object]] = []
        self._graph = None
        self._batch = batch  # of the last step: at most the shape's

    # ---- the stages, in order

    def enqueue(self) -> None:
        """Give the whole step to the pool's stream."""
        stream, self._events = self.pool.stream, []
        self._mark("start")
        stream.upload(self._inputs.device, self._inputs.host)
        self._mark("h2d")
        self._pack()
        self._mark("page_table")
        if self.shape.is_sparse:
            self._select()
        self._attend()
        self._mark("attend")
        self._download()
        self._mark("d2h")

    def _pack(self) -> None:
        tables = self.pool.tables
        pack_tables(
            self._inputs.on_device("rows"), tables.row_pages, tables.row_tokens,
            self.pool.config.page_size, *self._table, self._page_counts, stream=self.pool.stream,
        )  # fmt: skip

    def _mark(self, stage: str) -> None:
        """Note that a stage has ended here."""
        if self.options.timing:
            self._events.append((stage, self.pool.stream.record()))

    def _select(self) -> None:
        config, pool, out = self.pool.config, self.pool, self._outputs.on_device
        score_pages(
            self._queries, pool.summaries, *self._table[:2], config.summary,
            config.share, config.sm_scale, out("scores"), stream=pool.stream,
            workspace=self._factors,
        )  # fmt: skip
        self._mark("score")
        rows, width = self.shape.batch * config.num_units, self.shape.max_pages
        topk_rows(
            out("scores").reshape(rows * width), width, width, self._page_counts,
            config.num_sink_pages, config.num_recent_pages, "position",
            out("selected").reshape(rows, config.top_k_pages), stream=pool.stream,
            workspace=self._topk_memory,
        )  # fmt: skip
        self._mark("topk")

    def _attend(self) -> None:
        config, pool, out = self.pool.config, self.pool, self._outputs.on_device
        attend_pages(
            self._queries, pool.keys, pool.values, *self._table,
            config.num_kv_heads, config.sm_scale, out("outputs"), out("lse"), stream=pool.stream,
            workspace=self._partials, max_pages=self.shape.max_pages,
            selected=out("selected") if self.shape.is_sparse else None,
        )  # fmt: skip

    def _download(self) -> None:
        end = {"none": 0, "outputs": self._end_of("lse"), "debug": self._outputs.host.size}
        num_bytes = end[self.options.output_mode]
        if num_bytes:
            self.pool.stream.download(
                self._outputs.host[:num_bytes], self._outputs.device[:num_bytes]
            )

    def _end_of(self, name: str) -> int:
        start, shape, dtype = self._outputs.parts[name]
        return start + int(np.prod(shape)) * dtype.itemsize

    # ---- a run

    def write_inputs(self, queries: np.ndarray | DeviceArray, rows: np.ndarray) -> None:
        """Fill what the step starts from; what the batch lacks to the shape has no tokens."""
        self._batch = len(rows)
        own_rows = self._inputs.on_host("rows")
        own_rows[: self._batch], own_rows[self._batch :] = rows, -1
        if self.shape.has_queries:
            self.pool.stream.copy(self._queries[: self._batch], queries)
        else:
            self._inputs.on_host("queries")[: self._batch] = queries

    def num_faults(self) -> int:
        """Return how many page ids of the batch are outside the pool, before a page is read."""
        stream, faults = self.pool.stream, self._faults.on_device("faults")
        stream.upload(self._inputs.device, self._inputs.host)
        self._pack()
        count_outside(*self._table[:2], self.pool.cache.pool.capacity_pages, faults, stream=stream)
        stream.download(self._faults.on_host("faults"), faults)
        stream.synchronize()
        return int(self._faults.on_host("faults")[0])

    @property
    def is_recorded(self) -> bool:
        """Whether the step is a graph that `start` can replay."""
        return self._graph is not None

    def record(self) -> None:
        """Make the graph; the step runs once, which compiles and loads what a capture cannot."""
        self.enqueue()
        self.pool.stream.synchronize()
        self._graph = self.pool.stream.capture(self.enqueue)

    def start(self, use_graph: bool) -> None:
        """Start the step: by one call, or launch by launch."""
        if use_graph:
            self.pool.stream.replay(self._graph)
        else:
            self.enqueue()

    def finish(self) -> dict[str, float]:
        """Wait for the step; return the milliseconds of its stages on the device."""
        self.pool.stream.synchronize()
        self._count_transfers()
        marks = zip(self._events, self._events[1:], strict=False)
        return {stage: event.elapsed_ms(before) for (_, before), (stage, event) in marks}

    def _count_transfers(self) -> None:
        self.pool.stats.count_h2d(self._inputs.host.size)
        mode = self.options.output_mode
        if mode != "none":
            whole = mode == "debug"
            self.pool.stats.count_d2h(self._outputs.host.size if whole else self._end_of("lse"))

    def output(self, name: str) -> np.ndarray:
        """Return a copy of an output of the last step: outputs, lse, selected or scores."""
        return self._outputs.on_host(name)[: self._batch].copy()

    def device_outputs(self) -> dict[str, DeviceArray]:
        """Return all outputs as they lie on the device, valid until the next step."""
        on_device = self._outputs.on_device
        return {name: on_device(name)[: self._batch] for name in self._outputs.parts}
