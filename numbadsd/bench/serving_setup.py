"""From a configuration to an engine: requests, memory, backend, scheduler, clock."""

from collections.abc import Sequence
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
from numbadsd.serving.backend import CacheBackend
from numbadsd.serving.budget import parse_kv_budget
from numbadsd.serving.clock import StepClock, VirtualClock, WallClock
from numbadsd.serving.engine import Engine
from numbadsd.serving.plan import SchedulerConfig
from numbadsd.serving.request import Request
from numbadsd.serving.scheduler import Scheduler
from numbadsd.workload.arrivals import RequestList, reference_requests
from numbadsd.workload.payload import StoredTokens, UniformTokens

OWN_BYTES = 256 << 20  # interpreter, compiled code, scratch


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


def pool_pages(config: ContinuousBenchConfig, requests: Sequence[Request], budget: int | None):
    """Return the pages of the pool: what the budget allows, and no more than can be in use."""
    needs = np.array([-(-r.total_tokens // config.page_size) for r in requests], np.int64)
    if budget is not None:
        needs = needs[needs <= budget]  # the others are rejected
    most_active = config.max_active_requests
    if config.lazy_release:
        most_active *= 2  # the pages of a batch that has ended, and those of the next one
    together = needs if config.preadmit_prompts else np.sort(needs)[-most_active:]
    most = max(1, int(together.sum()))
    if config.preadmit_prompts and budget is not None:
        check(
            most <= budget, "preadmit_prompts", 1, f"0: all prompts need {most} pages of {budget}"
        )
    return most if budget is None else min(most, budget)


def check_memory(config: ContinuousBenchConfig, num_pages: int, num_tokens: int, backend: str):
    """Raise ValueError, with the bytes, when a run cannot fit in memory."""
    model = config.model
    needed = OWN_BYTES
    if backend == "cpu":
        needed += num_pages * (model.page_bytes + model.summary_bytes)
    if config.precompute_decode_payloads:
        needed += StoredTokens.num_bytes(model, num_tokens)
    available = psutil.virtual_memory().available
    want = f"a run that fits in memory: it needs {needed:,} bytes of {available:,} available"
    check(needed <= available, "pages", num_pages, want)


def make_tokens(config: ContinuousBenchConfig, requests: Sequence[Request]):
    """Return where tokens come from: made in the loop, or before it."""
    tokens = UniformTokens(config.seed)
    if not config.precompute_decode_payloads:
        return tokens
    prompts = [request.prompt_tokens for request in requests]
    return StoredTokens(tokens, config.model, prompts, [r.new_tokens for r in requests])


def make_backend(config: ContinuousBenchConfig, backend: str, num_pages: int, tokens, on_outputs):
    """Return what executes the steps of one run, with an empty cache."""
    if backend == "gpu":
        return _device_backend(config, num_pages, tokens, on_outputs)
    cache = PagedKvCache(config.model, num_pages)
    for array in (cache.pool.keys, cache.pool.values):
        array.reshape(-1).view(np.uint8)[::4096] = 0  # a server's pool is there before its requests
    names = ("sparse_cpu", "dense_cpu") if config.is_sparse else ("dense_cpu",)
    paths = [make_path(name, cache) for name in names]
    return CacheBackend(
        cache, paths[0], tokens, CpuPromptAttention(cache), short_path=paths[-1],
        gate_tokens=config.gate_tokens, on_outputs=on_outputs,
    )  # fmt: skip


def _device_backend(config: ContinuousBenchConfig, num_pages: int, tokens, on_outputs):
    # imported here: they need CUDA, which the CPU backend does without
    from numbadsd.pages.device import device_pool_of
    from numbadsd.serving.gpu_backend import DeviceBackend

    on_host = config.admission_mode == "cpu_cache"
    cache = PagedKvCache(config.model, num_pages, allocate_storage=on_host)
    mode = {"full_outputs": "debug", "outputs_only": "outputs", "no_outputs": "none"}
    options = {
        "output_mode": mode[config.run_batch_output_mode],
        "timing": config.run_batch_timing_mode == "kernel_events",
    }
    names = ("sparse_gpu", "dense_gpu") if config.is_sparse else ("dense_gpu",)
    paths = [make_path(name, cache, **options) for name in names]
    gate = {"short_path": paths[-1], "gate_tokens": config.gate_tokens, "on_outputs": on_outputs}
    check(config.prefill == "none", "prefill", config.prefill, "none on a GPU")
    if on_host:
        return CacheBackend(cache, paths[0], tokens, **gate)
    return DeviceBackend(
        device_pool_of(cache), paths[0], tokens, seed=config.seed,
        makes_prompts=config.admission_mode == "synthetic_gpu_prefill",
        makes_steps=bool(config.gpu_synthetic_decode_append), **gate,
    )  # fmt: skip


def make_clock(config: ContinuousBenchConfig):
    """Return the clock that arrivals are compared with."""
    if config.clock == "steps":
        return StepClock()
    return VirtualClock(config.step_ms) if config.clock == "virtual" else WallClock()


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
    return Engine(
        scheduler, backend, make_clock(config), lazy_release=bool(config.lazy_release), **options
    )


def warm_up(config: ContinuousBenchConfig, backend: str) -> None:
    """Compile, or load, what a run needs: two tiny requests, one after the other."""
    tiny = replace(
        config, num_requests=2, max_active_requests=2, preadmit_prompts=0, clock="steps",
        step_ms=None, kv_budget="unlimited", gate_tokens=min(config.gate_tokens, 3),
    )  # fmt: skip
    requests = [Request(0, 0, 2, 2), Request(1, 0, 2 * config.page_size + 1, 2)]
    num_pages = 4 + 2 * len(requests)
    runner = make_backend(tiny, backend, num_pages, make_tokens(tiny, requests), None)
    make_engine(tiny, runner, num_pages).run(requests)
