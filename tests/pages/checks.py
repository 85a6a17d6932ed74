"""Device pools, and what they are held against: a cache with storage, bit by bit."""

import numpy as np

from numbadsd.kernels.cuda.runtime import get_driver
from numbadsd.pages.device import DevicePagePool
from tests.builders import make_cache, random_tokens, small_config
from tests.device import assert_same_bits

SMALL = dict(num_heads=2, num_kv_heads=1)


def make_pool(contexts, *, capacity_pages=20, shuffle=None, **changes):
    """Return a pool over a cache with storage, which holds request b with contexts[b] tokens."""
    config = small_config(**(SMALL | changes))
    cache, _, _ = make_cache(config, contexts, capacity_pages=capacity_pages, shuffle=shuffle)
    return DevicePagePool(cache)


def tokens_for(pool, count, seed=99):
    """Return keys and values that a pool can take."""
    return random_tokens(pool.config, count, seed)


def transfers_of(pool, call):
    """Return what travels in a call."""
    pool.stats.reset()
    call()
    return pool.stats.h2d_calls, pool.stats.h2d_bytes, pool.stats.d2h_calls


def download(pool, array):
    """Return an array of a pool's device on the host."""
    target = np.empty(array.shape, array.dtype)
    pool.stream.download(target, array)
    pool.stream.synchronize()
    return target


def assert_device_equals(pool, cache=None):
    """Fail unless a device holds what a cache with storage holds, summaries and counts included.

    `cache` is the pool's own by default; another one must have put its tokens in the same pages.
    """
    cache = pool.cache if cache is None else cache
    size, counts = cache.config.page_size, np.zeros(cache.pool.capacity_pages, np.int32)
    for request_id in cache.request_ids:
        tokens, page_ids = cache.num_tokens(request_id), cache.request_pages(request_id)
        np.testing.assert_array_equal(page_ids, pool.cache.request_pages(request_id))
        for index, page_id in enumerate(page_ids.tolist()):
            counts[page_id] = count = min(size, tokens - index * size)
            keys, values, summary = pool.download_page(page_id)
            assert_same_bits(keys[:, :count], cache.pool.keys[page_id][:, :count])
            assert_same_bits(values[:, :count], cache.pool.values[page_id][:, :count])
            assert_same_bits(summary, cache.summaries[page_id])
    np.testing.assert_array_equal(pool.download_metadata(), counts)


def assert_tables_equal(pool, request_ids):
    """Sync the rows of a batch; fail unless they hold the page lists of the pool's cache."""
    rows, max_pages = pool.tables.sync(request_ids)
    row_pages = download(pool, pool.tables.row_pages)
    row_tokens = download(pool, pool.tables.row_tokens)
    page_lists = [pool.cache.request_pages(request_id) for request_id in request_ids]
    assert rows.dtype == np.int32 and len(rows) == len(page_lists)
    assert len(set(rows.tolist())) == len(set(request_ids))
    assert max_pages == max((len(pages) for pages in page_lists), default=0)
    for row, request_id, pages in zip(rows, request_ids, page_lists, strict=True):
        assert row_tokens[row] == pool.cache.num_tokens(request_id)
        np.testing.assert_array_equal(row_pages[row, : len(pages)], pages)


def count_allocations(monkeypatch):
    """Return a list that every later allocation on the device or of page-locked memory enters."""
    allocated, driver = [], type(get_driver())

    def count(name):
        original = getattr(driver, name)

        def counted(self, shape, dtype):
            allocated.append((name, shape, dtype))
            return original(self, shape, dtype)

        monkeypatch.setattr(driver, name, counted)

    count("empty")
    count("pinned")
    return allocated
