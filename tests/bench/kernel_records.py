"""Made-up records of `dsd_kernels`, and whether kernels can be compiled here."""

from importlib.util import find_spec
from pathlib import Path

import pytest


def kernel_entry(**changes):
    """Return a kernel that is within its budget, but for the changes."""
    return {
        "name": "attend", "num_threads": 128, "max_registers": 128, "load_bytes": 64,
        "low_occupancy": "", "registers": 64, "stack_bytes": 0, "shared_bytes": 2048,
        "occupancy_fraction": 0.5, "faults": [],
    } | changes  # fmt: skip


def kernel_record(*kernels):
    """Return a record of these kernels."""
    limits = {"max_threads": 2048, "max_blocks": 32, "shared_bytes": 233472}
    shape = {"num_heads": 32, "num_kv_heads": 8, "head_dim": 128, "kv_dtype": "float16"}
    return {
        "schema_version": 1, "command": "dsd_kernels", "environment": {}, "arch": "sm_90",
        "multiprocessor": limits, "shapes": [shape], "kernels": list(kernels),
    }  # fmt: skip


def why_no_compiler():
    """Return why CUDA kernels cannot be compiled here, "" where they can."""
    for package, module in (("numba-cuda", "numba_cuda"), ("pyelftools", "elftools")):
        if find_spec(module) is None:
            return f"{package} is not installed (extra: cuda)"
    nvidia = find_spec("nvidia")
    folders = list(nvidia.submodule_search_locations) if nvidia else []
    if not any(file for folder in folders for file in Path(folder).rglob("libnvvm.so*")):
        return "NVIDIA's compiler is not installed (extra: cuda)"
    return ""


needs_compiler = pytest.mark.skipif(bool(why_no_compiler()), reason=why_no_compiler())
