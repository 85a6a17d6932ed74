"""Which device a sweep is about, what it is called, and the folder that its results go to."""

import re
import subprocess
import sys
from datetime import date
from pathlib import Path

import psutil

import numbadsd
from numbadsd.bench.record import environment
from numbadsd.errors import CudaUnavailable
from numbadsd.kernels.cuda.runtime import why_unavailable
from numbadsd.kernels.cuda.switch import SIMULATED

SWEEPS = Path("bench_results") / "sweeps"
DEVICES = ("auto", "cpu", "gpu")
_GPU_NAME = "from numbadsd.bench.record import environment; print(environment(True)['gpu'])"
_NOISE = re.compile(
    r"\(r\)|\(tm\)|@.*|\b(intel|amd|nvidia|processor|cpu|gpu|\d+-core)\b", re.IGNORECASE
)


def choose_scale(device: str) -> str:
    """Return "cpu" or "gpu"; auto is a GPU where one is usable, and never the simulator.

    Raises CudaUnavailable when "gpu" is named and none is usable.
    """
    if device == "cpu":
        return "cpu"
    problem = why_unavailable()
    if SIMULATED and problem is None:
        reason = "NUMBA_ENABLE_CUDASIM=1 chooses the simulator, whose times mean nothing"
        problem = (reason, "unset it")
    if problem is None:
        return "gpu"
    if device == "gpu":
        raise CudaUnavailable(*problem)
    return "cpu"


def device_slug(scale: str, on_cluster: bool = False) -> str:
    """Return a name of the device for folders: xeon_2core, h200, or that it is a cluster's."""
    if on_cluster:
        return f"dask_{scale}"
    if scale == "gpu":
        return slug_of(_gpu_name())
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    return f"{slug_of(environment()['cpu'])}_{cores}core"


def slug_of(name: str) -> str:
    """Return what sets a processor apart in its maker's name for it."""
    words = re.findall(r"[a-z0-9]+", _NOISE.sub(" ", name).lower())
    return "_".join(words) or "unknown"


def _gpu_name() -> str:
    """Ask a process for it: one that keeps a device open would disturb the points."""
    done = subprocess.run([sys.executable, "-c", _GPU_NAME], capture_output=True, text=True)
    return done.stdout.strip() or "gpu"


def default_folder(device: str, resume: bool) -> Path:
    """Return the folder of this device, day and commit; to resume, the last one of the commit."""
    version = (environment()["commit"] or "")[:7] or f"v{numbadsd.__version__}"
    folder = SWEEPS / device
    old = sorted(folder.glob(f"????-??-??_{version}")) if resume else []
    return old[-1] if old else folder / f"{date.today().isoformat()}_{version}"


def newest_sweep() -> Path:
    """Return the sweep with the last date, of one day's the one that was written last."""
    files = list(SWEEPS.glob("*/*/*/points.jsonl"))
    if not files:
        raise ValueError(f"no results in {SWEEPS}: run dsd_sweep run, or name a folder")
    return max(
        (file.parents[1].name[:10], file.stat().st_mtime, file.parents[1]) for file in files
    )[2]
