"""Decode on a CUDA device: dense over every page, sparse over the selected ones."""

import numpy as np

from numbadsd.config import check
from numbadsd.decode.gpu_step import GpuStep, StepOptions, StepShape
from numbadsd.decode.inputs import UniformQueries, checked_queries, device_queries
from numbadsd.errors import IntegrityError
from numbadsd.kernels.cuda.attend import MAX_TILE_HEADS
from numbadsd.kernels.topk_shape import MAX_K
from numbadsd.pages.cache import PagedKvCache
from numbadsd.pages.device import device_pool_of
from numbadsd.timing import StageClock
from numbadsd.types import DecodeResult

MAX_HEAD_DIM = 256
OUTPUT_MODES = ("none", "outputs", "debug")
_KEPT_STEPS = 32  # shapes whose buffers and graphs are kept
_NO_KERNELS = ("h2d", "launch", "d2h")  # parts of a step's time on the device


class _GpuPath:
    """What both GPU paths share: arguments, steps by shape, and times.

    Parameters
    ----------
    cache : PagedKvCache
        Copied to the device when its first GPU path is made, and followed from then on.
    fused : bool
        Both routes attend in place on a device; accepted so that every path takes it.
    output_mode : {"outputs", "none", "debug"}
        What comes back: outputs and lse; nothing; or selected pages and scores as well.
    timing : bool
        Measure the stages with events. Without, and with output mode "none", `decode` returns when
        the step is started, and the host's part of the next one overlaps it: `synchronize` waits,
        and raises what went wrong on the device (or a later call does).
    use_graph : bool
        False launches every kernel by itself, with the same bits.
    debug : bool
        Check the page ids on the device in every step, before a kernel reads a page by them.
    """

    is_sparse: bool

    def __init__(
        self,
        cache: PagedKvCache,
        *,
        fused: bool = True,
        output_mode: str = "outputs",
        timing: bool = True,
        use_graph: bool = True,
        debug: bool = False,
    ):
        check(output_mode in OUTPUT_MODES, "output_mode", output_mode, " | ".join(OUTPUT_MODES))
        self.cache, self.config = cache, cache.config
        self._check_config()
        self.use_graph, self.debug = use_graph, debug
        self._options = StepOptions(output_mode, timing)
        self.pool = device_pool_of(cache)
        self._steps: dict[StepShape, GpuStep] = {}

    def _check_config(self) -> None:
        """Refuse what the kernels cannot do, before anything is allocated."""
        config = self.config
        check(config.head_dim <= MAX_HEAD_DIM, "head_dim", config.head_dim,
              f"at most {MAX_HEAD_DIM} on a GPU")  # fmt: skip
        check(config.group_size <= MAX_TILE_HEADS, "num_heads", config.num_heads,
              f"at most {MAX_TILE_HEADS} query heads on a kv head on a GPU")  # fmt: skip
        if self.is_sparse:
            check(config.top_k_pages <= MAX_K, "top_k_pages", config.top_k_pages,
                  f"at most {MAX_K} on a GPU")  # fmt: skip

    def decode(self, queries: np.ndarray | UniformQueries, request_ids) -> DecodeResult:
        """Attend one query per request to that request's context.

        Parameters
        ----------
        queries : ndarray [B, H, D] float32, a device array of these, or UniformQueries
            One query per request. With ``__cuda_array_interface__`` (a `DeviceArray`, CuPy, torch)
            nothing of the step depends on the host but the list of requests; what makes the
            queries must have ended, and they stay as they are until the step has.
            `UniformQueries` are made in the step.
        request_ids : sequence of int, length B
            Requests of the cache.

        Returns
        -------
        DecodeResult
            Zeros and lse = -inf where nothing is attended; None for what the output mode leaves
            on the device, where `on_device` has it.
        """
        clock = StageClock()
        queries, *source = self._checked(queries, request_ids)
        rows, max_pages = self.pool.tables.sync(request_ids)
        clock.lap("page_table")
        if not len(rows):
            return self._empty_result(clock)
        step = self._step(StepShape.holding(len(rows), max_pages, self.is_sparse, *source))
        step.wait()
        clock.lap("sync")
        step.write_inputs(queries, rows)
        clock.lap("h2d")
        if self.debug:
            self._check_page_ids(step)
            clock.lap("page_table")
        if self.use_graph and not step.is_recorded:
            step.record()
        clock.lap("malloc")
        step.start(self.use_graph)
        # the device works while the host still launches: what is left of both is one overhead
        parts_ns = {stage: int(ms * 1e6) for stage, ms in step.finish().items()}
        clock.lap_parts(parts_ns, rest="launch")
        kernel_ns = sum(ns for stage, ns in parts_ns.items() if stage not in _NO_KERNELS)
        return self._result(step, clock, kernel_ns / 1e6)

    def synchronize(self) -> None:
        """Wait for the steps so far."""
        self.pool.stream.synchronize()

    def _checked(self, queries, request_ids) -> tuple:
        """Return the queries as a step takes them, where they come from, and their seed."""
        if isinstance(queries, UniformQueries):
            return None, "made", queries.seed
        if hasattr(queries, "__cuda_array_interface__"):
            return device_queries(queries, request_ids, self.config), "device"
        return checked_queries(queries, request_ids, self.config), "host"

    def _step(self, shape: StepShape) -> GpuStep:
        """Return the step of a shape, made again when the tables have moved."""
        step = self._steps.pop(shape, None)
        if step is None or step.generation != self.pool.tables.generation:
            step = GpuStep(self.pool, shape, self._options)
        self._steps[shape] = step  # the one used last is last
        if len(self._steps) > _KEPT_STEPS:
            self.synchronize()  # nobody may have waited for the one that goes
            del self._steps[next(iter(self._steps))]
        return step

    def _check_page_ids(self, step: GpuStep) -> None:
        faults = step.num_faults()
        if faults:
            raise IntegrityError(f"the page table points outside the pool {faults} times")

    def _result(self, step: GpuStep, clock: StageClock, kernel_ms: float) -> DecodeResult:
        mode = self._options.output_mode
        outputs = lse = selected = scores = None
        if mode != "none":
            outputs, lse = step.output("outputs"), step.output("lse")
        if mode == "debug" and self.is_sparse:
            selected, scores = step.output("selected"), step.output("scores")
        clock.lap("d2h")
        on_device = step.device_outputs()
        return DecodeResult(outputs, lse, selected, clock.times(kernel_ms), scores, on_device)

    def _empty_result(self, clock: StageClock) -> DecodeResult:
        config, mode = self.config, self._options.output_mode
        outputs = lse = selected = scores = None
        if mode != "none":
            outputs = np.empty((0, config.num_heads, config.head_dim), np.float32)
            lse = np.empty((0, config.num_heads), np.float32)
        if mode == "debug" and self.is_sparse:
            selected = np.empty((0, config.num_units, config.top_k_pages), np.int32)
            scores = np.empty((0, config.num_units, 0), np.float32)
        return DecodeResult(outputs, lse, selected, clock.times(), scores)


class DenseGpuPath(_GpuPath):
    """Attention over every page."""

    is_sparse = False


class SparseGpuPath(_GpuPath):
    """Score pages, select the best, attend to them in place."""

    is_sparse = True
