"""The figures of a run: the reference system's names, ours, and what users waited for."""

from dataclasses import fields
from typing import NamedTuple

import numpy as np

from numbadsd.analysis.devices import CopyProbe, measure_transfer_gbps
from numbadsd.analysis.roofline import break_even_tokens, step_traffic
from numbadsd.config import ContinuousBenchConfig
from numbadsd.kernels.cpu.busy import BUSY
from numbadsd.pages.staging import TransferStats
from numbadsd.serving.backend import CacheBackend
from numbadsd.serving.engine import Engine
from numbadsd.serving.metrics import decode_contexts, summarise

NAN = float("nan")
DECODE_STAGES = {
    "score": "score_ms", "topk": "topk_ms", "gather": "gather_ms", "attention": "attend_ms",
    "kernel": "kernel_ms", "h2d": "h2d_ms", "d2h": "d2h_ms", "launch": "launch_ms",
    "sync": "sync_ms", "prepare_sparse_layout": "sparse_layout_ms",
}  # fmt: skip
KERNELS = ("score_ms", "topk_ms", "gather_ms", "attend_ms")


class Before(NamedTuple):
    """Milliseconds of what was done before the loop, and what kernels had run until then."""

    prepared_ms: float
    preadmit_ms: float
    busy_ns: int


def run_figures(
    config: ContinuousBenchConfig, engine: Engine, runner: CacheBackend, before: Before
) -> dict:
    """Return what is printed for a label: the reference system's keys in its order, then ours.

    All times of the loop are the host's, one after the other, so that they add up. On a GPU with
    no_outputs and timing disabled nobody waits for a step: its time on the device overlaps the
    host's part of the next one, and what the host waits for is in run_batch, append and, after the
    last step, run_batch again. With host_wall each step is waited for.
    """
    stats = engine.stats
    ms = {name: spent / 1e6 for name, spent in stats.stages_ns.items()}
    total_ms = stats.total_ns / 1e6
    end_to_end_ms = before.prepared_ms + before.preadmit_ms + total_ms
    named_ms = ms["decode"] + ms["admission"] + ms["append"] + ms["release"]
    return {
        "total_ms": total_ms,
        "measured_end_to_end_ms": end_to_end_ms,
        "tokens_per_second": _rate(stats.generated_tokens, total_ms),
        "admission_ms": before.preadmit_ms + ms["admission"],
        "prompt_preadmit_ms": before.preadmit_ms,
        "runtime_admission_ms": ms["admission"],
        "append_sync_ms": ms["append"],
        "release_sync_ms": ms["release"],
        "decode_payload_prep_ms": before.prepared_ms,
        "run_batch_wall_ms": ms["decode"],
        "outside_run_batch_ms": total_ms - ms["decode"],
        "serving_loop_other_ms": max(0.0, total_ms - named_ms),
        **_step_times(config, engine),
        "avg_active_batch_size": stats.active_steps / max(1, len(stats.step_ns)),
        **_decode_stages(config, engine, runner),
        **_transfers(runner),
        "tokens_per_second_including_admission": _rate(stats.generated_tokens, end_to_end_ms),
        "prefill_ms": ms["prefill"],
        "loop_payload_ms": ms["payload"],
        "schedule_ms": ms["schedule"],
        "idle_ms": ms["idle"],
        **_host_share(runner, total_ms - ms["idle"], before),
        "steps": stats.num_steps,
        "generated_tokens": stats.generated_tokens,
        "prefilled_tokens": stats.prompt_tokens,
        "gated_tokens": runner.gated_tokens,
        "peak_pages": stats.peak_pages,
        **_kv_traffic(config, engine),
    }


def _host_share(runner: CacheBackend, loop_ms: float, before: Before) -> dict:
    """Return the time in which kernels ran, and the share of the loop in which none did.

    On the CPU all compiled kernels of the loop; on a GPU those of decode, by their events.
    """
    if runner.device_pool is None:
        kernels_ms = (BUSY.ns - before.busy_ns) / 1e6
    else:  # NaN where no events were recorded
        kernels_ms = runner.times.stages.get("kernel_ms", 0.0) or NAN
    return {"kernels_ms": kernels_ms, "host_fraction": 1 - kernels_ms / loop_ms if loop_ms else NAN}


