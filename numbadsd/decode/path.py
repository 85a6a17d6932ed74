"""The port of a decode path, and the paths by name."""

from collections.abc import Callable
from importlib import import_module
from typing import Protocol

import numpy as np

from numbadsd.config import ModelConfig
from numbadsd.decode.cpu import DenseCpuPath, SparseCpuPath
from numbadsd.errors import CudaUnavailable
from numbadsd.kernels.cuda.runtime import why_unavailable
from numbadsd.pages.cache import PagedKvCache
from numbadsd.types import DecodeResult


class DecodePath(Protocol):
    """What the benchmarks and the engine ask of a backend."""

    config: ModelConfig

    def decode(self, queries: np.ndarray, request_ids) -> DecodeResult:
        """Attend one query per request to that request's context."""
        ...


def _gpu_path(class_name: str) -> Callable[..., DecodePath]:
    """Return the maker of a GPU path: nothing of CUDA is imported before it is called."""

    def make(cache: PagedKvCache, **options) -> DecodePath:
        problem = why_unavailable()
        if problem is not None:
            raise CudaUnavailable(*problem)
        return getattr(import_module("numbadsd.decode.gpu"), class_name)(cache, **options)

    return make


PATHS: dict[str, Callable[..., DecodePath]] = {
    "dense_cpu": DenseCpuPath,
    "sparse_cpu": SparseCpuPath,
    "dense_gpu": _gpu_path("DenseGpuPath"),
    "sparse_gpu": _gpu_path("SparseGpuPath"),
}


def make_path(name: str, cache: PagedKvCache, *, fused: bool = True, **gpu_options) -> DecodePath:
    """Return a decode path over a cache.

    Parameters
    ----------
    name : {"dense_cpu", "sparse_cpu", "dense_gpu", "sparse_gpu"}
        Dense attends to every page, sparse to the top_k_pages best ones.
    cache : PagedKvCache
        Where keys, values and summaries are.
    fused : bool
        False makes sparse_cpu copy the selected pages before it attends (the reference system's
        CPU stages); the outputs are the same bits. The GPU paths always attend in place.
    **gpu_options
        For the GPU paths: output_mode ("outputs", "none" or "debug"), timing, use_graph, debug.

    Raises
    ------
    ValueError
        For an unknown name.
    CudaUnavailable
        For a GPU path where it cannot run, with the reason and the remedy.
    """
    if name not in PATHS:
        raise ValueError(f"name: got {name!r}, want one of {', '.join(PATHS)}")
    return PATHS[name](cache, fused=fused, **gpu_options)
