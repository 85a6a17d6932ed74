"""Which device kernels run on: the first CUDA device, the simulator, or none and why."""

from functools import cache
from importlib.util import find_spec

from numbadsd.kernels.cuda.switch import SIMULATED

INSTALL = "install CUDA support: pip install 'numbadsd[cuda]'"
MIN_COMPUTE_CAPABILITY = (8, 0)  # the first that converts to bfloat16


@cache
def why_unavailable() -> tuple[str, str] | None:
    """Return the reason and the remedy when no kernel can run here, None when one can."""
    if SIMULATED:
        if find_spec("greenlet") is None:
            return "the simulator needs greenlet", "pip install 'numbadsd[sim]'"
        return None
    for package, module in (("numba-cuda", "numba_cuda"), ("cuda-bindings", "cuda.bindings")):
        if not _has(module):
            return f"{package} is not installed", INSTALL
    return _why_no_device()


def _has(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _why_no_device() -> tuple[str, str] | None:
    from cuda.bindings import driver as cu

    no_driver = "use a machine with an NVIDIA GPU and its driver; the CPU paths run anywhere"
    try:
        (status,) = cu.cuInit(0)
    except RuntimeError as error:  # libcuda is missing, or too old for a function
        return f"the CUDA driver cannot be used ({str(error).split('. ')[0]})", no_driver
    if status != cu.CUresult.CUDA_SUCCESS:
        return f"the CUDA driver does not start ({status.name})", no_driver
    _, version = cu.cuDriverGetVersion()
    major = cu.CUDA_VERSION // 1000  # code of one major version runs on every driver of it
    if version < major * 1000:
        got = f"{version // 1000}.{version % 1000 // 10}"
        reason = f"the driver supports CUDA {got}, the installed packages are for CUDA {major}"
        remedy = f"install a driver for CUDA {major}.0 or newer"
        if version >= 12000:
            remedy += ", or packages for this one: pip install 'numbadsd[cuda12]'"
        return reason, remedy
    _, count = cu.cuDeviceGetCount()
    if not count:
        return "the CUDA driver sees no device", no_driver
    _, device = cu.cuDeviceGet(0)
    places = cu.CUdevice_attribute
    capability = tuple(
        cu.cuDeviceGetAttribute(attribute, device)[1]
        for attribute in (
            places.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            places.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    )
    if capability < MIN_COMPUTE_CAPABILITY:
        got = f"the device has compute capability {capability[0]}.{capability[1]}"
        return got, "use a device of 8.0 (Ampere) or newer"
    return None


@cache
def get_driver():
    """Return the driver of this process; call `why_unavailable` first."""
    if SIMULATED:
        from numbadsd.kernels.cuda.sim_driver import SimDriver

        return SimDriver()
    from numbadsd.kernels.cuda.driver import CudaDriver

    return CudaDriver()
