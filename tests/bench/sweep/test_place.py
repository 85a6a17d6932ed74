"""Which device, what it is called, and the folder of its results."""

import pytest

from numbadsd.bench.sweep import place
from numbadsd.bench.sweep.place import choose_scale, default_folder, newest_sweep, slug_of
from numbadsd.errors import CudaUnavailable

COMMIT = "fd655797287bea918e21d9711036874234e7a041"


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """Work in a folder of its own, at a known commit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(place, "environment", lambda: {"commit": COMMIT, "cpu": "A CPU"})
    return tmp_path


def has_gpu(monkeypatch, problem, simulated=False):
    """Pretend that there is a GPU, or this problem with it."""
    monkeypatch.setattr(place, "why_unavailable", lambda: problem)
    monkeypatch.setattr(place, "SIMULATED", simulated)


def test_auto_is_the_gpu_where_one_is_usable(monkeypatch):
    has_gpu(monkeypatch, None)
    assert [choose_scale(device) for device in ("auto", "gpu", "cpu")] == ["gpu", "gpu", "cpu"]


def test_without_a_gpu_auto_is_the_cpu_and_gpu_says_why(monkeypatch):
    has_gpu(monkeypatch, ("no driver", "get one"))
    assert [choose_scale(device) for device in ("auto", "cpu")] == ["cpu", "cpu"]
    with pytest.raises(CudaUnavailable, match="no driver; get one"):
        choose_scale("gpu")


def test_the_simulator_is_never_a_gpu(monkeypatch):
    has_gpu(monkeypatch, None, simulated=True)
    assert choose_scale("auto") == "cpu"
    with pytest.raises(CudaUnavailable, match="simulator"):
        choose_scale("gpu")


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Intel(R) Xeon(R) Processor", "xeon"),
        ("Intel(R) Core(TM) i7-9700K CPU @ 3.60GHz", "core_i7_9700k"),
        ("AMD EPYC 7763 64-Core Processor", "epyc_7763"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100_sxm4_80gb"),
        ("aarch64", "aarch64"),
        ("", "unknown"),
    ],
)
def test_a_device_has_a_short_name(name, slug):
    assert slug_of(name) == slug


def test_a_processor_is_named_with_its_cores(monkeypatch):
    monkeypatch.setattr(place, "environment", lambda: {"cpu": "Intel(R) Xeon(R) Processor"})
    monkeypatch.setattr(place.psutil, "cpu_count", lambda logical=True: 2)
    assert place.device_slug("cpu") == "xeon_2core"
    monkeypatch.setattr(place, "_gpu_name", lambda: "NVIDIA H200")
    assert place.device_slug("gpu") == "h200"
    assert place.device_slug("gpu", on_cluster=True) == "dask_gpu"


def test_the_folder_is_named_by_device_day_and_commit(in_folder, monkeypatch):
    folder = default_folder("h200", False)
    assert folder.parent.as_posix() == "bench_results/sweeps/h200"
    assert folder.name[:4].isdigit() and folder.name[10:] == "_fd65579"
    monkeypatch.setattr(place, "environment", lambda: {"commit": None})
    assert default_folder("h200", False).name[10:].startswith("_v")


def test_resuming_finds_the_last_folder_of_the_commit(in_folder):
    for name in ("2020-01-01_fd65579", "2020-01-03_fd65579", "2020-01-04_0000000"):
        (in_folder / "bench_results" / "sweeps" / "h200" / name).mkdir(parents=True)
    assert default_folder("h200", True).name == "2020-01-03_fd65579"
    assert default_folder("h200", False).name > "2020-01-04"
    assert default_folder("a100", True).name > "2020-01-04"


def test_the_newest_sweep_is_found_by_its_date(in_folder):
    with pytest.raises(ValueError, match=r"no results in bench_results.sweeps"):
        newest_sweep()
    for name in ("h200/2020-01-03_b", "xeon/2020-01-04_a", "xeon/2020-01-02_c"):
        folder = in_folder / "bench_results" / "sweeps" / name / "grid"
        folder.mkdir(parents=True)
        (folder / "points.jsonl").touch()
    assert newest_sweep().as_posix() == "bench_results/sweeps/xeon/2020-01-04_a"
