"""`--versus`: what another library's attention has to do with a benchmark, and what it has not."""

import json
from dataclasses import replace

import numpy as np
import pytest

from numbadsd.bench.data import make_workload
from numbadsd.bench.decode import run_decode_bench
from numbadsd.bench.record import write_record
from numbadsd.bench.report import render_report
from numbadsd.config import DecodeBenchConfig
from numbadsd.workload.captures import Capture
from tests.bench.contenders import FakeContender

CONFIG = DecodeBenchConfig(
    top_k_pages=2, batch_size=3, min_context_tokens=9, max_context_tokens=30, iterations=3,
    warmup=1, num_heads=4, page_size=4, num_kv_heads=2, paths=("dense_cpu", "sparse_cpu"),
    versus="torch",
)  # fmt: skip
OURS = ["dense_cpu", "sparse_cpu"]
ENTRY_KEYS = {
    "available", "reason", "version", "form", "forms_ms", "warmup_ms", "total_ms", "bytes_read",
    "floor_ms", "achieved_gbps", "bandwidth_fraction", "kernel_ms", "max_abs_difference",
}  # fmt: skip


def run(config=CONFIG, **options):
    """Return the record beside a fake contender on each side, and the contenders by side."""
    made = {}

    def find(on_gpu):
        made[on_gpu] = FakeContender(on_gpu, **options)
        return made[on_gpu]

    return run_decode_bench(config, find_contender=find), made


@pytest.fixture(scope="module")
def measured():
    """Return the record of one run, and its contender."""
    record, made = run()
    return record, made[False]


def test_a_contender_has_every_figure_that_a_path_has(measured):
    record, _ = measured
    assert list(record["paths"]) == [*OURS, "torch_sdpa"]
    entry, dense = record["paths"]["torch_sdpa"], record["paths"]["dense_cpu"]
    assert set(entry) == ENTRY_KEYS
    assert (entry["available"], entry["reason"]) == (True, None)
    assert (entry["version"], entry["form"]) == ("1.2.3", "as one batch")
    assert entry["forms_ms"] == {"as one batch": 2.5}
    assert entry["kernel_ms"] is None
    assert entry["bytes_read"] == dense["bytes_read"]
    assert entry["floor_ms"] == dense["floor_ms"]
    gbps = entry["bytes_read"] / entry["total_ms"]["median"] / 1e6
    assert entry["achieved_gbps"] == pytest.approx(gbps)
    limit = record["bandwidth"]["read_gbps"]["median"]
    assert entry["bandwidth_fraction"] == pytest.approx(gbps / limit)


def test_its_samples_are_taken_in_turn_with_ours_after_a_warm_up(measured):
    record, contender = measured
    entry = record["paths"]["torch_sdpa"]
    assert entry["warmup_ms"] == [2.0]
    assert entry["total_ms"]["samples"] == [4.0, 6.0, 8.0]
    assert contender.calls == [[0, 1, 2]] * 4
    assert len(record["bandwidth"]["read_gbps"]["samples"]) == 3 * CONFIG.iterations


def test_its_outputs_are_compared_with_our_dense_ones(measured):
    assert measured[0]["paths"]["torch_sdpa"]["max_abs_difference"] == pytest.approx(0.25)
    record, _ = run(replace(CONFIG, paths=("sparse_cpu",)))
    assert record["paths"]["torch_sdpa"]["max_abs_difference"] is None
    assert "against" not in render_report(record)


def test_what_we_measure_stays_as_it_is(measured):
    record, _ = measured
    alone = run_decode_bench(replace(CONFIG, versus=None))
    assert record["config"]["versus"] == "torch" and alone["config"]["versus"] is None
    assert record["config"]["paths"] == OURS == list(alone["paths"])
    assert record["accuracy"] == alone["accuracy"] and record["quality"] == alone["quality"]
    assert set(record["verdict"]) == set(alone["verdict"])
    assert record["verdict"]["winner"] in ("sparse", "dense", None)


def test_nobody_is_asked_for_a_contender_unasked():
    def find(on_gpu):
        raise AssertionError("a contender was made")

    record = run_decode_bench(replace(CONFIG, versus=None), find_contender=find)
    assert list(record["paths"]) == OURS


