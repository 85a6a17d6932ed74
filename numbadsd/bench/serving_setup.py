"""From a configuration to an engine: requests, memory, backend, scheduler, clock."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import psutil

from numbadsd.config import ContinuousBenchConfig, check
from numbadsd.decode.path import make_path
from numbadsd.decode.prefill import CpuPromptAttention
from numbadsd.errors import CudaUnavailable
from numbadsd.kernels.cuda.runtime import get_driver, why_unavailable
from numbadsd.kernels.cuda.switch import SIMULATED
from numbadsd.pages.cache import PagedKvCache
from numbadsd.pages.layout import cache_bytes, pages_for
from numbadsd.serving.backend import CacheBackend
from numbadsd.serving.budget import parse_kv_budget
from numbadsd.serving.clock import Clock, StepClock, VirtualClock, WallClock
from numbadsd.serving.engine import Engine
from numbadsd.serving.plan import SchedulerConfig
from numbadsd.serving.request import Request
from numbadsd.serving.scheduler import Scheduler
from numbadsd.types import TokenSource
from numbadsd.workload.arrivals import RequestList, reference_requests
from numbadsd.workload.payload import StoredTokens, UniformTokens

OWN_BYTES = 256 << 20  # interpreter, compiled code, scratch
KEPT_SHAPES, FIRST_PAGES = 32, 8  # of a GPU path: steps that it keeps, the least it rounds up to


def choose_backend(config: ContinuousBenchConfig) -> str:
    """Return "cpu" or "gpu"; auto is a GPU where one is usable, and never the simulator.

    Raises CudaUnavailable when "gpu" is named and none is usable.
    """
    problem = why_unavailable() if config.backend != "cpu" else None
    if config.backend == "gpu" and problem is not None:
        raise CudaUnavailable(*problem)
    if config.backend == "auto":
        return "cpu" if SIMULATED or problem is not None else "gpu"
    return config.backend


def draw_requests(config: ContinuousBenchConfig) -> RequestList:
    """Return the reference system's workload."""
    return reference_requests(
        config.num_requests, config.arrival_window, config.min_prompt_tokens,
        config.max_prompt_tokens, config.min_decode_steps, config.max_decode_steps, config.seed,
    )  # fmt: skip


def as_requests(workload: RequestList) -> list[Request]:
    """Return the rows of a workload; a request's id is its row."""
    return [Request(i, *row) for i, row in enumerate(workload)]


