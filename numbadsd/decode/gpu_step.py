"""One decode step on a device: its buffers, its kernels in order, and the graph of them.

A step is made for a shape (batch, most pages, dense or sparse). It reads everything that changes
from memory: queries and table rows from one page-locked block, page ids and lengths from the tables
on the device. So the host's part of a step is to fill that block, where something in it is new, and
to start one graph.

A step that brings nothing back and measures nothing is not waited for: the host prepares the next
one while the device does this one. It waits until the device begins with a step before it prepares
the next one of that shape: then the block may be written, and the host is at most one step ahead.
"""

from dataclasses import dataclass

import numpy as np

from numbadsd.kernels import shared
from numbadsd.kernels.cuda.attend import attend_pages, workspace_sizes
from numbadsd.kernels.cuda.launch import DeviceArray
from numbadsd.kernels.cuda.prefill import fill_uniform
from numbadsd.kernels.cuda.score import factors_size, score_pages
from numbadsd.kernels.cuda.tables import count_outside, pack_tables
from numbadsd.kernels.cuda.topk import topk_rows, topk_workspace_size
from numbadsd.kernels.score_shape import score_shape
from numbadsd.pages.device import DevicePagePool
from numbadsd.pages.staging import Block

_FIRST_PAGES = 8
_MARKS = ("start", "h2d", "launch", "page_table", "payload", "score", "topk", "attend", "d2h")


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

    @property
    def waits(self) -> bool:
        """Whether the host needs anything of a step before the next one."""
        return self.timing or self.output_mode != "none"


@dataclass(frozen=True)
class StepShape:
    """What a step is made for.

    Attributes
    ----------
    queries : {"host", "device", "made"}
        They travel with the step; they are on the device; the step makes them.
    seed : int
        Of queries that are made.
    """

    batch: int
    max_pages: int
    is_sparse: bool
    queries: str = "host"
    seed: int = 0

    @staticmethod
    def holding(
        batch: int, max_pages: int, is_sparse: bool, queries: str = "host", seed: int = 0
    ) -> "StepShape":
        """Return the shape that a batch uses: both sizes are rounded up to a power of two.

        So an engine whose batch and contexts change with every step has few graphs.
        """
        pages = _power_of_two(max(_FIRST_PAGES, max_pages))
        return StepShape(_power_of_two(batch), pages, is_sparse, queries, seed)


def _power_of_two(number: int) -> int:
    """Return the least power of two that is not below a positive number."""
    return 1 << (number - 1).bit_length()