def test_a_contender_must_be_handed_over():
    with pytest.raises(ValueError, match="versus: got 'torch'"):
        run_decode_bench(CONFIG)


@pytest.mark.parametrize("value", ["", "jax", "Torch", 3])
def test_an_unknown_contender_is_refused(value):
    with pytest.raises(ValueError, match="versus"):
        replace(CONFIG, versus=value)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"reason": "torch is not installed"}, "torch is not installed"),
        ({"error": RuntimeError("out of luck\nand more")}, "RuntimeError: out of luck"),
        ({"error": MemoryError("x" * 1000)}, "MemoryError: " + "x" * 187),
    ],
    ids=["missing", "failing", "wordy"],
)
def test_a_contender_that_cannot_run_says_why_and_stops_nothing(options, reason):
    record, _ = run(**options)
    entry = {"available": False, "reason": reason, "version": "1.2.3"}
    assert record["paths"]["torch_sdpa"] == entry
    assert record["paths"]["dense_cpu"]["available"] and record["verdict"]["speedup"] is not None
    section = render_report(record).split("== End-to-End ==")[1].split("\n\n")[0]
    assert f"torch_sdpa unavailable: {reason}" in section
    assert "unavailable" in next(x for x in section.splitlines() if x.startswith("torch_sdpa "))


def test_there_is_one_beside_the_paths_of_each_processor(simulator_as_gpu):
    config = replace(CONFIG, paths=("dense_cpu", "dense_gpu"), iterations=1, warmup=0)
    record, made = run(config)
    assert set(made) == {False, True}
    assert list(record["paths"])[2:] == ["torch_sdpa", "torch_sdpa_gpu"]
    assert record["paths"]["torch_sdpa"]["kernel_ms"] is None
    assert record["paths"]["torch_sdpa_gpu"]["kernel_ms"] == 1.0
    assert record["paths"]["torch_sdpa_gpu"]["total_ms"]["samples"] == [2.0]
    assert "dense_gpu against torch_sdpa_gpu" in render_report(record)


def test_there_is_none_for_a_processor_on_which_no_path_runs(no_gpu):
    record, _ = run(replace(CONFIG, paths=None))
    assert list(record["paths"]) == [*OURS, "dense_gpu", "sparse_gpu", "torch_sdpa"]
    record, made = run(replace(CONFIG, paths=("dense_gpu",)))
    assert list(record["paths"]) == ["dense_gpu"] and set(made) == {True}
    assert render_report(record)


def test_memory_that_it_takes_is_counted_before_anything_is_made(monkeypatch):
    def fail(*arguments):
        raise AssertionError("data was made")

    monkeypatch.setattr("numbadsd.bench.data.UniformWorkload", fail)
    with pytest.raises(ValueError, match=r"needs 1,[0-9,]+ bytes of"):
        run(num_bytes=10**18)


@pytest.mark.parametrize("is_captured", [False, True])
def test_what_else_needs_memory_is_asked_with_the_contexts(is_captured):
    tensors = [np.zeros((n, heads, 16), np.float32) for n, heads in ((2, 4), (20, 2), (20, 2))]
    seen = []
    count = lambda model, tokens: seen.append((model, tokens.tolist())) or 0  # noqa: E731
    capture = Capture(*tensors) if is_captured else None
    workload = make_workload(CONFIG, capture, count)
    assert seen == [(CONFIG.model, workload.context_tokens.tolist())]


def test_captured_tensors_are_given_to_it_too():
    rng = np.random.default_rng(5)
    tensors = rng.standard_normal((2, 4, 16), np.float32), *rng.standard_normal((2, 30, 2, 16))
    record = run_decode_bench(CONFIG, Capture(*tensors), find_contender=FakeContender)
    assert record["paths"]["torch_sdpa"]["max_abs_difference"] == pytest.approx(0.25)


def test_the_record_survives_its_file(measured, tmp_path):
    record, _ = measured
    write_record(record, tmp_path / "r.json")
    read = json.loads((tmp_path / "r.json").read_text())
    assert read["paths"]["torch_sdpa"] == record["paths"]["torch_sdpa"]
    assert render_report(read) == render_report(record)
