"""What the CUDA kernels of a configuration take of a GPU: they are compiled, no GPU is needed.

numba-cuda is imported where kernels are compiled, so that everything else works without it.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec

from tabulate import tabulate
from tqdm import tqdm

from numbadsd.analysis.occupancy import MULTIPROCESSORS, Multiprocessor
from numbadsd.bench.record import SCHEMA_VERSION, environment
from numbadsd.config import ModelConfig, check
from numbadsd.errors import CudaUnavailable
from numbadsd.kernels.cuda.runtime import INSTALL
from numbadsd.kernels.cuda.switch import SIMULATED

ARCHITECTURES = tuple(MULTIPROCESSORS)
LOW_OCCUPANCY_FRACTION = 0.5  # below it a kernel must say why that is enough
SHAPE_FIELDS = tuple("num_heads num_kv_heads head_dim page_size kv_dtype summary share".split())
LIBRARIES = ("nvrtc", "nvvm", "nvJitLink")

# All but seven pairs of values from two columns meet in a row.
SWEEP = tuple(
    ModelConfig(32, 32 // group, head_dim, kv_dtype=kv_dtype, summary=summary, share=share)
    for group, head_dim, kv_dtype, summary, share in (
        (1, 64, "float32", "mean", "kv_head"),
        (1, 128, "float16", "mean_std", "request"),
        (1, 256, "bfloat16", "minmax", "query_head"),
        (4, 64, "bfloat16", "mean_std", "kv_head"),
        (4, 128, "float32", "cuboid_mean", "query_head"),
        (4, 256, "float16", "mean", "request"),
        (8, 64, "float32", "minmax", "request"),
        (8, 128, "bfloat16", "mean", "query_head"),
        (8, 256, "float16", "cuboid_mean", "kv_head"),
        (16, 64, "bfloat16", "cuboid_mean", "request"),
        (16, 128, "float16", "minmax", "kv_head"),
        (16, 256, "float32", "mean_std", "query_head"),
    )
)


def run_kernels(configs: Sequence[ModelConfig], arch: str, command: str) -> dict:
    """Compile every kernel of these configurations for an architecture; return the record."""
    _check_compiler()
    versions = _check_architecture(arch)
    kernels = _kernels_of(configs)
    multiprocessor = MULTIPROCESSORS[arch]
    return {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "environment": environment() | versions,
        "arch": arch,
        "multiprocessor": asdict(multiprocessor),
        "shapes": [{name: getattr(config, name) for name in SHAPE_FIELDS} for config in configs],
        "kernels": [
            _inspect(kernel, multiprocessor)
            for kernel in tqdm(kernels, desc="compiling", leave=False, disable=None)
        ],
    }


def _check_compiler() -> None:
    """Raise CudaUnavailable unless kernels can be compiled here."""
    if SIMULATED:
        reason = "the simulator compiles nothing, and NUMBA_ENABLE_CUDASIM is 1"
        raise CudaUnavailable(reason, "set it to 0 for this command")
    for package, module in (("numba-cuda", "numba_cuda"), ("pyelftools", "elftools")):
        if find_spec(module) is None:
            raise CudaUnavailable(f"{package} is not installed", INSTALL)
    from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib

    for library in LIBRARIES:
        try:
            load_nvidia_dynamic_lib(library)
        except DynamicLibNotFoundError:
            raise CudaUnavailable(f"the library {library} is not found", INSTALL) from None


def _check_architecture(arch: str) -> dict:
    """Return the linker's version; raise ValueError when the compiler does not know `arch`."""
    from cuda.bindings import nvjitlink
    from numba.cuda.cudadrv import nvrtc

    known = [f"sm_{major}{minor}" for major, minor in nvrtc.get_supported_ccs()]
    known = [name for name in ARCHITECTURES if name in known]
    check(arch in known, "arch", arch, "one that this compiler knows: " + ", ".join(known))
    return {"nvjitlink": ".".join(map(str, nvjitlink.version()))}


def _kernels_of(configs: Sequence[ModelConfig]) -> list:
    """Return the kernels of all configurations, each once; refuse what the GPU paths refuse."""
    from numbadsd.decode.gpu import MAX_HEAD_DIM
    from numbadsd.kernels.cuda.attend import MAX_TILE_HEADS
    from numbadsd.kernels.cuda.catalog import Shape, kernels_of

    kernels = {}
    for config in configs:
        check(
            config.head_dim <= MAX_HEAD_DIM, "head_dim", config.head_dim, f"at most {MAX_HEAD_DIM}"
        )
        want = f"at most {MAX_TILE_HEADS} on each of {config.num_kv_heads} kv heads"
        check(config.group_size <= MAX_TILE_HEADS, "num_heads", config.num_heads, want)
        shape = Shape(**{name: getattr(config, name) for name in SHAPE_FIELDS})
        kernels |= {kernel.name: kernel for kernel in kernels_of(shape)}
    return list(kernels.values())


