"""GPU decode paths: registered, and refused with the reason until their kernels exist."""

from numbadsd.errors import CudaUnavailable

REASON = "this version of numbadsd has no GPU kernels yet"
REMEDY = "use dense_cpu or sparse_cpu"


def unavailable_path(cache, *, fused: bool = True):
    """Raise CudaUnavailable: what a GPU path is before it can run."""
    raise CudaUnavailable(REASON, REMEDY)