class GpuStep:
    """A decode step of one shape over one pool."""

    def __init__(self, pool: DevicePagePool, shape: StepShape, options: StepOptions):
        self.pool, self.shape, self.options = pool, shape, options
        self.generation = pool.tables.generation
        config, batch, empty = pool.config, shape.batch, pool.driver.empty
        heads, dim, units = config.num_heads, config.head_dim, config.num_units
        queries = (batch, heads, dim), np.float32
        inputs = {"rows": ((batch,), np.int32), "request_ids": ((batch,), np.int64)}
        on_host = {"queries": queries} if shape.queries == "host" else {}
        self._inputs = Block(pool.driver, inputs | on_host)
        self._queries = self._inputs.on_device["queries"] if on_host else empty(*queries)
        outputs = {"outputs": queries, "lse": ((batch, heads), np.float32)}
        sparse_outputs = {
            "selected": ((batch, units, config.top_k_pages), np.int32),
            "scores": ((batch, units, shape.max_pages), np.float32),
        }
        self._outputs = Block(pool.driver, outputs | (sparse_outputs if shape.is_sparse else {}))
        end_of = self._outputs.end_of
        download_ends = {"none": 0, "outputs": end_of("lse"), "debug": self._outputs.host.size}
        self._download_bytes = download_ends[options.output_mode]
        self._table = [empty(batch + 1, np.int32), empty(batch * shape.max_pages, np.int32),
                       empty(batch, np.int32)]  # fmt: skip
        self._page_counts, self._positions = empty(batch, np.int32), empty(batch, np.int64)
        self._faults = Block(pool.driver, {"faults": ((1,), np.int32)})
        max_splits = shared.most_splits(shape.max_pages, config.page_size)
        self._partials = [
            empty(size, np.float32) for size in workspace_sizes(batch, heads, dim, max_splits)
        ]
        if shape.is_sparse:
            scoring = score_shape(config.summary, config.share, pool.summaries.shape, heads)
            self._factors = empty(factors_size(batch, scoring, dim), np.float32)
            self._topk_memory = empty(topk_workspace_size(batch * units, shape.max_pages), np.int32)
        self._events: dict[str, object] = {}  # of the ends of stages, in order
        self._graph = self._rows = self._given = None
        self._is_sent = False
        self._batch, self._views = batch, {}  # of the last step, at most the shape's; on the device

    # ---- the stages, in order

    def _enqueue(self) -> None:
        """Give the step, whose inputs are on the device, to the pool's stream."""
        self._mark("launch")  # from here on the device waits for nobody
        self._pack()
        self._mark("page_table")
        if self.shape.queries == "made":
            fill_uniform(
                self._queries, self.shape.seed, self._inputs.on_device["request_ids"],
                self._positions, shared.QUERY, stream=self.pool.stream,
            )  # fmt: skip
            self._mark("payload")
        if self.shape.is_sparse:
            self._select()
        self._attend()
        self._mark("attend")
        self._download()
        self._mark("d2h")

    def _pack(self) -> None:
        tables = self.pool.tables
        pack_tables(
            self._inputs.on_device["rows"], tables.row_pages, tables.row_tokens,
            self.pool.config.page_size, *self._table, self._page_counts, self._positions,
            stream=self.pool.stream,
        )  # fmt: skip

    def _mark(self, stage: str) -> None:
        """Note that a stage has ended here."""
        if self.options.timing:
            self._events[stage] = self.pool.stream.record(self._events.get(stage))

    def _select(self) -> None:
        config, pool, out = self.pool.config, self.pool, self._outputs.on_device
        score_pages(
            self._queries, pool.summaries, *self._table[:2], config.summary,
            config.share, config.sm_scale, out["scores"], stream=pool.stream,
            workspace=self._factors,
        )  # fmt: skip
        self._mark("score")
        rows, width = self.shape.batch * config.num_units, self.shape.max_pages
        topk_rows(
            out["scores"].reshape(rows * width), width, width, self._page_counts,
            config.num_sink_pages, config.num_recent_pages, "position",
            out["selected"].reshape(rows, config.top_k_pages), stream=pool.stream,
            workspace=self._topk_memory,
        )  # fmt: skip
        self._mark("topk")

    def _attend(self) -> None:
        config, pool, out = self.pool.config, self.pool, self._outputs.on_device
        attend_pages(
            self._queries, pool.keys, pool.values, *self._table,
            config.num_kv_heads, config.sm_scale, out["outputs"], out["lse"], stream=pool.stream,
            workspace=self._partials, max_pages=self.shape.max_pages,
            selected=out["selected"] if self.shape.is_sparse else None,
        )  # fmt: skip

    def _download(self) -> None:
        end = self._download_bytes
        if end:
            self.pool.stream.download(self._outputs.host[:end], self._outputs.device[:end])

    # ---- a run

    def wait(self) -> None:
        """Wait until the inputs may be written: the device has begun with the last step."""
        self._inputs.wait()

    def write_inputs(self, queries: np.ndarray | DeviceArray | None, rows: np.ndarray) -> None:
        """Fill what the step starts from; what the batch lacks to the shape has no tokens."""
        self._batch, on_host = len(rows), self._inputs.on_host
        if rows is not self._rows:  # the tables give the same array for the same batch
            self._rows, self._is_sent = rows, False
            on_host["rows"][: self._batch], on_host["rows"][self._batch :] = rows, -1
            on_host["request_ids"][: self._batch] = self.pool.cache.table.ids[rows]
            on_host["request_ids"][self._batch :] = 0
        if self.shape.queries == "host":
            on_host["queries"][: self._batch], self._is_sent = queries, False
        self._given = queries  # what is on the device is read later, and lives as long

    def num_faults(self) -> int:
        """Return how many page ids of the batch are outside the pool, before a page is read."""
        stream, faults = self.pool.stream, self._faults.on_device["faults"]
        stream.upload(self._inputs.device, self._inputs.host)
        self._pack()
        count_outside(*self._table[:2], self.pool.cache.pool.capacity_pages, faults, stream=stream)
        stream.download(self._faults.on_host["faults"], faults)
        stream.synchronize()
        return int(self._faults.on_host["faults"][0])

    @property
    def is_recorded(self) -> bool:
        """Whether the step is a graph that `start` can replay."""
        return self._graph is not None

    def record(self) -> None:
        """Make the graph; the step runs once, which compiles and loads what a capture cannot."""
        self._send()
        self._enqueue()
        self.pool.stream.synchronize()
        self._graph = self.pool.stream.capture(self._enqueue)

    def start(self, use_graph: bool) -> None:
        """Start the step: by one call, or launch by launch."""
        self._mark("start")
        self._send()
        self._mark("h2d")
        if use_graph:
            self.pool.stream.replay(self._graph)
        else:
            self._enqueue()

    def _send(self) -> None:
        """Bring to the device what it does not have of the inputs."""
        stream = self.pool.stream
        if not self._is_sent:
            self._inputs.send(stream, self.pool.stats)
            self._is_sent = True
        if self.shape.queries == "device":
            stream.copy(self._queries[: self._batch], self._given)
        self._inputs.guard(stream)  # also where nothing is sent: the host stays a step ahead

    def finish(self) -> dict[str, float]:
        """Wait for the step, if anything of it is asked for; return the milliseconds of its stages.

        Those are between events of the device; "launch" is its wait for the host's call.
        """
        if self._download_bytes:
            self.pool.stats.count_d2h(self._download_bytes)
        if not self.options.waits:
            return {}
        self.pool.stream.synchronize()
        events = [(name, self._events[name]) for name in _MARKS if name in self._events]
        pairs = zip(events, events[1:], strict=False)
        return {stage: event.elapsed_ms(before) for (_, before), (stage, event) in pairs}

    def output(self, name: str) -> np.ndarray:
        """Return a copy of an output of the last step: outputs, lse, selected or scores."""
        return self._outputs.on_host[name][: self._batch].copy()

    def device_outputs(self) -> dict[str, DeviceArray]:
        """Return all outputs as they lie on the device, valid until the next step."""
        views = self._views.get(self._batch)
        if views is None:
            arrays = self._outputs.on_device
            views = {name: array[: self._batch] for name, array in arrays.items()}
            self._views[self._batch] = views
        return dict(views)
