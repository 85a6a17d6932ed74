"""`dsd_bench`'s record of the GPU paths, run in the simulator: every key, and what agrees."""

from dataclasses import replace

import numpy as np
import pytest

from numbadsd.analysis.roofline import step_traffic
from numbadsd.bench import decode as module
from numbadsd.bench.data import capture_shape
from numbadsd.bench.decode import run_decode_bench
from numbadsd.bench.report import render_report
from numbadsd.config import DecodeBenchConfig
from numbadsd.decode.path import PATHS
from numbadsd.kernels.cuda import sim_driver
from numbadsd.workload.captures import Capture
from tests.bench.test_decode import PATH_KEYS

GPU_PATHS = ("dense_gpu", "sparse_gpu")
CPU_PATHS = ("dense_cpu", "sparse_cpu")
ONCE = DecodeBenchConfig(
    top_k_pages=2,
    batch_size=2,
    min_context_tokens=10,
    max_context_tokens=20,
    seed=11,
    iterations=1,
    warmup=0,
    num_heads=2,
    head_dim=16,
    page_size=4,
    num_kv_heads=1,
    summary="minmax",
    share="kv_head",
)
GPU_ALONE = replace(ONCE, paths=GPU_PATHS)
# head_dim 512, 17 query heads on a kv head: the CPU paths take both
BEYOND_A_GPU = {
    "head_dim": dict(head_dim=512),
    "num_heads": dict(num_heads=17),
    "top_k_pages": dict(top_k_pages=2049),
}


@pytest.fixture(scope="module")
def record():
    """Return the record of all four paths, named, with two samples each."""
    return run_decode_bench(replace(ONCE, paths=tuple(PATHS), iterations=2, warmup=1))


@pytest.fixture(scope="module")
def gpu_record():
    """Return the record of the GPU paths alone."""
    return run_decode_bench(GPU_ALONE)


@pytest.fixture
def no_work(monkeypatch):
    """Make any compiling or filling fail."""

    def fail(*arguments):
        raise AssertionError("work was started")

    monkeypatch.setattr("numbadsd.bench.decode.fill_cache", fail)
    monkeypatch.setattr("numbadsd.bench.sampling._decode_tiny_batch", fail)


@pytest.mark.parametrize("name", GPU_PATHS)
def test_a_gpu_path_that_ran_has_every_key(record, name):
    path = record["paths"][name]
    assert PATH_KEYS <= set(path) and set(path) == set(record["paths"]["dense_cpu"])
    assert path["available"] is True and path["reason"] is None
    assert list(path["stages_ms"]) == ["score", "topk", "gather", "attend"]
    assert len(path["total_ms"]["samples"]) == 2 and len(path["warmup_ms"]) == 1


def test_the_device_is_named(record):
    assert record["environment"]["gpu"] == "simulator"
    assert record["environment"]["driver"] == "none"


@pytest.mark.parametrize("name", PATHS)
def test_stages_and_overheads_of_every_path_are_its_total_within_five_percent(name, gpu_record):
    record = gpu_record if name in GPU_PATHS else run_decode_bench(replace(ONCE, paths=(name,)))
    path = record["paths"][name]  # of one sample: its own median
    parts = sum(path["stages_ms"].values()) + sum(path["overheads_ms"].values())
    assert parts == pytest.approx(path["total_ms"]["median"], rel=0.05)
    section = render_report(record).split("== Runtime Overheads ==")[1].split("==")[0]
    (row,) = [line for line in section.splitlines() if line.startswith(name)]
    assert section.splitlines()[1].endswith("Stages + OH of Total")
    assert 95 <= int(row.split()[-1].removesuffix("%")) <= 105


@pytest.mark.parametrize("name", GPU_PATHS)
def test_the_time_of_kernels_holds_the_stages_and_is_held_by_the_total(gpu_record, name):
    path = gpu_record["paths"][name]
    assert path["stages_ms"]["gather"] == 0 < path["stages_ms"]["attend"]
    assert (path["stages_ms"]["score"] > 0) == (name == "sparse_gpu")
    kernel_ms = path["kernel_ms"]
    assert sum(path["stages_ms"].values()) < kernel_ms < path["total_ms"]["median"]


def test_only_a_gpu_path_has_a_time_of_kernels(record):
    assert record["paths"]["dense_cpu"]["kernel_ms"] is None


def test_every_sample_has_a_bandwidth_of_its_own_processor(record):
    bandwidth = record["bandwidth"]
    assert len(bandwidth["read_gbps"]["samples"]) == len(bandwidth["copy_gbps"]["samples"]) == 4
    assert min(bandwidth["copy_gbps"]["samples"]) > 0


