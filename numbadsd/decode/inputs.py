"""What every path asks of its arguments."""

import numpy as np

from numbadsd.config import KV_DTYPES, ModelConfig, check


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
