"""`dsd_continuous_bench`: requests that come and go, decoded together and one at a time."""

from collections.abc import Callable
from dataclasses import asdict, replace
from time import perf_counter

import numpy as np
from tqdm import tqdm

from numbadsd.analysis.roofline import break_even_tokens, step_traffic
from numbadsd.bench.record import SCHEMA_VERSION, environment
from numbadsd.bench.serving_setup import (
    as_requests,
    budget_pages,
    check_memory,
    choose_backend,
    draw_requests,
    make_backend,
    make_engine,
    make_tokens,
    pool_pages,
    warm_up,
)
from numbadsd.config import ContinuousBenchConfig
from numbadsd.errors import CudaUnavailable, EngineError
from numbadsd.serving.engine import Engine
from numbadsd.serving.metrics import decode_contexts, summarise
from numbadsd.serving.timeline import Timeline
from numbadsd.workload.arrivals import RequestList

DECODE_STAGES = {
    "score": "score_ms", "topk": "topk_ms", "gather": "gather_ms", "attention": "attend_ms",
    "kernel": "kernel_ms", "h2d": "h2d_ms", "d2h": "d2h_ms", "launch": "launch_ms",
    "sync": "sync_ms", "prepare_sparse_layout": "sparse_layout_ms",
}  # fmt: skip


def run_continuous_bench(
    config: ContinuousBenchConfig,
    workload: RequestList | None = None,
    command: str = "dsd_continuous_bench",
    *,
    slo: dict[str, float] | None = None,
    timeline: Timeline | None = None,
    on_engine: Callable[[Engine], None] = lambda engine: None,
) -> dict:
    """Run a workload continuously, and serially where that is asked for; returns the record.

    Parameters
    ----------
    config : ContinuousBenchConfig
        What to measure.
    workload : RequestList, optional
        The requests; those of the reference system by default.
    command : str
        The command line, for the record.
    slo : dict, optional
        Milliseconds that a good request may take (see `serving.metrics`).
    timeline : Timeline, optional
        Gets the steps of the continuous run.
    on_engine : callable
        Called with each engine before it runs, so that it can be stopped.
    """
    workload = draw_requests(config) if workload is None else workload
    requests = as_requests(workload)
    record = {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "config": {**asdict(config), "model": asdict(config.model)},
        "workload": {"unit": workload.unit, "requests": len(requests), **workload.source},
    }
    try:
        backend = choose_backend(config)
    except CudaUnavailable as error:
        label = "continuous_sparse" if config.is_sparse else "continuous_dense_gpu"
        results = {f"{label}_available": 0, "reason": f"{error.reason}; {error.remedy}"}
        return record | {"environment": environment(), "results": results}
    label = f"continuous_{'sparse' if config.is_sparse else 'dense_' + backend}"
    budget = budget_pages(config, backend)
    num_pages = pool_pages(config, requests, budget)
    check_memory(config, num_pages, sum(r.new_tokens for r in requests), backend)
    warm_up(config, backend)
    results = {f"{label}_available": 1, "backend": backend}
    results["kv_budget_pages"] = budget
    run = _Run(config, requests, backend, num_pages, on_engine)
    engine, timed = run.once(label, timeline)
    results["total_generated_tokens"] = engine.stats.generated_tokens
    results |= {f"{label}_{name}": value for name, value in timed.items()}
    results |= _kv_traffic(config, engine)
    if config.serial:
        alone_config = replace(config, max_active_requests=1)
        name = label.replace("continuous", "serial")
        run = _Run(alone_config, requests, backend, num_pages, on_engine)
        _, alone = run.once(name, None)
        results |= {f"{name}_{key}": value for key, value in alone.items()}
        for suffix in ("", "_including_admission"):
            key = f"tokens_per_second{suffix}"
            ratio = timed[key] / alone[key] if alone[key] else float("nan")
            results[f"continuous_vs_serial_speedup{suffix}"] = ratio
    results["serving"] = summarise(engine.log, slo)
    results["serving"]["clock"] = config.clock
    results["serving"]["preempted"] = engine.scheduler.preemptions
    results["serving"]["recomputed_tokens"] = engine.scheduler.recomputed_tokens
    results["serving"]["not_started"] = engine.stats.not_started
    results["serving"]["rejections"] = engine.log.rejected
    return record | {"environment": environment(backend == "gpu"), "results": results}