def _inspect(kernel, multiprocessor: Multiprocessor) -> dict:
    """Compile one kernel; return what it takes, and what is wrong with that."""
    from cuda.bindings.nvjitlink import nvJitLinkError

    from numbadsd.kernels.cuda.compile import compile_now
    from numbadsd.kernels.cuda.inspect import read_resources

    declared = ("name", "num_threads", "max_registers", "load_bytes", "low_occupancy")
    entry = {name: getattr(kernel, name) for name in declared}
    unknown = dict.fromkeys(("registers", "stack_bytes", "shared_bytes", "occupancy_fraction"))
    try:
        code = compile_now(kernel, multiprocessor.compute_capability)
    except nvJitLinkError as error:  # more shared memory than there is, an instruction too new
        return entry | unknown | {"faults": [f"does not compile: {_first_error(str(error))}"]}
    taken = read_resources(code, multiprocessor.compute_capability)
    entry |= asdict(taken)
    entry["occupancy_fraction"] = multiprocessor.occupancy_fraction(
        kernel.num_threads, taken.registers, taken.shared_bytes
    )
    return entry | {"faults": faults_of(entry)}


def _first_error(log: str) -> str:
    """Return what the linker complains about first."""
    found = re.search(r"error *: *(.+)", log)
    return found[1] if found else log.splitlines()[0]


def faults_of(kernel: dict) -> list[str]:
    """Return what puts a compiled kernel over its declared budget."""
    faults = []
    if kernel["registers"] > kernel["max_registers"]:
        faults.append(f"{kernel['registers']} registers of {kernel['max_registers']}")
    if kernel["stack_bytes"] > 0:
        faults.append(f"{kernel['stack_bytes']} bytes of stack")
    occupancy = kernel["occupancy_fraction"]
    if occupancy == 0:
        faults.append("no block fits")
    elif occupancy < LOW_OCCUPANCY_FRACTION and not kernel["low_occupancy"]:
        faults.append(f"occupancy {occupancy:.3f} without a reason")
    return faults


def over_budget(record: dict) -> str:
    """Return the kernels that are over their budget and why, in one line; "" for none."""
    return "; ".join(
        f"{kernel['name']}: {', '.join(kernel['faults'])}"
        for kernel in record["kernels"]
        if kernel["faults"]
    )


_COLUMNS = {
    "name": "",
    "num_threads": "Threads",
    "registers": "Registers",
    "max_registers": "Budget",
    "stack_bytes": "Stack(B)",
    "shared_bytes": "Shared(B)",
    "occupancy_fraction": "Occupancy",
    "load_bytes": "Load(B)",
}
_GUIDE = """\
Registers  of a thread, and what the kernel declares as its limit.
Stack      local memory of a thread: a spill, or an array that is indexed at run time.
Shared     static, of a block.
Occupancy  threads that a multiprocessor holds at once, of all that it could.
Load       bytes that a thread has in flight in the main load."""


def render_kernels(record: dict) -> str:
    """Return a `dsd_kernels` record as text."""
    limits = record["multiprocessor"]
    head = (
        f"{record['arch']}: a multiprocessor holds {limits['max_threads']} threads, "
        f"{limits['max_blocks']} blocks, {limits['shared_bytes']} bytes of shared memory."
    )
    shapes = [", ".join(f"{k} {v}" for k, v in shape.items()) for shape in record["shapes"]]
    return "\n".join([head, *shapes, "", _table(record["kernels"]), "", _GUIDE])


def _table(kernels: list[dict]) -> str:
    rows = [(*(kernel[key] for key in _COLUMNS), _note(kernel)) for kernel in kernels]
    headers = [*_COLUMNS.values(), "note"]
    return tabulate(rows, headers, floatfmt=".3f", missingval="-", disable_numparse=[0])


def _note(kernel: dict) -> str:
    """Return what is wrong with a kernel, or why its low occupancy is enough."""
    if kernel["faults"]:
        return "OVER BUDGET: " + ", ".join(kernel["faults"])
    is_low = kernel["occupancy_fraction"] < LOW_OCCUPANCY_FRACTION
    return kernel["low_occupancy"] if is_low else ""
