"""`run_continuous_bench`: figures that fit together, stops, faults, and GPU modes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbadsd.analysis.roofline import break_even_tokens, step_traffic
from numbadsd.bench.serving import StopSwitch, run_continuous_bench
from numbadsd.bench.serving_setup import (
    _powers_of_two,
    as_requests,
    check_memory,
    choose_backend,
    pool_pages,
)
from numbadsd.config import ContinuousBenchConfig, ModelConfig
from numbadsd.errors import CudaUnavailable
from numbadsd.kernels.cuda.runtime import why_unavailable
from numbadsd.pages.cache import PagedKvCache
from numbadsd.pages.staging import TransferStats
from numbadsd.serving.backend import CacheBackend
from numbadsd.serving.request import Request
from numbadsd.serving.stats import STAGES
from numbadsd.workload.arrivals import RequestList

CONFIG = ContinuousBenchConfig(
    6, 3, 4, 8, 40, 2, 5, 7, 2, 16, 4, 3, backend="cpu"
)  # 6 requests, 3 active; prompts of 8 to 40 tokens, 2 to 5 steps
ONE = replace(CONFIG, num_requests=1, top_k_pages=1, serial=False)
TOKEN_BYTES, PAGE_BYTES, SUMMARY_BYTES = 256, 1024, 128  # 2 heads of 16 float32, pages of 4
VARIANTS = {
    "plain": {},
    "dense": {"benchmark_mode": "dense_gpu"},
    "before": {"preadmit_prompts": 1, "precompute_decode_payloads": 1},
    "lazy": {"lazy_release": 1},
    "blocking": {"prefill": "blocking"},
    "packed": {"prefill": "packed", "prefill_chunk_tokens": 9},
    "preempt": {"preempt": True, "kv_budget": "60tok"},
    "pack": {"admission": "pack", "kv_budget": "80tok"},
    "gate": {"gate_tokens": 20},
}
# where every millisecond of the loop is, but for what is between the stages
LOOP = ("run_batch_wall", "runtime_admission", "prefill", "loop_payload", "append_sync",
        "release_sync", "schedule", "idle")  # fmt: skip


def requests_of(*lengths, unit="steps"):
    """Return requests of (arrival, prompt tokens, new tokens)."""
    return RequestList(*map(np.array, zip(*lengths, strict=True)), unit)


def figures_of(config, workload=None, **options):
    """Return the results, and the figures of the continuous run without their label."""
    results = run_continuous_bench(config, workload, **options)["results"]
    [label] = [name.removesuffix("_available") for name in results if name.endswith("_available")]
    return results, {
        name.removeprefix(f"{label}_"): value
        for name, value in results.items()
        if name.startswith(label)
    }


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS)
def variant(request):
    config = replace(CONFIG, **request.param)
    return config, *figures_of(config)


# ---- figures


def test_stages_add_up_and_rates_follow_from_the_times(variant):
    _, results, run = variant
    assert len(LOOP) == len(STAGES)
    total = run["total_ms"]
    assert 0 <= total - sum(run[f"{name}_ms"] for name in LOOP) < 0.5 * total
    assert run["outside_run_batch_ms"] == pytest.approx(total - run["run_batch_wall_ms"])
    named = ("run_batch_wall", "runtime_admission", "append_sync", "release_sync")
    other = total - sum(run[f"{name}_ms"] for name in named)
    assert run["serving_loop_other_ms"] == pytest.approx(max(0, other))
    before = run["prompt_preadmit_ms"] + run["decode_payload_prep_ms"]
    assert run["measured_end_to_end_ms"] == pytest.approx(total + before)
    assert run["admission_ms"] == run["prompt_preadmit_ms"] + run["runtime_admission_ms"]
    tokens = results["total_generated_tokens"]
    assert run["tokens_per_second"] == pytest.approx(tokens / total * 1e3)
    overall = run["tokens_per_second_including_admission"]
    assert overall == pytest.approx(tokens / run["measured_end_to_end_ms"] * 1e3)
    assert run["p50_step_ms"] <= run["p95_step_ms"]
    inside = sum(run[f"avg_{name}_ms"] for name in ("score", "topk", "gather", "attention"))
    assert inside == pytest.approx(run["avg_kernel_ms"]) and 0 < inside < run["avg_step_ms"]


def test_tokens_and_requests_are_all_there(variant):
    config, results, run = variant
    serving = results["serving"]
    assert serving["completed"] == config.num_requests
    tokens = results["total_generated_tokens"]
    assert tokens == run["generated_tokens"] == serving["total_output_tokens"]
    decode_steps = tokens / run["avg_active_batch_size"]
    assert decode_steps == pytest.approx(round(decode_steps)) and decode_steps <= run["steps"]
    alone = "serial_sparse" if config.is_sparse else "serial_dense_cpu"
    assert results[f"{alone}_generated_tokens"] == tokens
    assert results[f"{alone}_avg_active_batch_size"] == 1
    ratio = run["tokens_per_second"] / results[f"{alone}_tokens_per_second"]
    assert results["continuous_vs_serial_speedup"] == pytest.approx(ratio)
    written = 0 if config.preadmit_prompts else serving["total_input_tokens"]
    if serving["preempted"]:
        assert config.preempt and run["prefilled_tokens"] > written
        assert run["prefilled_tokens"] == written + serving["recomputed_tokens"]
    else:
        assert run["prefilled_tokens"] == written and serving["recomputed_tokens"] == 0
    assert serving["preempted"] or not config.preempt
    assert (run["decode_payload_prep_ms"] > 0) == bool(config.precompute_decode_payloads)
    assert (run["prompt_preadmit_ms"] > 0) == bool(config.preadmit_prompts)
    assert (run["prefill_ms"] > 0) == (config.prefill != "none")


def test_what_is_read_is_held_and_nothing_crosses_to_a_device(variant):
    config, _, run = variant
    assert 0 < run["kv_bytes_read_per_step"]
    whole_pages = config.max_active_requests * PAGE_BYTES  # the model counts selected pages whole
    assert run["kv_bytes_read_dense_per_step"] <= run["kv_bytes_resident_per_step"]
    assert run["kv_bytes_read_per_step"] <= run["kv_bytes_resident_per_step"] + whole_pages
    held = run["kv_bytes_resident_per_step"] / (PAGE_BYTES + SUMMARY_BYTES)
    assert held <= run["peak_pages"]
    if config.kv_budget != "auto":
        assert run["peak_pages"] <= int(config.kv_budget.removesuffix("tok")) // config.page_size
    device = {name: value for name, value in run.items() if "device" in name}
    assert len(device) == 9 and set(device.values()) == {0}


@pytest.mark.parametrize(
    ("change", "read"),
    [
        ({}, [2 * SUMMARY_BYTES + PAGE_BYTES] * 3),
        ({"benchmark_mode": "dense_gpu"}, [6 * TOKEN_BYTES, 7 * TOKEN_BYTES, 8 * TOKEN_BYTES]),
        ({"gate_tokens": 8},
         [6 * TOKEN_BYTES, 7 * TOKEN_BYTES, 2 * SUMMARY_BYTES + PAGE_BYTES]),
        ({"top_k_pages": 2}, [2 * SUMMARY_BYTES + 2 * PAGE_BYTES] * 3),
    ],
    ids=["sparse", "dense", "gate", "all pages"],
)  # fmt: skip
def test_bytes_of_one_request_by_hand(change, read):
    """Contexts of 6, 7 and 8 tokens: 2 pages in each step, 3 pages held for 9 tokens."""
    results, run = figures_of(replace(ONE, **change), requests_of((0, 6, 3)))
    assert run["kv_bytes_read_per_step"] == sum(read) / 3
    assert run["kv_bytes_read_dense_per_step"] == (6 + 7 + 8) * TOKEN_BYTES / 3
    assert run["kv_bytes_resident_per_step"] == 3 * (PAGE_BYTES + SUMMARY_BYTES)
    assert (run["peak_pages"], run["steps"], run["prefilled_tokens"]) == (3, 3, 6)
    # one page pays off above 4 * 256 / (256 - 128 / 4) = 4.6 tokens, two above 9.1
    assert results["sparse_cheaper_token_fraction"] == (0 if "top_k_pages" in change else 1)


@pytest.mark.parametrize(
    ("change", "peak", "mean"),
    # two requests of 2 pages and 3 steps each, one after the other
    [({}, 2, 2), ({"preadmit_prompts": 1}, 4, (3 * 4 + 3 * 2) / 6), ({"lazy_release": 1}, 2, 2)],
    ids=["plain", "preadmitted", "lazy"],
)
def test_pages_count_as_held_while_they_are(change, peak, mean):
    config = replace(ONE, max_active_requests=1, **change)
    _, run = figures_of(config, requests_of((0, 5, 3), (0, 5, 3)))
    assert run["peak_pages"] == peak
    held = run["kv_bytes_resident_per_step"] / (PAGE_BYTES + SUMMARY_BYTES)
    assert held == pytest.approx(mean)


def test_pages_that_are_released_late_are_still_held():
    config = replace(ONE, max_active_requests=2, lazy_release=1)
    _, run = figures_of(config, requests_of((0, 5, 1), (0, 5, 3)))
    assert run["kv_bytes_resident_per_step"] == 4 * (PAGE_BYTES + SUMMARY_BYTES)


@given(
    context=st.integers(1, 20_000), k=st.integers(1, 64), page_size=st.sampled_from([1, 4, 16]),
    summary=st.sampled_from(["mean", "minmax"]), share=st.sampled_from(["request", "query_head"]),
)  # fmt: skip
def test_sparse_is_cheaper_above_the_break_even_give_or_take_a_page(
    context, k, page_size, summary, share
):
    model = ModelConfig(4, 2, 16, page_size, k, summary=summary, share=share)
    traffic = step_traffic(model, np.array([context]))
    is_cheaper = traffic["sparse_target"].num_bytes < traffic["dense"].num_bytes
    limit = break_even_tokens(model)
    if abs(context - limit) > page_size:
        assert is_cheaper == (context > limit)


def test_rejected_requests_are_counted_with_the_reason():
    workload = requests_of((0, 5, 2), (0, 500, 2), (1, 6, 3))
    config = replace(ONE, kv_budget="40tok", serial=True)
    results, run = figures_of(config, workload)
    assert results["kv_budget_pages"] == 10
    assert results["serving"]["completed"] == 2 and results["serving"]["rejected"] == 1
    assert "126 pages for 502 tokens" in results["serving"]["rejections"][1]
    assert run["generated_tokens"] == results["serial_sparse_generated_tokens"] == 5


def test_nothing_but_rejections_gives_no_figures():
    results, run = figures_of(replace(CONFIG, kv_budget="4tok"))
    assert results["serving"]["rejected"] == 6 and run["generated_tokens"] == 0
    assert np.isnan(run["avg_step_ms"]) and np.isnan(results["continuous_vs_serial_speedup"])


# ---- what a run needs


def test_a_pool_holds_what_can_be_active_and_no_more():
    requests = as_requests(requests_of((0, 5, 3), (0, 30, 2), (3, 9, 1), (3, 1, 1)))
    assert pool_pages(replace(CONFIG, max_active_requests=2), requests, None) == 8 + 3
    assert pool_pages(replace(CONFIG, max_active_requests=9), requests, None) == 2 + 8 + 3 + 1
    assert pool_pages(replace(CONFIG, max_active_requests=9), requests, 7) == 2 + 3 + 1
    assert pool_pages(CONFIG, requests, 4) == 4
    assert pool_pages(CONFIG, requests[1:2], 4) == 1  # it is rejected
    preadmitted = replace(CONFIG, preadmit_prompts=1, max_active_requests=1)
    assert pool_pages(preadmitted, requests, 14) == 14
    with pytest.raises(ValueError, match="need 14 pages, the KV budget has 13"):
        pool_pages(preadmitted, requests, 13)


@pytest.mark.parametrize("mode", ["cpu_cache", "direct_gpu_upload"])
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_memory_is_that_of_the_host(mode, backend):
    config = replace(CONFIG, admission_mode=mode)
    if backend == "gpu" and mode == "direct_gpu_upload":
        return check_memory(config, 10**12, 0, backend)
    config = replace(config, kv_budget="unlimited")
    with pytest.raises(
        ValueError, match=r"kv_budget: .*: it needs 1,152,000,\d{3},\d{3},\d{3},\d{3} bytes of"
    ):
        check_memory(config, 10**15, 0, backend)


def test_payloads_count_as_memory():
    config = replace(CONFIG, precompute_decode_payloads=1)
    with pytest.raises(ValueError, match=r"precompute_decode_payloads: got 1, .* needs 384,000,"):
        check_memory(config, 1, 10**12, "cpu")


def test_auto_is_a_gpu_where_one_is_usable_and_no_simulator(monkeypatch):
    monkeypatch.setattr("numbadsd.bench.serving_setup.why_unavailable", lambda: None)
    monkeypatch.setattr("numbadsd.bench.serving_setup.SIMULATED", False)
    assert choose_backend(replace(CONFIG, backend="auto")) == "gpu"
    monkeypatch.setattr("numbadsd.bench.serving_setup.SIMULATED", True)
    assert choose_backend(replace(CONFIG, backend="auto")) == "cpu"
    assert choose_backend(replace(CONFIG, backend="gpu")) == "gpu"
    monkeypatch.setattr("numbadsd.bench.serving_setup.why_unavailable", lambda: ("no", "buy one"))
    assert choose_backend(replace(CONFIG, backend="auto")) == "cpu"
    with pytest.raises(CudaUnavailable):
        choose_backend(replace(CONFIG, backend="gpu"))


@given(low=st.integers(1, 300), high=st.integers(1, 300))
def test_every_size_is_rounded_to_one_of_the_recorded_ones(low, high):
    recorded = {1 << (n - 1).bit_length() for n in _powers_of_two(low, high)}
    assert len(recorded) == len(_powers_of_two(low, high)) and max(recorded) >= high
    assert {1 << (n - 1).bit_length() for n in range(min(low, high), high + 1)} == recorded


# ---- stops and faults


class Pressing(CacheBackend):
    """Presses a switch in the decode steps of these numbers."""

    stop, at, num_decodes = None, (), 0

    def decode(self, *arguments):
        Pressing.num_decodes += 1
        for _ in range(self.at.count(Pressing.num_decodes)):
            self.stop.press()
        super().decode(*arguments)


@pytest.fixture
def press(monkeypatch):
    """Return a function that runs the benchmark and presses its switch at these decode steps."""
    monkeypatch.setattr("numbadsd.bench.serving_setup.CacheBackend", Pressing)

    def run(config, *at):
        monkeypatch.setattr("numbadsd.bench.serving.warm_up", lambda *arguments: None)
        monkeypatch.setattr(Pressing, "num_decodes", 0)
        monkeypatch.setattr(Pressing, "at", at)
        monkeypatch.setattr(Pressing, "stop", StopSwitch())
        return run_continuous_bench(config, stop=Pressing.stop)["results"]

    return run


@pytest.mark.parametrize("preadmit", [0, 1])
@pytest.mark.parametrize("at", [(1,), (3,), (2, 2), (1, 2)])
def test_a_stop_accounts_for_every_request(press, at, preadmit):
    results = press(replace(CONFIG, preadmit_prompts=preadmit), *at)
    serving = results["serving"]
    names = ("completed", "cancelled", "not_started", "failed", "rejected")
    assert sum(serving[name] for name in names) == 6 and serving["not_started"] > 0
    assert (serving["cancelled"] > 0) == (len(at) == 2)
    assert not any(name.startswith("serial") for name in results)
    assert np.isnan(results["continuous_vs_serial_speedup"])
    assert results["total_generated_tokens"] >= serving["total_output_tokens"]


def test_a_stop_of_the_serial_run_keeps_the_continuous_one(press):
    results = press(CONFIG, 12)
    assert results["serving"]["completed"] == 6
    assert 0 < results["serial_sparse_generated_tokens"] < results["total_generated_tokens"]
    assert np.isnan(results["continuous_vs_serial_speedup"])


class Broken(CacheBackend):
    """Fails in the n-th call of a kind."""

    kind, countdown = "decode", 1

    def _count(self, kind):
        if kind == self.kind:
            Broken.countdown -= 1
            if Broken.countdown == 0:
                raise RuntimeError("the device fell off")

    def decode(self, *arguments):
        self._count("decode")
        super().decode(*arguments)

    def _write_prompts(self, *arguments):
        self._count("write")
        super()._write_prompts(*arguments)


@pytest.fixture
def broken(monkeypatch):
    """Return a function that runs the benchmark with a backend that fails."""
    monkeypatch.setattr("numbadsd.bench.serving_setup.CacheBackend", Broken)
    monkeypatch.setattr("numbadsd.bench.serving.warm_up", lambda *arguments: None)

    def run(config, kind, countdown):
        monkeypatch.setattr(Broken, "kind", kind)
        monkeypatch.setattr(Broken, "countdown", countdown)
        return run_continuous_bench(config)["results"]

    return run


def test_a_backend_that_fails_leaves_what_was_done(broken):
    results = broken(CONFIG, "decode", 4)
    assert "step 3 failed (RuntimeError: the device fell off)" in results["error"]
    assert results["serving"]["failed"] == 2 and 0 < results["total_generated_tokens"] < 20
    assert results["continuous_sparse_avg_step_ms"] > 0
    assert np.isnan(results["continuous_vs_serial_speedup"])


def test_a_backend_that_fails_before_the_loop_is_an_error_too(broken):
    results = broken(replace(CONFIG, preadmit_prompts=1), "write", 3)
    assert "RuntimeError: the device fell off" in results["error"]
    assert "6 that waited were not started" in results["error"]
    assert results["total_generated_tokens"] == 0


def test_a_device_that_fails_behind_the_last_step_is_an_error_too(monkeypatch):
    def fail(self):
        raise OSError("CUDA_ERROR_ILLEGAL_ADDRESS")

    monkeypatch.setattr("numbadsd.bench.serving.warm_up", lambda *arguments: None)
    monkeypatch.setattr(CacheBackend, "wait", fail)
    results, run = figures_of(CONFIG)
    assert "failed (OSError: CUDA_ERROR_ILLEGAL_ADDRESS)" in results["error"]
    assert run["total_ms"] > 0 and "serial_sparse_total_ms" not in results


def test_a_backend_that_fails_in_the_serial_run_leaves_the_continuous_one(broken):
    results = broken(CONFIG, "decode", 12)
    assert "fell off" in results["error"] and results["serving"]["completed"] == 6
    assert results["serial_sparse_total_ms"] > 0


# ---- GPU modes, in the simulator

GPU = replace(ONE, num_requests=2, max_active_requests=2, backend="gpu")
GPU_LOAD = ((0, 5, 2), (1, 9, 1))
GPU_MODES = {
    "cpu_cache": {"admission_mode": 0},
    "upload": {"admission_mode": 1},
    "synthetic prompts": {"admission_mode": 2},
    "all synthetic": {"admission_mode": 2, "gpu_synthetic_decode_append": 1, "lazy_release": 1},
    "preadmitted": {"admission_mode": 2, "preadmit_prompts": 1, "run_batch_timing_mode": 0},
    "stored queries": {"precompute_decode_payloads": 1, "gpu_synthetic_decode_append": 1},
    "dense": {"admission_mode": 1, "gpu_synthetic_decode_append": 1, "benchmark_mode": 1},
    "gate": {"gate_tokens": 8},
    "all synthetic, gate": {"gate_tokens": 8, "gpu_synthetic_decode_append": 1},
    "packed": {"prefill": "packed", "prefill_chunk_tokens": 6, "admission_mode": 2},
    "blocking": {"prefill": "blocking", "admission_mode": 0},
}
PROMPTS = {(0, position) for position in range(5)} | {(1, position) for position in range(9)}


class Outputs(dict):
    """Outputs by request and position."""

    def __call__(self, request_ids, positions, outputs):
        for request_id, position, output in zip(request_ids, positions, outputs, strict=True):
            self[int(request_id), int(position)] = output.copy()


@pytest.mark.slow
@pytest.mark.parametrize("mode", GPU_MODES.values(), ids=GPU_MODES)
def test_gpu_modes_give_the_outputs_of_the_cpu(mode):
    if why_unavailable():
        pytest.skip("; ".join(why_unavailable()))
    config, workload = replace(GPU, **mode), requests_of(*GPU_LOAD)
    ours, theirs = Outputs(), Outputs()
    _, run = figures_of(config, workload, on_outputs=ours)
    cpu = replace(config, backend="cpu", gpu_synthetic_decode_append=0)
    figures_of(cpu, workload, on_outputs=theirs)
    attended = PROMPTS if config.prefill != "none" else set()
    assert ours.keys() == theirs.keys() == {(0, 5), (0, 6), (1, 9)} | attended
    for place, output in ours.items():
        np.testing.assert_allclose(output, theirs[place], atol=1e-5, rtol=0)
    prompt_bytes = 14 * TOKEN_BYTES
    sent = run["admission_device_h2d_bytes"]
    assert run["device_h2d_bytes"] > sent > 0 and run["device_h2d_calls"] > 2
    assert (sent > prompt_bytes) == (config.admission_mode != "synthetic_gpu_prefill")
    if config.prefill == "none":
        # a copy for each prompt; one back for each step, and each path of it where there is a gate
        assert run["admission_device_h2d_calls"] == 2
        assert run["device_d2h_calls"] == (3 if config.gate_tokens else 2)


def test_admission_transfers_are_those_of_prompts():
    class Pages:
        stats = TransferStats()
        stream = type("Stream", (), {"synchronize": lambda self: laps.append("synchronized")})()

    class Counting(CacheBackend):
        def _write_prompts(self, chunks, lap):
            self.device_pool.stats.count_h2d(3 << 20)

    laps = []
    backend = Counting(PagedKvCache(CONFIG.model, 2), None, None, device_pool=Pages())
    backend.device_pool.stats.count_h2d(7)
    for _ in range(2):
        backend.write_prompts([], laps.append)
    assert backend.admission_transfers == TransferStats(6 << 20, 2, 2)
    assert backend.transfers.h2d_bytes == (6 << 20) + 7
    assert laps == ["synchronized", "admission"] * 2


def test_requests_are_the_rows_of_a_workload():
    assert as_requests(requests_of((0, 5, 2), (1, 9, 1))) == [
        Request(0, 0.0, 5, 2),
        Request(1, 1.0, 9, 1),
    ]