def test_what_no_path_needs_is_not_measured(gpu_record):
    bandwidth = gpu_record["bandwidth"]
    assert bandwidth["read_gbps"] is None and bandwidth["fp32_gflops"] is None
    assert bandwidth["copy_gbps"]["median"] > 0
    dense = gpu_record["analytical"]["dense"]
    assert dense["bandwidth_floor_us"] is None and dense["compute_floor_us"] is None


@pytest.mark.parametrize("name", GPU_PATHS)
def test_a_gpu_path_is_compared_with_copies_on_its_device(record, name):
    path, copy_gbps = record["paths"][name], record["bandwidth"]["copy_gbps"]["median"]
    gbps = path["bytes_read"] / (path["total_ms"]["median"] * 1e-3) / 1e9
    assert path["achieved_gbps"] == pytest.approx(gbps)
    assert path["bandwidth_fraction"] == pytest.approx(gbps / copy_gbps)
    assert path["floor_ms"] == pytest.approx(path["bytes_read"] / (copy_gbps * 1e9) * 1e3)


def test_the_floor_on_the_gpu_is_the_bytes_over_the_copies(record):
    dense = record["analytical"]["dense"]
    copy_gbps = record["bandwidth"]["copy_gbps"]["median"]
    assert dense["gpu_bandwidth_floor_us"] == pytest.approx(dense["bytes"] / copy_gbps / 1e3)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_gpu_path_reads_the_bytes_of_its_twin(record, kind):
    paths = record["paths"]
    assert paths[f"{kind}_gpu"]["bytes_read"] == paths[f"{kind}_cpu"]["bytes_read"]


def test_a_gpu_path_attends_in_place_even_if_staged():
    record = run_decode_bench(replace(ONCE, paths=("sparse_cpu", "sparse_gpu"), fused=False))
    tokens = np.array([record["data"]["min_context_tokens"], record["data"]["max_context_tokens"]])
    target = step_traffic(ONCE.model, tokens)["sparse_target"].num_bytes
    assert record["paths"]["sparse_gpu"]["bytes_read"] <= target
    assert record["paths"]["sparse_cpu"]["bytes_read"] > target


def test_all_four_accuracy_figures_are_measured_and_twins_agree(record):
    accuracy = {
        name.removeprefix("avg_max_abs_diff_"): value for name, value in record["accuracy"].items()
    }
    assert all(isinstance(value, float) for value in accuracy.values()) and len(accuracy) == 4
    assert accuracy["dense_gpu_vs_dense_cpu"] < 1e-6
    assert accuracy["sparse_gpu_vs_sparse_cpu"] < 1e-6
    lost = accuracy["sparse_cpu_vs_dense_cpu"]  # by leaving pages out
    assert lost > 1e-3 and accuracy["sparse_gpu_vs_dense_cpu"] == pytest.approx(lost, abs=1e-5)


def test_selecting_every_page_is_dense_on_the_gpu_too():
    accuracy = run_decode_bench(replace(ONCE, paths=tuple(PATHS), top_k_pages=5))["accuracy"]
    values = [accuracy[f"avg_max_abs_diff_{n}_gpu_vs_dense_cpu"] for n in ("sparse", "dense")]
    assert values[0] == values[1] < 1e-6


def test_random_data_for_gpu_paths_alone_takes_no_host_pages(monkeypatch):
    pools, fill = [], module.fill_cache

    def watched(*arguments):
        data = fill(*arguments)
        pools.append(data.cache.pool)
        return data

    monkeypatch.setattr(module, "fill_cache", watched)
    record = run_decode_bench(GPU_ALONE)
    assert [pool.has_storage for pool in pools] == [False]
    assert record["quality"] is None
    assert "K and V in host memory" in render_report(record).split("== Quality ==")[1]


def test_the_quality_of_gpu_paths_alone_is_that_of_the_cpu_paths():
    structured = replace(ONCE, data="structured")
    gpu = run_decode_bench(replace(structured, paths=GPU_PATHS))["quality"]
    cpu = run_decode_bench(replace(structured, paths=CPU_PATHS))["quality"]
    assert gpu == pytest.approx(cpu, rel=1e-4)
    assert 0 < gpu["attention_mass"] < 1