class _Run:
    """Runs of one workload, each with a cache of its own."""

    def __init__(self, config, requests, backend: str, num_pages: int, on_engine):
        self._config, self._requests, self._backend = config, requests, backend
        self._num_pages, self._on_engine = num_pages, on_engine

    def once(self, label: str, timeline: Timeline | None) -> tuple[Engine, dict]:
        """Run the workload; return the engine, and times under the reference's names."""
        config = self._config
        start = perf_counter()
        tokens = make_tokens(config, self._requests)
        prepared_ms = (perf_counter() - start) * 1e3 if config.precompute_decode_payloads else 0.0
        runner = make_backend(config, self._backend, self._num_pages, tokens, None)
        total = sum(request.new_tokens for request in self._requests)
        with tqdm(total=total, desc=label, unit="tok", leave=False, disable=None) as bar:
            engine = make_engine(
                config, runner, self._num_pages, timeline=timeline, on_step=bar.update
            )
            start = perf_counter()
            if config.preadmit_prompts:
                engine.preadmit(self._requests)
            preadmit_ms = (perf_counter() - start) * 1e3
            self._on_engine(engine)
            try:
                engine.run(self._requests)
            except EngineError as error:
                error.partial = engine
                raise
        return engine, _timed(config, engine, runner, prepared_ms, preadmit_ms)


def _timed(config, engine: Engine, runner, prepared_ms: float, preadmit_ms: float) -> dict:
    """Return the keys that the reference system prints for a label, and ours."""
    stats, steps = engine.stats, max(1, len(engine.stats.step_ns))
    ms = {name: spent / 1e6 for name, spent in stats.stages_ns.items()}
    total_ms = stats.total_ns / 1e6
    end_to_end_ms = prepared_ms + preadmit_ms + total_ms
    named_ms = ms["decode"] + ms["admission"] + ms["append"] + ms["release"]
    step_ms = np.array(stats.step_ns) / 1e6
    measures = config.run_batch_timing_mode != "disabled" and step_ms.size
    percentile = lambda p: float(np.percentile(step_ms, p)) if measures else float("nan")  # noqa: E731
    return {
        "total_ms": total_ms,
        "measured_end_to_end_ms": end_to_end_ms,
        "tokens_per_second": stats.generated_tokens / total_ms * 1e3,
        "tokens_per_second_including_admission": stats.generated_tokens / end_to_end_ms * 1e3,
        "admission_ms": preadmit_ms + ms["admission"],
        "prompt_preadmit_ms": preadmit_ms,
        "runtime_admission_ms": ms["admission"],
        "prefill_ms": ms["prefill"],
        "append_sync_ms": ms["append"],
        "release_sync_ms": ms["release"],
        "decode_payload_prep_ms": prepared_ms,
        "loop_payload_ms": ms["payload"],
        "schedule_ms": ms["schedule"],
        "idle_ms": ms["idle"],
        "run_batch_wall_ms": ms["decode"],
        "outside_run_batch_ms": total_ms - ms["decode"],
        "serving_loop_other_ms": max(0.0, total_ms - named_ms),
        "avg_step_ms": float(step_ms.mean()) if measures else float("nan"),
        "p50_step_ms": percentile(50),
        "p95_step_ms": percentile(95),
        "avg_active_batch_size": stats.active_steps / steps,
        "steps": stats.num_steps,
        "prefilled_tokens": stats.prompt_tokens,
        "peak_pages": engine.scheduler.budget.peak_pages,
        "gated_tokens": runner.gated_tokens,
        **_decode_stages(config, runner, steps),
        **_transfers(runner),
    }


def _decode_stages(config, runner, steps: int) -> dict:
    """Return the averages of a decode step's stages; NaN where they were not measured."""
    measured = config.run_batch_timing_mode == "kernel_events"
    return {
        f"avg_{name}_ms": runner.times.stages.get(stage, 0.0) / steps if measured else float("nan")
        for name, stage in DECODE_STAGES.items()
    }


def _transfers(runner) -> dict:
    """Return what crossed between host and device; zeros on the CPU."""
    stats = getattr(getattr(runner, "pool", None), "stats", None)
    return {
        f"device_{way}_{what}": getattr(stats, f"{way}_{what}", 0)
        for way in ("h2d", "d2h")
        for what in ("bytes", "calls", "large_calls")
    }


def _kv_traffic(config: ContinuousBenchConfig, engine: Engine) -> dict:
    """Return bytes held and bytes read in a step, and where sparse is the cheaper one by bytes."""
    contexts = decode_contexts(engine.log)
    steps = max(1, len(engine.stats.step_ns))
    traffic = step_traffic(config.model, contexts)
    model = config.model
    read = traffic["sparse_target" if config.is_sparse else "dense"].num_bytes
    held = engine.stats.page_steps * (model.page_bytes + model.summary_bytes)
    is_cheaper = contexts > break_even_tokens(model)
    fraction = float(is_cheaper.mean()) if contexts.size else float("nan")
    return {
        "kv_bytes_resident_per_step": held / max(1, engine.stats.num_steps),
        "kv_bytes_read_per_step": read / steps,
        "kv_bytes_read_dense_per_step": traffic["dense"].num_bytes / steps,
        "sparse_cheaper_token_fraction": fraction,
    }
