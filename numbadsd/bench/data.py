"""From a configuration to a filled cache: the data of a decode benchmark."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import psutil
from tqdm import tqdm

from numbadsd.config import DecodeBenchConfig, ModelConfig, check
from numbadsd.kernels.cpu.attend import SPLIT_TOKENS
from numbadsd.pages.cache import PagedKvCache
from numbadsd.pages.layout import cache_bytes
from numbadsd.workload.captures import Capture, CapturedWorkload, load_capture
from numbadsd.workload.synthetic import (
    StructuredWorkload,
    UniformWorkload,
    draw_context_tokens,
)

__all__ = [
    "DecodeData",
    "capture_shape",
    "fill_cache",
    "lives_on_device",
    "load_capture",
    "make_workload",
    "unfilled",
]

FILL_BYTES = 16 << 20  # of K and V in float32 at a time: memory stays near the pool itself
_OWN_BYTES = 256 << 20  # interpreter, compiled code, scratch
_PAGE_LIST_BYTES = 32  # of a page: who is free, who owns it


@dataclass(frozen=True)
class DecodeData:
    """A batch that is ready to decode."""

    cache: PagedKvCache
    queries: np.ndarray  # [B, H, D] f32
    request_ids: list[int]
    context_tokens: np.ndarray  # [B] i64
    workload: object


def capture_shape(capture: Capture) -> dict[str, int]:
    """Return the fields of a configuration that captured tensors decide."""
    num_heads, head_dim = capture.queries.shape[1:]
    return {"num_heads": num_heads, "num_kv_heads": capture.keys.shape[1], "head_dim": head_dim}


def lives_on_device(config: DecodeBenchConfig, capture: Capture | None = None) -> bool:
    """Whether nothing needs the tokens on the host: GPU paths alone, and data that is random."""
    gpu_only = config.paths is not None and all(name.endswith("_gpu") for name in config.paths)
    is_random = capture is None and config.data == "uniform"
    return gpu_only and is_random


def make_workload(
    config: DecodeBenchConfig,
    capture: Capture | None = None,
    other_bytes: Callable[[ModelConfig, np.ndarray], int] = lambda model, context_tokens: 0,
):
    """Return the requests of a benchmark: captured, structured or uniform.

    Raises ValueError, before it makes any data, when the cache would not fit in memory together
    with `other_bytes` of what else is to be measured.
    """
    model = config.model
    if capture is not None:
        workload = CapturedWorkload(capture, config.batch_size, config.page_size)
        other = other_bytes(model, workload.context_tokens)
        check_memory(model, workload.context_tokens, config.fused, other_bytes=other)
        return workload
    context_tokens = draw_context_tokens(
        config.batch_size, config.min_context_tokens, config.max_context_tokens, config.seed
    )
    other = other_bytes(model, context_tokens)
    check_memory(model, context_tokens, config.fused, lives_on_device(config), other)
    workload = {"uniform": UniformWorkload, "structured": StructuredWorkload}[config.data]
    return workload(model, context_tokens, config.seed)


def pool_pages(model: ModelConfig, context_tokens: np.ndarray) -> int:
    """Return the pages that hold these contexts."""
    return int((-(-np.asarray(context_tokens, np.int64) // model.page_size)).sum())


def check_memory(
    model: ModelConfig,
    context_tokens: np.ndarray,
    fused: bool = True,
    on_device: bool = False,
    other_bytes: int = 0,
) -> None:
    """Raise ValueError, with the bytes, when a benchmark of these contexts cannot fit in memory.

    `on_device` counts the memory of the host for a cache that lies on a device only.
    """
    context_tokens = np.asarray(context_tokens, np.int64)
    num_pages = pool_pages(model, context_tokens)
    needed = FILL_BYTES + _OWN_BYTES + other_bytes
    if on_device:
        needed += _PAGE_LIST_BYTES * num_pages + _transfer_bytes(model, context_tokens)
    else:
        needed += cache_bytes(model, num_pages) + _scratch_bytes(model, context_tokens, fused)
    available = psutil.virtual_memory().available
    check(
        needed <= available,
        "context tokens",
        int(context_tokens.sum()),
        f"a cache that fits in memory: this one needs {needed:,} bytes of {available:,} available",
    )


def _transfer_bytes(model: ModelConfig, context_tokens: np.ndarray) -> int:
    """Return the bytes on the host of a step on a device: what it takes, gives, and is copied."""
    most_pages = int((-(-context_tokens // model.page_size)).max())
    outputs = 6 * model.num_heads * model.head_dim  # of both paths, and the queries
    lists = 2 * model.num_units * (2 * most_pages + model.top_k_pages)
    return 4 * len(context_tokens) * (outputs + lists)


def _scratch_bytes(model: ModelConfig, context_tokens: np.ndarray, fused: bool) -> int:
    """Return the bytes beside the cache: of a step, and of measuring the quality afterwards."""
    batch, longest = len(context_tokens), int(context_tokens.max())
    pages = -(-context_tokens // model.page_size)
    most_pages = int(pages.max())
    step = 4 * batch * model.num_heads * 3 * model.head_dim  # queries, factors, outputs
    step += 4 * batch * model.num_units * (most_pages + 2 * model.top_k_pages)  # scores, lists
    # partial results of the splits of the dense path
    splits = int(context_tokens.sum()) // SPLIT_TOKENS + batch
    step += 4 * splits * model.num_heads * (model.head_dim + 2)
    if not fused:
        kv_heads = model.num_kv_heads if model.num_units == 1 else 1
        tile_bytes = model.page_bytes // model.num_kv_heads
        selected = int(np.minimum(pages, model.top_k_pages).sum()) * model.num_units
        step += selected * kv_heads * tile_bytes
    # float64 masses of every page for every head, logits of one group, and their temporaries
    quality = 8 * (4 * model.num_heads * most_pages + 3 * model.group_size * longest)
    return step + quality


def fill_cache(model: ModelConfig, workload, on_device: bool = False) -> DecodeData:
    """Store a workload in a cache of exactly the pages it needs.

    `on_device` makes the tokens of a uniform workload on the GPU, with no copy on the host.
    """
    if on_device:
        return _fill_device(model, workload)
    context_tokens = np.asarray(workload.context_tokens, np.int64)
    cache = PagedKvCache(model, pool_pages(model, context_tokens))
    float32_token_bytes = 2 * 4 * model.num_kv_heads * model.head_dim
    chunk_tokens = max(1, FILL_BYTES // float32_token_bytes)
    total = int(context_tokens.sum())
    with tqdm(total=total, desc="filling", unit="tok", leave=False, disable=None) as bar:
        for request_id in range(len(context_tokens)):
            for keys, values in workload.chunks(request_id, chunk_tokens):
                cache.append_tokens(request_id, keys, values)
                bar.update(len(keys))
    request_ids = list(range(len(context_tokens)))
    return DecodeData(cache, workload.queries, request_ids, context_tokens, workload)


def unfilled(model: ModelConfig, workload) -> DecodeData:
    """Return a workload with a cache that counts its pages and holds no tokens on the host."""
    context_tokens = np.asarray(workload.context_tokens, np.int64)
    cache = PagedKvCache(model, pool_pages(model, context_tokens), allocate_storage=False)
    request_ids = list(range(len(context_tokens)))
    return DecodeData(cache, workload.queries, request_ids, context_tokens, workload)


def _fill_device(model: ModelConfig, workload) -> DecodeData:
    """Make the tokens of a uniform workload where they are used."""
    # imported here: it needs CUDA, which this command does without
    from numbadsd.pages.device import device_pool_of

    data = unfilled(model, workload)
    pool = device_pool_of(data.cache)
    for request_id in tqdm(data.request_ids, desc="filling", leave=False, disable=None):
        pool.prefill_synthetic(request_id, int(data.context_tokens[request_id]), workload.seed)
    return data