def test_a_capture_is_decoded_on_the_gpu():
    rng = np.random.default_rng(5)
    queries = rng.standard_normal((1, 2, 16), np.float32)
    keys, values = rng.standard_normal((2, 12, 1, 16), np.float32)
    capture = Capture(queries, keys, values)
    config = replace(ONCE, paths=("dense_cpu", *GPU_PATHS), **capture_shape(capture))
    record = run_decode_bench(config, capture)
    assert record["data"]["context_tokens"] == 12
    assert record["accuracy"]["avg_max_abs_diff_dense_gpu_vs_dense_cpu"] < 1e-6
    assert record["quality"]["density"] == pytest.approx(8 / 12)


def test_times_of_the_simulator_give_no_verdict(gpu_record):
    assert gpu_record["verdict"]["winner"] is gpu_record["verdict"]["speedup"] is None
    assert "simulator" in gpu_record["verdict"]["sentence"]


def test_beside_the_simulator_the_cpu_pair_is_judged(record):
    assert record["verdict"]["backend"] == "cpu"


def test_a_gpu_that_is_there_is_used_unasked(simulator_as_gpu):
    record = run_decode_bench(ONCE)
    assert [path["available"] for path in record["paths"].values()] == [True] * 4
    assert record["quality"] is not None


def test_without_a_gpu_its_paths_say_why_and_the_others_run(no_gpu):
    for paths in (None, ("dense_cpu", "dense_gpu")):
        record = run_decode_bench(replace(ONCE, paths=paths))
        assert record["paths"]["dense_cpu"]["available"]
        assert record["paths"]["dense_gpu"] == {"available": False, "reason": "; ".join(no_gpu)}
        assert record["environment"]["gpu"] is record["bandwidth"]["copy_gbps"] is None


@pytest.mark.parametrize("field", BEYOND_A_GPU)
def test_a_shape_beyond_a_gpu_leaves_the_cpu_paths(simulator_as_gpu, field):
    record = run_decode_bench(replace(ONCE, **BEYOND_A_GPU[field]))
    assert all(record["paths"][name]["available"] for name in CPU_PATHS)
    path = record["paths"]["sparse_gpu"]
    assert not path["available"] and field in path["reason"] and "at most" in path["reason"]
    # what only selection cannot do does not concern the dense path
    assert record["paths"]["dense_gpu"]["available"] == (field == "top_k_pages")
    assert record["verdict"]["backend"] == "cpu" and render_report(record)


@pytest.mark.parametrize("paths", [("sparse_gpu",), ("dense_cpu", "sparse_gpu")])
@pytest.mark.parametrize("field", BEYOND_A_GPU)
def test_a_shape_beyond_a_gpu_that_was_named_is_an_error_before_any_work(no_work, field, paths):
    with pytest.raises(ValueError, match=f"{field}: .*at most"):
        run_decode_bench(replace(ONCE, paths=paths, **BEYOND_A_GPU[field]))


def test_a_device_that_is_too_small_leaves_the_cpu_paths(simulator_as_gpu, monkeypatch):
    monkeypatch.setattr(sim_driver, "MEMORY_BYTES", 1 << 20)
    record = run_decode_bench(ONCE)
    assert all(record["paths"][name]["available"] for name in CPU_PATHS)
    for name in GPU_PATHS:
        assert "bytes of 1,048,576 free" in record["paths"][name]["reason"]


@pytest.mark.parametrize("paths", [GPU_PATHS, ("dense_cpu", "sparse_gpu")])
def test_a_device_that_is_too_small_and_was_named_is_an_error_before_any_work(
    no_work, monkeypatch, paths
):
    monkeypatch.setattr(sim_driver, "MEMORY_BYTES", 300 << 20)  # 44 MiB beside what is reserved
    tokens = (44 << 20) // ONCE.model.token_bytes  # the summaries are what does not fit
    needed = (256 << 20) + tokens // 4 * (ONCE.model.page_bytes + ONCE.model.summary_bytes)
    config = replace(ONCE, paths=paths, batch_size=1)
    with pytest.raises(ValueError, match=f"need {needed:,} bytes of 314,572,800 free"):
        run_decode_bench(replace(config, min_context_tokens=tokens, max_context_tokens=tokens))


@pytest.mark.gpu
def test_on_a_gpu_all_paths_run_and_its_pair_is_judged():
    record = run_decode_bench(replace(ONCE, batch_size=8, max_context_tokens=300))
    assert [path["available"] for path in record["paths"].values()] == [True] * 4
    assert record["environment"]["gpu"] not in (None, "simulator")
    assert record["accuracy"]["avg_max_abs_diff_dense_gpu_vs_dense_cpu"] < 1e-5
    assert record["accuracy"]["avg_max_abs_diff_sparse_gpu_vs_sparse_cpu"] < 1e-5
    assert record["verdict"]["backend"] == "gpu"
