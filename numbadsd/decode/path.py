"""The port of a decode path, and the paths by name."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from numbadsd.config import ModelConfig
from numbadsd.decode.cpu import DenseCpuPath, SparseCpuPath
from numbadsd.decode.gpu import unavailable_path
from numbadsd.pages.cache import PagedKvCache
from numbadsd.types import DecodeResult


class DecodePath(Protocol):
    """What the benchmarks and the engine ask of a backend."""

    config: ModelConfig

    def decode(self, queries: np.ndarray, request_ids) -> DecodeResult:
        """Attend one query per request to that request's context."""
        ...


PATHS: dict[str, Callable[..., DecodePath]] = {
    "dense_cpu": DenseCpuPath,
    "sparse_cpu": SparseCpuPath,
    "dense_gpu": unavailable_path,
    "sparse_gpu": unavailable_path,
}


def make_path(name: str, cache: PagedKvCache, *, fused: bool = True) -> DecodePath:
    """Return a decode path over a cache.

    Parameters
    ----------
    name : {"dense_cpu", "sparse_cpu", "dense_gpu", "sparse_gpu"}
        Dense attends to every page, sparse to the top_k_pages best ones.
    cache : PagedKvCache
        Where keys, values and summaries are.
    fused : bool
        False makes a sparse path copy the selected pages before it attends (the reference
        system's CPU stages); the outputs are the same bits.

    Raises
    ------
    ValueError
        For an unknown name.
    CudaUnavailable
        For a GPU path where it cannot run, with the reason and the remedy.
    """
    if name not in PATHS:
        raise ValueError(f"name: got {name!r}, want one of {', '.join(PATHS)}")
    return PATHS[name](cache, fused=fused)