def _rate(tokens: int, ms: float) -> float:
    return tokens / ms * 1e3 if ms > 0 else NAN


def _step_times(config: ContinuousBenchConfig, engine: Engine) -> dict:
    """Return wall times of the steps that decoded; NaN where they are not asked for."""
    step_ms = np.array(engine.stats.step_ns) / 1e6
    if config.run_batch_timing_mode == "disabled" or not step_ms.size:
        return dict.fromkeys(("avg_step_ms", "p50_step_ms", "p95_step_ms"), NAN)
    p50, p95 = np.percentile(step_ms, (50, 95))
    return {
        "avg_step_ms": float(step_ms.mean()),
        "p50_step_ms": float(p50),
        "p95_step_ms": float(p95),
    }


def _decode_stages(config: ContinuousBenchConfig, engine: Engine, runner: CacheBackend) -> dict:
    """Return averages over decode steps; NaN where stages were not measured.

    On the CPU a step's kernels are its stages.
    """
    num_steps, total = len(engine.stats.step_ns), runner.times.stages
    if config.run_batch_timing_mode != "kernel_events" or not num_steps:
        return {f"avg_{name}_ms": NAN for name in DECODE_STAGES}
    means = {f"avg_{n}_ms": total.get(key, 0.0) / num_steps for n, key in DECODE_STAGES.items()}
    if runner.device_pool is None:
        means["avg_kernel_ms"] = sum(total.get(key, 0.0) for key in KERNELS) / num_steps
    return means


def _transfers(runner: CacheBackend) -> dict:
    """Return what crossed between host and device, in all and with prompts; zeros on the CPU."""
    names = [field.name for field in fields(TransferStats)]
    every = {f"device_{name}": getattr(runner.transfers, name) for name in names}
    prompts = {
        f"admission_device_{name}": getattr(runner.admission_transfers, name)
        for name in names
        if name.startswith("h2d")
    }
    return every | prompts


def _kv_traffic(config: ContinuousBenchConfig, engine: Engine) -> dict:
    """Return the bytes that requests held in a mean decode step, and those that it read.

    Read are, by the model of `analysis.roofline`, K and V of every token, or summaries of all pages
    and K and V of the selected ones; below the gate everything.
    """
    model, contexts = config.model, decode_contexts(engine.log)
    steps = max(1, len(engine.stats.step_ns))
    is_dense = contexts < (config.gate_tokens if config.is_sparse else np.inf)
    read_bytes = step_traffic(model, contexts[is_dense])["dense"].num_bytes
    read_bytes += step_traffic(model, contexts[~is_dense])["sparse_target"].num_bytes
    held_bytes = engine.stats.page_steps * (model.page_bytes + model.summary_bytes)
    return {
        "kv_bytes_resident_per_step": held_bytes / steps,
        "kv_bytes_read_per_step": read_bytes / steps,
        "kv_bytes_read_dense_per_step": step_traffic(model, contexts)["dense"].num_bytes / steps,
    }


def bus_gbps() -> dict:
    """Return the bandwidths of a GPU, measured: of copies on it, and to and from the host."""
    transfers = {f"measured_{way}_gbps": gbps for way, gbps in measure_transfer_gbps().items()}
    return {"measured_copy_gbps": CopyProbe().measure_gbps(), **transfers}


def sparse_cheaper_token_fraction(config: ContinuousBenchConfig, engine: Engine) -> float:
    """Return the share of decoded tokens whose context was over the break-even of bytes."""
    contexts = decode_contexts(engine.log)
    return float((contexts > break_even_tokens(config.model)).mean()) if contexts.size else NAN


def serving_figures(
    config: ContinuousBenchConfig, engine: Engine, slo: dict[str, float] | None
) -> dict:
    """Return what the users of a run saw, under vLLM's names.

    Every request is in exactly one of completed, failed, cancelled, rejected and not_started.
    """
    log = engine.log
    never_admitted = sum(request_id not in log.admissions for request_id in log.cancelled)
    figures = summarise(log, slo)
    figures["cancelled"] -= never_admitted
    return {
        "clock": config.clock,
        **figures,
        "not_started": engine.stats.not_started + never_admitted,
        "preempted": engine.scheduler.preemptions,
        "recomputed_tokens": engine.scheduler.recomputed_tokens,
        "rejections": dict(log.rejected),
    }
