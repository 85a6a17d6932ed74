"""Caches and queries that tests start from; every random number has a seed."""

import numpy as np

from numbadsd.config import KV_DTYPES, ModelConfig
from numbadsd.pages.cache import PagedKvCache

SUMMARIES = ("mean", "minmax", "cuboid_mean", "mean_std")
SHARES = ("request", "kv_head", "query_head")
DTYPES = ("float32", "float16", "bfloat16")


def small_config(**changes):
    """Return a model of 4 query heads on 2 kv heads, pages of 4 tokens, 3 selected pages."""
    fields = dict(num_heads=4, num_kv_heads=2, head_dim=16, page_size=4, top_k_pages=3)
    return ModelConfig(**(fields | changes))


def random_tokens(config, num_tokens, seed):
    """Return keys and values [tokens, G, D] float32 that the kv dtype holds without loss."""
    shape = (num_tokens, config.num_kv_heads, config.head_dim)
    rng = np.random.default_rng(seed)
    dtype = KV_DTYPES[config.kv_dtype]
    keys, values = rng.standard_normal(shape), rng.uniform(-1, 1, shape)
    return tuple(a.astype(np.float32).astype(dtype).astype(np.float32) for a in (keys, values))


def random_queries(config, batch, seed):
    """Return queries [B, H, D] float32."""
    shape = (batch, config.num_heads, config.head_dim)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def shuffle_free_pages(pool, seed):
    """Put the free pages of a pool in random order, so that requests own scattered pages."""
    free = pool.allocate_many(pool.num_free_pages)
    for page_id in np.random.default_rng(seed).permutation(free):
        pool.free(int(page_id))


def make_cache(config, context_tokens, seed=0, *, capacity_pages=None, shuffle=None):
    """Fill a cache with one request per context; return cache, keys and values [request].

    Request b's tokens depend on (seed, b) only; `shuffle` is the seed of the page order.
    """
    needed = sum(-(-tokens // config.page_size) for tokens in context_tokens)
    cache = PagedKvCache(config, max(1, needed) if capacity_pages is None else capacity_pages)
    if shuffle is not None:
        shuffle_free_pages(cache.pool, shuffle)
    keys, values = [], []
    for request_id, tokens in enumerate(context_tokens):
        k, v = random_tokens(config, tokens, (seed, request_id))
        cache.append_tokens(request_id, k, v)
        keys.append(k)
        values.append(v)
    return cache, keys, values