def budget_pages(config: ContinuousBenchConfig, backend: str) -> int | None:
    """Return the pages that requests may hold together; None for no limit."""
    model = config.model
    page_bytes = model.page_bytes + model.summary_bytes
    token_bytes = -(-page_bytes // model.page_size)

    def free_bytes() -> int:
        if backend == "gpu":
            return get_driver().memory_bytes()[0]
        return max(0, psutil.virtual_memory().available - OWN_BYTES)

    return parse_kv_budget(config.kv_budget, token_bytes, model.page_size, free_bytes)


def pool_pages(
    config: ContinuousBenchConfig, requests: Sequence[Request], budget: int | None
) -> int:
    """Return the pages of the pool: what the budget allows, and no more than can be in use."""
    needs = np.array([pages_for(r.total_tokens, config.page_size) for r in requests], np.int64)
    if config.preadmit_prompts:
        most = int(needs.sum())
        want = f"0: all requests together need {most} pages, the KV budget has {budget}"
        check(budget is None or most <= budget, "preadmit_prompts", 1, want)
        return most
    if budget is not None:
        needs = needs[needs <= budget]  # the others are rejected
    most = max(1, int(np.sort(needs)[-config.max_active_requests :].sum()))
    return most if budget is None else min(most, budget)


def check_memory(config: ContinuousBenchConfig, num_pages: int, num_tokens: int, backend: str):
    """Raise ValueError, with the bytes, when a run cannot fit in memory."""
    model, page_bytes, payload_bytes = config.model, 0, 0
    if backend == "cpu" or config.admission_mode == "cpu_cache":
        page_bytes = cache_bytes(model, num_pages)
    if config.precompute_decode_payloads:
        payload_bytes = StoredTokens.num_bytes(model, num_tokens, _queries_only(config, backend))
    needed, available = OWN_BYTES + page_bytes + payload_bytes, psutil.virtual_memory().available
    name = "kv_budget" if page_bytes > payload_bytes else "precompute_decode_payloads"
    want = f"a run that fits in memory: it needs {needed:,} bytes of {available:,} available"
    check(needed <= available, name, getattr(config, name), want)


def make_tokens(
    config: ContinuousBenchConfig, requests: Sequence[Request], backend: str
) -> TokenSource:
    """Return where tokens come from: made in the loop, or before it."""
    tokens = UniformTokens(config.seed)
    if not config.precompute_decode_payloads:
        return tokens
    prompts = [request.prompt_tokens for request in requests]
    counts = [request.new_tokens for request in requests]
    queries_only = _queries_only(config, backend)
    return StoredTokens(tokens, config.model, prompts, counts, queries_only)


def _queries_only(config: ContinuousBenchConfig, backend: str) -> bool:
    """Whether a device makes the keys and values that decode appends."""
    return backend == "gpu" and bool(config.gpu_synthetic_decode_append)


def make_backend(
    config: ContinuousBenchConfig,
    backend: str,
    num_pages: int,
    tokens: TokenSource,
    requests: Sequence[Request],
    on_outputs: Callable | None = None,
) -> CacheBackend:
    """Return what executes the steps of one run, with an empty cache."""
    if backend == "gpu":
        return _device_backend(config, num_pages, tokens, requests, on_outputs)
    cache = PagedKvCache(config.model, num_pages)
    for array in (cache.pool.keys, cache.pool.values):
        array.reshape(-1).view(np.uint8)[::4096] = 0  # a server's pool is there before its requests
    names = ("sparse_cpu", "dense_cpu") if config.is_sparse else ("dense_cpu",)
    paths = [make_path(name, cache) for name in names]
    return CacheBackend(
        cache, paths[0], tokens, CpuPromptAttention(cache), short_path=paths[-1],
        gate_tokens=config.gate_tokens, on_outputs=on_outputs,
    )  # fmt: skip


def _device_backend(
    config: ContinuousBenchConfig, num_pages: int, tokens, requests, on_outputs
) -> CacheBackend:
    # imported here: they need CUDA, which the CPU backend does without
    from numbadsd.decode.gpu_prefill import GpuPromptAttention
    from numbadsd.decode.inputs import UniformQueries
    from numbadsd.pages.device import device_pool_of
    from numbadsd.serving.gpu_backend import DeviceBackend

    on_host = config.admission_mode == "cpu_cache"
    makes_steps = bool(config.gpu_synthetic_decode_append)
    makes_queries = makes_steps and not config.precompute_decode_payloads
    cache = PagedKvCache(config.model, num_pages, allocate_storage=on_host)
    mode = {"full_outputs": "debug", "outputs_only": "outputs", "no_outputs": "none"}
    options = {
        "output_mode": mode[config.run_batch_output_mode],
        "timing": config.run_batch_timing_mode == "kernel_events",
    }
    names = ("sparse_gpu", "dense_gpu") if config.is_sparse else ("dense_gpu",)
    paths = [make_path(name, cache, **options) for name in names]
    pool = device_pool_of(cache)
    # who is preadmitted has a row before the loop, who is released late still has one
    most_rows = len(requests) if config.preadmit_prompts else 2 * config.max_active_requests
    pool.tables.reserve(min(len(requests), most_rows), 1)
    for path in paths[: 2 if config.gate_tokens else 1]:
        queries = UniformQueries(config.seed) if makes_queries else None
        _record_steps(path, config.max_active_requests, requests, queries)
    if makes_steps:
        _record_appends(pool, config.max_active_requests, config.seed)
    pool.stream.synchronize()
    pool.stats.reset()
    attention = GpuPromptAttention(pool, config.run_batch_output_mode != "no_outputs")
    options = {
        "short_path": paths[-1], "gate_tokens": config.gate_tokens, "on_outputs": on_outputs,
        "waits": config.run_batch_timing_mode == "host_wall",
    }  # fmt: skip
    if on_host:
        return CacheBackend(cache, paths[0], tokens, attention, device_pool=pool, **options)
    return DeviceBackend(
        pool, paths[0], tokens, attention, seed=config.seed,
        makes_prompts=config.admission_mode == "synthetic_gpu_prefill", makes_steps=makes_steps,
        makes_queries=makes_queries, **options,
    )  # fmt: skip


def _record_steps(path, max_active: int, requests: Sequence[Request], queries) -> None:
    """Let a GPU path make its graphs before the loop, which would wait for them.

    One for each shape that steps are rounded to: batches up to the most that are active, contexts
    up to the longest. The longest ones come last, they are kept when there are too many; and
    first, so that the tables have their final size. `queries` of None are the host's.
    """
    cache, model = path.cache, path.config
    most_pages = max(pages_for(r.total_tokens, model.page_size) for r in requests)
    fewest = min(pages_for(r.prompt_tokens, model.page_size) for r in requests)
    shapes = [
        (batch, count)
        for batch in _powers_of_two(1, min(max_active, len(requests)))
        for count in _powers_of_two(max(fewest, FIRST_PAGES), most_pages)
        if count + batch - 1 <= cache.pool.capacity_pages
    ][-KEPT_SHAPES:]
    for batch, count in (*shapes[-1:], *shapes):
        for request_id in range(batch):  # the first is the longest
            _put_tokens(cache, request_id, 1 if request_id else count * model.page_size)
        zeros = np.zeros((batch, model.num_heads, model.head_dim), np.float32)
        path.decode(zeros if queries is None else queries, tuple(range(batch)))
        cache.reset()


def _record_appends(pool, max_active: int, seed: int) -> None:
    """Let a device pool make its graphs of appends, one for each batch, as `_record_steps` does."""
    for batch in _powers_of_two(1, min(max_active, pool.cache.pool.capacity_pages)):
        for request_id in range(batch):
            pool.cache.append_metadata(request_id, 0)
        pool.append_synthetic(tuple(range(batch)), seed)
        pool.cache.reset()


def _powers_of_two(low: int, high: int) -> list[int]:
    """Return one number for each power of two that numbers in [low, high] are rounded up to."""
    first, last = (min(low, high) - 1).bit_length(), (high - 1).bit_length()
    return [min(1 << i, high) for i in range(first, last + 1)]


def _put_tokens(cache: PagedKvCache, request_id: int, num_tokens: int) -> None:
    """Give a request tokens, whatever they are."""
    if not cache.pool.has_storage:
        return cache.append_metadata(request_id, num_tokens)
    zeros = np.zeros((num_tokens, cache.config.num_kv_heads, cache.config.head_dim), np.float32)
    cache.append_tokens(request_id, zeros, zeros)


def _make_clock(config: ContinuousBenchConfig, is_stopped: Callable[[], bool]) -> Clock:
    """Return the clock that arrivals are compared with."""

    def sleep(seconds: float) -> None:
        if is_stopped():
            raise InterruptedError  # nobody waits for arrivals any more
        time.sleep(seconds)

    if config.clock == "steps":
        return StepClock()
    return VirtualClock(config.step_ms) if config.clock == "virtual" else WallClock(sleep)


def make_engine(config: ContinuousBenchConfig, backend, capacity_pages: int, **options) -> Engine:
    """Return an engine over a backend."""
    # preadmitted prompts hold their pages whether they are active or not
    capacity = None if config.preadmit_prompts else capacity_pages
    scheduler = Scheduler(
        SchedulerConfig(
            config.max_active_requests, config.page_size, capacity, config.prefill,
            config.prefill_chunk_tokens, config.admission, preempt=config.preempt,
        )
    )  # fmt: skip
    clock = _make_clock(config, lambda: engine.is_stopped)
    lazy = bool(config.lazy_release)
    engine = Engine(scheduler, backend, clock, lazy_release=lazy, **options)
    return engine


def warm_up(config: ContinuousBenchConfig, backend: str) -> None:
    """Compile, or load, what a run needs: two tiny requests, one after the other."""
    tiny = replace(
        config, num_requests=2, max_active_requests=2, preadmit_prompts=0, clock="steps",
        step_ms=None, kv_budget="unlimited", gate_tokens=min(config.gate_tokens, 3),
    )  # fmt: skip
    requests = [Request(0, 0, 2, 2), Request(1, 0, 2 * config.page_size + 1, 2)]
    num_pages = 4 + 2 * len(requests)
    runner = make_backend(tiny, backend, num_pages, make_tokens(tiny, requests, backend), requests)
    make_engine(tiny, runner, num_pages).run(requests)
