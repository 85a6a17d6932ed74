"""`dsd_bench` and the GPU: paths in the simulator, rows that say why not, one line for errors."""

import os
import re

import pytest

from numbadsd.cli.dsd_bench import command
from numbadsd.kernels.cuda import sim_driver
from numbadsd.kernels.cuda.launch import DeviceError
from tests.cli.process import NO_GPU, TINY, assert_complains, run_here, run_script

GPU_ONLY = ["--paths", "dense_gpu,sparse_gpu"]
ALL_PATHS = ["--paths", "dense_cpu,sparse_cpu,dense_gpu,sparse_gpu"]
# k 2, one request of 10 tokens, 2 heads of 16, pages of 4
SMALL = "2 1 10 10 7 1 0 2 16 4".split()
TITLES = [
    "Decode Benchmark", "Analytical Ceiling", "Bandwidth", "End-to-End",
    "Stage / Kernel Breakdown", "Runtime Overheads", "Accuracy", "Quality", "Reading Guide",
    "Verdict",
]  # fmt: skip
BEYOND_A_GPU = {
    "head_dim": [*"2 1 10 10 7 1 0 2 272 4".split()],
    "num_heads": [*"2 1 10 10 7 1 0 17 16 4".split(), "--num-kv-heads", "1"],
    "top_k_pages": [*"2049 1 10 10 7 1 0 2 16 4".split()],
}


def section_of(output, title):
    """Return the text of one section."""
    return output.split(f"== {title} ==\n")[1].split("\n\n")[0]


def test_gpu_paths_that_are_named_run_in_the_simulator(invoke):
    output, record = invoke(*SMALL, *GPU_ONLY)
    assert re.findall(r"^== (.+) ==$", output, re.MULTILINE) == TITLES
    assert re.search(r"^GPU +simulator: its times mean nothing$", output, re.MULTILINE)
    for title in ("Bandwidth", "End-to-End", "Stage / Kernel Breakdown", "Runtime Overheads"):
        rows = re.findall(r"^(\w+_\w+) ", section_of(output, title), re.MULTILINE)
        assert rows == ["dense_gpu", "sparse_gpu"]
    assert "GPU copies" in section_of(output, "Bandwidth")
    assert section_of(output, "Verdict").startswith("No verdict: ")
    assert record["config"]["paths"] == list(record["paths"]) == ["dense_gpu", "sparse_gpu"]
    assert record["environment"]["gpu"] == "simulator"


def test_all_paths_stand_in_one_table_with_both_speedups(invoke):
    output, record = invoke(*SMALL, *ALL_PATHS)
    header, _, *rows = section_of(output, "End-to-End").splitlines()
    assert "Speedup    vs own dense" in header and len(rows) == 4
    medians = {name: path["total_ms"]["median"] for name, path in record["paths"].items()}
    for row in rows:
        name, _, _, _, over_dense_cpu, over_own_dense, *_ = row.split()
        own_dense = f"dense_{name[-3:]}"
        expected = medians["dense_cpu"] / medians[name], medians[own_dense] / medians[name]
        assert (float(over_dense_cpu), float(over_own_dense)) == pytest.approx(expected, abs=6e-4)
    assert "not measured" not in section_of(output, "Accuracy")
    assert " on the CPU " in section_of(output, "Verdict")


def test_quality_is_measured_for_gpu_paths_alone(invoke):
    output, record = invoke(*SMALL, *GPU_ONLY, "--data", "structured")
    assert 0 < record["quality"]["attention_mass"] <= 1
    assert "attention_mass" in section_of(output, "Quality")


def test_the_simulator_is_not_used_unasked(invoke):
    output, record = invoke(*SMALL)
    section = section_of(output, "End-to-End")
    assert section.splitlines()[-1].startswith("dense_gpu, sparse_gpu unavailable: ")
    assert "NUMBA_ENABLE_CUDASIM=1" in section and "--paths" in section
    assert record["paths"]["dense_cpu"]["available"]
    assert re.search(r"^GPU +none used$", output, re.MULTILINE)


