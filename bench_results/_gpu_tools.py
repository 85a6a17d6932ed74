"""The steps of `gpu_check.py` around the library: what is installed, and CUDA's own tools."""

import csv
import re
import shutil
import subprocess
import sys
from glob import glob
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import _gpu_topk
import numpy as np
from _gpu_cases import GPU_PATHS, PROFILED, SMALL, Case, Run
from tabulate import tabulate

from numbadsd.decode.path import make_path
from numbadsd.kernels.cuda.runtime import get_driver, why_unavailable
from numbadsd.kernels.cuda.switch import SIMULATED
from numbadsd.pages.cache import PagedKvCache

_STEPS = Path(__file__).resolve().with_name("_gpu_steps.py")
_FOLDERS = ("/usr/local/cuda/bin", "/opt/nvidia/nsight-compute/*")  # where tools are off PATH
_TOOL_S = 60  # for one run of a tool
_SPARE_PAGES = 4
_PACKAGES = (
    "numba", "numba-cuda", "llvmlite", "numpy", "cuda-bindings", "cuda-core", "cuda-pathfinder",
    "cuda-toolkit", "nvidia-nvjitlink", "nvidia-nvvm", "nvidia-cuda-nvcc", "torch", "triton",
    "pytest", "hypothesis", "platformdirs", "greenlet", "pyelftools",
)  # fmt: skip
_TOOLS = ("nvcc", "ncu", "compute-sanitizer", "cuobjdump")
_SMI_LINES = re.compile(
    r"\s*(Driver Version|CUDA Version|Product Name|Performance State|Compute Mode|FB Memory Usage|"
    r"Total +:|Used +:|MIG Mode|ECC Mode|Current +:|GPU Current Temp|GPU Power Readings|"
    r"\w+ Power Draw|Current Power Limit|(Max )?Clocks$|SM +:|Memory +:|SW Power Cap|HW Slowdown)"
)
METRICS = {  # what ncu reads: its name, and the factor from base units
    "gpu__time_duration.sum": ("us", 1e-3),
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": ("dram_percent", 1),
    "dram__bytes_read.sum": ("read_mb", 1e-6),
    "sm__warps_active.avg.pct_of_peak_sustained_active": ("occupancy_percent", 1),
    "launch__registers_per_thread": ("registers", 1),
    "launch__grid_size": ("blocks", 1),
}


def find_tool(name: str) -> str | None:
    """Return the path of a CUDA tool, None when it is not here."""
    folders = [None, *(folder for pattern in _FOLDERS for folder in sorted(glob(pattern)))]
    return next((tool for folder in folders if (tool := shutil.which(name, path=folder))), None)


def versions(run: Run) -> None:
    """Print the versions of all between Python and the device, and what the device is."""
    found = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    found |= {tool: find_tool(tool) or "none" for tool in _TOOLS}
    if not SIMULATED:
        found |= {name: _compiler(name) for name in ("nvvm", "nvjitlink")}
    problem = why_unavailable()
    if problem is None:
        driver = get_driver()
        found |= {
            "device": driver.name, "driver": driver.version,
            "compute_capability": list(driver.compute_capability),
            "multiprocessors": driver.num_multiprocessors,
            "free_and_total_bytes": list(driver.memory_bytes()),
        }  # fmt: skip
    print(tabulate(list(found.items()), tablefmt="plain", disable_numparse=True), flush=True)
    if shutil.which("nvidia-smi"):
        smi = subprocess.run(["nvidia-smi", "-q"], capture_output=True, text=True, timeout=20)
        print("\n".join(line for line in smi.stdout.splitlines() if _SMI_LINES.match(line)))
    if problem is not None:
        return run.tell("; ".join(problem), "failed", **found)
    run.tell(f"{found['device']}, numba-cuda {found['numba-cuda']}", **found)


def _compiler(name: str) -> str:
    """Return the version and the file of a compiler, whatever package or folder it comes from."""
    try:
        from cuda import pathfinder

        number = ".".join(map(str, import_module(f"cuda.bindings.{name}").version()))
        library = {"nvjitlink": "nvJitLink"}.get(name, name)
        return f"{number} {pathfinder.load_nvidia_dynamic_lib(library).abs_path}"
    except Exception as error:  # whatever is wrong is what the reader wants to know
        return f"{type(error).__name__}: {error}"


def _target(run: Run, name: str) -> list[object]:
    """Return the command of a hidden step."""
    tiny = ["--tiny"] if run.tiny else []
    return [sys.executable, _STEPS, name, "--out", run.out, "--commit", run.commit, *tiny]


def _missing(run: Run, tool: str) -> str | None:
    """Return a tool's path; without it, or without a device, say that the step is skipped."""
    path = None if SIMULATED else find_tool(tool)
    if path is None:
        run.tell("the simulator is no GPU" if SIMULATED else f"{tool} is not here", "skipped")
    return path


# ---- compute-sanitizer


def sanitizer(run: Run) -> None:
    """Look for bad accesses and races in a small decode."""
    tool = _missing(run, "compute-sanitizer")
    if tool is None:
        return
    target = _target(run, "sanitizer-target")
    status, _ = run.call(*target, seconds=_TOOL_S)  # compiles, so that the tool need not wait
    if status != 0:
        return run.tell(f"the decode ends with status {status} without the tool", "failed")
    counts = {}
    for check in ("memcheck", "racecheck"):
        options = ("--tool", check, "--print-limit", 20)
        status, output = run.call(tool, *options, *target, seconds=_TOOL_S)
        counts[check] = _errors(status, output)
        says = ", ".join(f"{name} {count}" for name, count in counts.items())
        clean = all(count == "0 errors" for count in counts.values())
        run.tell(says, "ok" if clean else "failed", **counts)


