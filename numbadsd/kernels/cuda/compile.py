"""Kernels to machine code, with or without a device, and where the machine code is kept.

Numba's own launch route is used (NVVM to LTO-IR, nvJitLink to a cubin), so that what is compiled
offline is what a device runs. Numba asks the current device for its architecture on the way; for
the time of a compilation it is told which one is meant.
"""

import hashlib
import importlib.metadata
import pickle
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from numbadsd.kernels.cache_folder import kernel_cache_folder
from numbadsd.kernels.cuda.launch import Kernel
from numbadsd.kernels.cuda.toolchain import (
    as_numba_expects,
    compiler,
    devices,
    dispatcher,
    types,
)

_NUMBERS = {"f32": types.float32, "i32": types.int32, "u32": types.uint32, "i64": types.int64,
            "u16": types.uint16}  # fmt: skip
# Architectures with instructions of their own: numba-cuda compiles for these as well.
_SPECIFIC = {(9, 0)}

# What machine code depends on, under the names of CUDA 13 and of CUDA 12.
_COMPILERS = (
    "numba", "numba-cuda", "llvmlite", "nvidia-nvvm", "nvidia-nvjitlink",
    "nvidia-cuda-nvcc-cu12", "nvidia-nvjitlink-cu12",
)  # fmt: skip


@dataclass(frozen=True)
class MachineCode:
    """A compiled kernel."""

    entry: str
    cubin: bytes


def argument_types(kernel: Kernel) -> tuple:
    """Return the Numba types of a kernel's parameters."""
    return tuple(
        types.Array(_NUMBERS[p.removesuffix("[]")], 1, "C") if p.endswith("[]") else _NUMBERS[p]
        for p in kernel.parameters
    )


@contextmanager
def _as_if_on(compute_capability: tuple[int, int]):
    """Let Numba compile for an architecture, whatever device is here."""

    class _Device:
        id = 0

    _Device.compute_capability = compute_capability

    class _Context:
        device = _Device

    places = (
        (dispatcher, "get_current_device", lambda: _Device),
        (compiler, "get_current_device", lambda: _Device),
        (devices, "get_context", lambda *a: _Context),
    )
    saved = [getattr(module, name) for module, name, _ in places]
    try:
        for module, name, stand_in in places:
            setattr(module, name, stand_in)
        with as_numba_expects():
            yield
    finally:
        for (module, name, _), original in zip(places, saved, strict=True):
            setattr(module, name, original)


def _compile(kernel: Kernel, *, lto: bool):
    return dispatcher._Kernel(
        kernel.function,
        argument_types(kernel),
        lto=lto,
        opt=True,
        fastmath=False,
        link=[],
        max_registers=kernel.max_registers,
    )


def compile_now(kernel: Kernel, compute_capability: tuple[int, int]) -> MachineCode:
    """Compile a kernel for an architecture; no device is needed."""
    arch = (*compute_capability, "a") if compute_capability in _SPECIFIC else compute_capability
    with _as_if_on(compute_capability):
        compiled = _compile(kernel, lto=True)
        code = compiled._codelibrary.get_cubin(cc=arch).code
    return MachineCode(compiled.entry_name, bytes(code))


def ptx_of(kernel: Kernel, compute_capability: tuple[int, int]) -> tuple[str, str]:
    """Return the entry's name and the PTX of a kernel, as compiled without link-time steps."""
    with _as_if_on(compute_capability):
        compiled = _compile(kernel, lto=False)
        return compiled.entry_name, compiled._codelibrary.get_asm_str(cc=compute_capability)


def compile_cached(kernel: Kernel, compute_capability: tuple[int, int]) -> MachineCode:
    """Return a kernel's machine code from the cache folder, or compile it and keep it there."""
    folder = kernel_cache_folder(Path(__file__).parent, _versions())
    if folder is None:
        return compile_now(kernel, compute_capability)
    arch = "".join(map(str, compute_capability))
    file = Path(folder) / f"{kernel.name}-sm_{arch}.cubin"
    try:
        return MachineCode(**pickle.loads(file.read_bytes()))
    except (OSError, pickle.UnpicklingError, EOFError, TypeError):
        code = compile_now(kernel, compute_capability)
    scratch = file.with_suffix(f".{hashlib.sha256(code.cubin).hexdigest()[:8]}")
    try:  # renamed when whole: another process may read it meanwhile
        scratch.write_bytes(pickle.dumps(asdict(code)))
        scratch.replace(file)
    except OSError:
        scratch.unlink(missing_ok=True)
    return code


def _versions() -> str:
    return " ".join(f"{name} {_version(name)}" for name in _COMPILERS)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"
