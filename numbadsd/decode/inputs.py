"""What every path asks of its arguments."""

from dataclasses import dataclass
from math import prod

import numpy as np

from numbadsd.config import KV_DTYPES, ModelConfig, check, check_integer
from numbadsd.kernels.cuda.launch import DeviceArray


@dataclass(frozen=True)
class UniformQueries:
    """Queries that a GPU path makes in its step: those of `UniformTokens` for the next tokens.

    Attributes
    ----------
    seed : int
        Of the uniform workload, 0 .. 2**32 - 1.
    """

    seed: int

    def __post_init__(self):
        check_integer("seed", self.seed, 0, 2**32 - 1)

    def __getitem__(self, places) -> "UniformQueries":
        """Return those of a part of a batch: a request's query does not depend on the others."""
        return self


def checked_queries(queries: np.ndarray, request_ids, config: ModelConfig) -> np.ndarray:
    """Return queries as C-contiguous [B, H, D] float32, or raise ValueError."""
    shape = (len(request_ids), config.num_heads, config.head_dim)
    queries = np.asarray(queries)
    if queries.shape != shape:
        check(False, "queries", f"shape {queries.shape}", f"{shape}")
    if queries.dtype != np.float32:
        is_real = queries.dtype in (np.float64, *KV_DTYPES.values())
        check(is_real, "queries", f"dtype {queries.dtype}", "a real floating type")
    return np.ascontiguousarray(queries, np.float32)


def device_queries(queries, request_ids, config: ModelConfig) -> DeviceArray:
    """Return queries of any library's device array as a DeviceArray, or raise ValueError."""
    shape = (len(request_ids), config.num_heads, config.head_dim)
    if isinstance(queries, DeviceArray) and queries.shape == shape and queries.dtype == np.float32:
        return queries
    described = queries.__cuda_array_interface__
    got = f"shape {tuple(described['shape'])}, type {described['typestr']}"
    check(tuple(described["shape"]) == shape, "queries", got, f"shape {shape}")
    check(np.dtype(described["typestr"]) == np.float32, "queries", got, "float32 on the device")
    strides = described.get("strides")
    rows = tuple(4 * prod(shape[i + 1 :]) for i in range(3))
    check(strides is None or tuple(strides) == rows, "queries", f"strides {strides}", f"{rows}")
    return DeviceArray(described["data"][0], shape, np.float32, queries)
