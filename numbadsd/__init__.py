"""numbadsd: when does page-level dynamic sparsity beat dense decode, all overheads included?"""

from numbadsd.config import ModelConfig
from numbadsd.decode.path import PATHS, DecodePath, make_path
from numbadsd.errors import (
    CaptureError,
    CudaUnavailable,
    IntegrityError,
    NumbadsdError,
    PageStateError,
    PoolExhausted,
    StorageUnavailable,
)
from numbadsd.pages.cache import PagedKvCache
from numbadsd.pages.descriptors import AppendedToken, PageDescriptor
from numbadsd.pages.pool import PagePool
from numbadsd.selection import topk, topk_workspace_bytes
from numbadsd.types import DecodeResult, PageTable, StageTimes

__version__ = "0.1.0"

__all__ = [
    "PATHS",
    "AppendedToken",
    "CaptureError",
    "CudaUnavailable",
    "DecodePath",
    "DecodeResult",
    "IntegrityError",
    "ModelConfig",
    "NumbadsdError",
    "PageDescriptor",
    "PageStateError",
    "PageTable",
    "PagePool",
    "PagedKvCache",
    "PoolExhausted",
    "StageTimes",
    "StorageUnavailable",
    "make_path",
    "topk",
    "topk_workspace_bytes",
]