@pytest.mark.parametrize("arguments", [[], GPU_ONLY, ["--paths", "dense_cpu,sparse_gpu"]])
def test_without_a_gpu_its_rows_are_unavailable_and_the_status_is_0(invoke, no_gpu, arguments):
    output, record = invoke(*SMALL, *arguments)
    section = section_of(output, "End-to-End")
    names = [name for name in record["paths"] if name.endswith("_gpu")]
    for name in names:
        assert re.search(rf"^{name} +(- +)+unavailable$", section, re.MULTILINE)
    reason = "no GPU was found; plug one in"
    assert section.splitlines()[-1] == f"{', '.join(names)} unavailable: {reason}"
    assert section.count(reason) == 1


def test_as_a_process_without_a_gpu_the_reason_and_the_remedy_are_told():
    ended = run_script("dsd_bench", *TINY, env=os.environ | NO_GPU)
    assert ended.status == 0 and ended.stderr == ""
    section = section_of(ended.stdout, "End-to-End")
    last = section.splitlines()[-1]
    reason = re.fullmatch(r"dense_gpu, sparse_gpu unavailable: (.+); (.+)", last)
    assert reason and "simulator" not in last
    assert re.search("not installed|driver|device", reason[1])
    assert "install CUDA support" in reason[2] or "the CPU paths run anywhere" in last
    assert max(map(len, section.splitlines()[:-1])) < 100


@pytest.mark.parametrize("field", BEYOND_A_GPU)
def test_a_shape_beyond_a_gpu_is_told_and_the_cpu_paths_run(invoke, simulator_as_gpu, field):
    output, record = invoke(*BEYOND_A_GPU[field])
    pattern = rf"sparse_gpu unavailable: {field}: got \d+, want at most \d+ .*on a GPU; the CPU"
    assert re.search(pattern, output)
    assert record["paths"]["sparse_cpu"]["available"]
    assert record["verdict"]["backend"] == "cpu"


@pytest.mark.parametrize("paths", ["sparse_gpu", "dense_cpu,sparse_gpu"])
@pytest.mark.parametrize("field", BEYOND_A_GPU)
def test_a_shape_beyond_a_gpu_that_was_named_is_one_line(capsys, field, paths):
    ended = run_here(command, [*BEYOND_A_GPU[field], "--paths", paths], capsys)
    assert_complains(ended, f"{field}: got ", "at most", "on a GPU")


def test_a_device_that_is_too_small_is_told_with_the_bytes(monkeypatch, capsys, invoke):
    monkeypatch.setattr(sim_driver, "MEMORY_BYTES", 1 << 20)
    ended = run_here(command, [*SMALL, *GPU_ONLY], capsys)
    assert_complains(ended, "fit on the device", "bytes of 1,048,576 free")
    monkeypatch.setattr("numbadsd.bench.sampling.SIMULATED", False)
    output, record = invoke(*SMALL)
    assert "bytes of 1,048,576 free; the CPU paths take it" in section_of(output, "End-to-End")
    assert record["paths"]["dense_cpu"]["available"]


@pytest.mark.parametrize("owner", ["SimDriver.empty", "SimStream.replay", "SimStream.upload"])
@pytest.mark.parametrize("paths", [GPU_ONLY, ALL_PATHS])
def test_what_the_driver_refuses_is_one_line(monkeypatch, capsys, owner, paths):
    def refuse(*arguments):
        raise DeviceError("CUDA_ERROR_OUT_OF_MEMORY: out of memory (asked for 5 bytes)")

    monkeypatch.setattr(f"numbadsd.kernels.cuda.sim_driver.{owner}", refuse)
    ended = run_here(command, [*SMALL, *paths], capsys)
    assert_complains(ended, "CUDA_ERROR_OUT_OF_MEMORY: out of memory (asked for 5 bytes)")


def test_a_device_error_is_an_os_error():
    assert issubclass(DeviceError, OSError)