def _errors(status: int | None, output: str) -> str:
    """Return what a run of the tool counted, or why it did not."""
    found = re.findall(r"(?:ERROR SUMMARY: (\d+) error|SUMMARY: (\d+) hazard.*)", output)
    if status is None:
        return "late"
    if not found:
        said = re.findall(r"=+ (Error.*|.*[Nn]ot supported.*)", output)
        return f"no summary, status {status}: {said[-1] if said else 'see the log'}"
    count = sum(int(number) for pair in found for number in pair if number)
    return f"{count} errors" if status == 0 or count else f"0 errors but status {status}"


def sanitizer_target(run: Run) -> None:
    """Decode, append and decode again, launch by launch: tokens from the host and of the device.

    Then top-k over rows that go all their ways.
    """
    (case,) = run.sized([SMALL])
    model, rng = case.config.model, np.random.default_rng(0)
    pages = case.batch * (-(-case.context // case.page_size) + _SPARE_PAGES)
    token = (model.num_kv_heads, model.head_dim)
    ids = list(range(case.batch))
    cache = PagedKvCache(model, pages)
    for request in ids:
        tokens = rng.standard_normal((2, case.context, *token), np.float32)
        cache.append_tokens(request, *tokens)
    _decode_twice(case, cache, lambda: cache.append_step(ids, *_step_tokens(rng, ids, token)))

    from numbadsd.pages.device import device_pool_of  # needs CUDA

    cache = PagedKvCache(model, pages, allocate_storage=False)
    pool = device_pool_of(cache)
    for request in ids:
        pool.prefill_synthetic(request, case.context, 0)
    _decode_twice(case, cache, lambda: pool.append_synthetic(ids, 0))
    _gpu_topk.every_way()
    run.tell("decoded")


def _step_tokens(rng, ids: list[int], token: tuple[int, int]) -> np.ndarray:
    return rng.standard_normal((2, len(ids), *token), np.float32)


def _decode_twice(case: Case, cache: PagedKvCache, append) -> None:
    """Decode by both paths with a token appended in between; the outputs must be finite."""
    shape = (case.batch, case.num_heads, case.head_dim)
    queries = np.random.default_rng(1).standard_normal(shape, np.float32)
    paths = [make_path(name, cache, use_graph=False, debug=True) for name in GPU_PATHS]
    for step in range(2):
        for path in paths:
            result = path.decode(queries, cache.request_ids)
            assert np.isfinite(result.outputs).all() and np.isfinite(result.lse).all()
        if step == 0:
            append()


# ---- ncu


def profile(run: Run) -> None:
    """Read the counters of the kernels of one dense and one sparse step."""
    tool = _missing(run, "ncu")
    if tool is None:
        return
    options = (
        "--clock-control", "none", "--profile-from-start", "off", "--csv", "--page", "raw",
        "--print-units", "base", "--metrics", ",".join(METRICS),
    )  # fmt: skip
    target = _target(run, "profile-target")
    status, output = run.call(tool, *options, *target, seconds=_TOOL_S)
    kernels = _kernels(output)
    if not kernels:
        said = re.findall(r"==ERROR== (.*)", output)
        return run.tell(f"status {status}: {said[0] if said else 'no counters'}", "failed")
    print(tabulate(kernels, headers="keys", floatfmt=".4g"))
    longest = max(kernels, key=lambda row: row["us"])
    run.tell(
        f"{len(kernels)} kernels; {longest['kernel']} {longest['us']:.1f} us, "
        f"{longest['dram_percent']:.0f} % of DRAM, occupancy {longest['occupancy_percent']:.0f} %",
        case=PROFILED.name, kernels=kernels,
    )  # fmt: skip


def _kernels(output: str) -> list[dict]:
    """Return ncu's rows, one a kernel: its table is a line of names, one of units, and numbers."""
    lines = [line for line in output.splitlines() if line.startswith('"')]
    rows = []
    for row in csv.DictReader(lines):
        if not row["ID"].isdigit():  # the units
            continue
        short = re.search(r"locals_3e(?:::|\d+)([a-z_]+)", row["Kernel Name"])
        numbers = {"kernel": short[1] if short else row["Kernel Name"][:60]}
        for metric, (name, factor) in METRICS.items():
            numbers[name] = _number(row.get(metric)) * factor
        rows.append(numbers)
    return rows


def _number(text: str | None) -> float:
    try:
        return float((text or "").replace(",", ""))
    except ValueError:  # "n/a"
        return float("nan")


def profile_target(run: Run) -> None:
    """Decode one dense and one sparse step, launch by launch, with the profiler on."""
    (case,) = run.sized([PROFILED])
    data = case.fill()
    options = {"use_graph": False, "timing": False}
    paths = [make_path(name, data.cache, **options) for name in case.paths]
    for path in paths:
        path.decode(data.queries, data.request_ids)
    if not SIMULATED:
        from cuda.bindings import driver as cu

        cu.cuProfilerStart()
    for path in paths:
        path.decode(data.queries, data.request_ids)
    if not SIMULATED:
        cu.cuProfilerStop()
    run.tell("decoded")
