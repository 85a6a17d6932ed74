"""The record of a run: environment, results, and a file that is whole or absent."""

import json
import math
import platform
import subprocess
import tempfile
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numba
import psutil

import numbadsd
from numbadsd.files import replacing
from numbadsd.kernels.cuda.runtime import get_driver

SCHEMA_VERSION = 1


def environment(uses_gpu: bool = False) -> dict:
    """Return the machine, the versions and the commit that a result was measured with."""
    commit, dirty = _source_commit()
    device = get_driver() if uses_gpu else None
    return {
        "numbadsd": numbadsd.__version__,
        "cpu": _cpu_name(),
        "num_cores": psutil.cpu_count(logical=False),
        "memory_bytes": psutil.virtual_memory().total,
        "num_threads": numba.get_num_threads(),
        "threading_layer": _threading_layer(),
        "gpu": device.name if device else None,
        "driver": device.version if device else None,
        "os": platform.platform(),
        "python": platform.python_version(),
        "numba": _version("numba"),
        "numba_cuda": _version("numba-cuda"),
        "numpy": _version("numpy"),
        "llvmlite": _version("llvmlite"),
        "commit": commit,
        "dirty": dirty,
        "timestamp": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def check_writable(path: Path) -> None:
    """Raise OSError when a record could not be written to `path`; leaves nothing behind."""
    if path.is_dir():
        raise IsADirectoryError("it is a folder")
    if path.exists() and not path.is_file():  # a rename would replace a device or a pipe
        raise OSError("it is not a regular file")
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
        pass


def write_record(record: dict, path: Path) -> None:
    """Write a record as one line of JSON; the file is whole, or what it was before."""
    write_text_atomically(to_json_line(record), path)


def to_json_line(record: dict) -> str:
    """Return a record as one line of JSON."""
    return json.dumps(_finite(record), allow_nan=False) + "\n"


def write_text_atomically(text: str, path: Path) -> None:
    """Write a text file that is whole, or what it was before."""
    with replacing(path) as file:
        file.write(text)


def _finite(value):
    """Return `value` with NaN and infinities as None: JSON has no word for them."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _threading_layer() -> str | None:
    try:
        return numba.threading_layer()
    except ValueError:  # no parallel kernel has run yet
        return None


def _cpu_name() -> str:
    """Return the processor's name; on Linux the one that the kernel reports."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _source_commit() -> tuple[str | None, bool | None]:
    """Return commit and dirtiness of the checkout numbadsd was imported from, if it is one."""
    folder = Path(numbadsd.__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "-uno"))
    except (OSError, subprocess.CalledProcessError):
        return None, None
