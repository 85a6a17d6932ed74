"""DevicePagePool: the same bits as its cache after any sequence, and how little travels."""

import numpy as np
import pytest

from numbadsd.config import KV_DTYPES
from numbadsd.errors import PoolExhausted, StorageUnavailable
from numbadsd.kernels.cuda.sim_driver import SimDriver
from numbadsd.pages import device
from numbadsd.pages.cache import PagedKvCache
from numbadsd.pages.device import DevicePagePool, device_pool_of
from numbadsd.pages.layout import cache_bytes
from numbadsd.pages.staging import TransferStats
from numbadsd.workload.synthetic import UniformWorkload
from tests.builders import DTYPES, SUMMARIES, make_cache, random_tokens, small_config
from tests.device import assert_same_bits
from tests.pages.checks import (
    SMALL,
    assert_device_equals,
    assert_tables_equal,
    count_allocations,
    download,
    make_pool,
    tokens_for,
    transfers_of,
)
from tests.pages.late import use_late_streams

T = 4  # page_size of small_config


def make_bare_pool(capacity_pages=20, **changes):
    """Return a pool over a cache without storage."""
    config = small_config(**(SMALL | changes))
    return DevicePagePool(PagedKvCache(config, capacity_pages, allocate_storage=False))


# ---- a cache with storage: contents


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("summary", SUMMARIES)
def test_a_device_follows_its_cache_bit_for_bit(summary, dtype):
    pool = make_pool([9, 0, T, 1], shuffle=1, num_kv_heads=2, summary=summary, kv_dtype=dtype)
    cache = pool.cache
    assert_device_equals(pool)
    cache.append_tokens(1, *tokens_for(pool, 2 * T + 3))
    cache.append_step([3, 0, 2], *tokens_for(pool, 3))
    cache.append_token(3, *(a[0] for a in tokens_for(pool, 1)))
    cache.append_page(8, *tokens_for(pool, T))
    cache.release_request(0)
    assert_device_equals(pool)
    cache.append_tokens(7, *tokens_for(pool, 3 * T + 1, seed=5))
    assert_device_equals(pool)


def test_a_long_prompt_travels_in_chunks_of_whole_pages(monkeypatch):
    pool = make_pool([3], kv_dtype="float16")
    token_bytes = 2 * pool.config.num_kv_heads * pool.config.head_dim * 2
    monkeypatch.setattr(device, "CHUNK_BYTES", 2 * T * token_bytes)
    prompt = tuple(a.astype(np.float16) for a in tokens_for(pool, 5 * T))
    calls, _, _ = transfers_of(pool, lambda: pool.cache.append_tokens(0, *prompt))
    assert calls == 3  # 1 + T, 2 T, T + 3 tokens
    assert_device_equals(pool)


@pytest.mark.parametrize("summary_dtype", DTYPES)
@pytest.mark.parametrize("summary", ["mean", "cuboid_mean"])
def test_summaries_may_have_a_dtype_of_their_own(summary, summary_dtype):
    pool = make_pool([9], summary=summary, summary_dtype=summary_dtype, kv_dtype="float16")
    pool.cache.append_tokens(1, *tokens_for(pool, 6))
    assert pool.summaries.dtype == KV_DTYPES[summary_dtype]
    assert_device_equals(pool)


@pytest.mark.parametrize("page_size, head_dim", [(1, 16), (3, 80), (16, 128), (64, 32)])
def test_pages_of_any_size(page_size, head_dim):
    shape = dict(page_size=page_size, head_dim=head_dim, kv_dtype="bfloat16", summary="mean_std")
    pool = make_pool([17, 1], **shape)
    pool.cache.append_tokens(1, *tokens_for(pool, 2))
    assert_device_equals(pool)


@pytest.mark.parametrize("kv_dtype", DTYPES)
@pytest.mark.parametrize("given", [np.float64, *KV_DTYPES.values()])
def test_tokens_of_any_float_dtype_are_rounded_as_the_cache_rounds(kv_dtype, given):
    pool = make_pool([], kv_dtype=kv_dtype, summary="minmax")
    keys, values = np.random.default_rng(1).standard_normal((2, 6, 1, 16)).astype(given)
    pool.cache.append_tokens(0, keys, values)
    assert_device_equals(pool)


@pytest.mark.parametrize("summary", SUMMARIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_odd_numbers_are_the_same_numbers_on_the_device(summary, dtype):
    pool = make_pool([], summary=summary, kv_dtype=dtype)
    rng = np.random.default_rng(29)
    odd = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, 1e-7, -3e-41, 7e4], np.float32)
    keys, values = tokens_for(pool, 4 * T)
    keys = np.where(rng.random(keys.shape) < 0.3, rng.choice(odd, keys.shape), keys)
    with np.errstate(over="ignore"):
        pool.cache.append_tokens(0, keys, values)
    for page_id in pool.cache.request_pages(0).tolist():
        expected = pool.cache.pool.keys[page_id], pool.cache.summaries[page_id]
        for got, want in zip(pool.download_page(page_id)[::2], expected, strict=True):
            got, want = got.astype(np.float32), want.astype(np.float32)
            np.testing.assert_array_equal(got, want)  # the sign and payload of a NaN may differ
            is_number = ~np.isnan(want)
            assert_same_bits(np.signbit(got)[is_number], np.signbit(want)[is_number])


def test_a_reused_page_and_a_reused_id_keep_nothing():
    pool = make_pool([3 * T, 2], capacity_pages=4)
    cache = pool.cache
    cache.append_tokens(1, *tokens_for(pool, 2))
    cache.release_request(0)
    assert np.count_nonzero(pool.download_metadata()) == 1
    cache.append_tokens(0, *tokens_for(pool, T + 1, seed=3))
    assert_device_equals(pool)
    assert_tables_equal(pool, [0, 1])
    cache.release_request(0)
    cache.append_tokens(5, *tokens_for(pool, 3 * T, seed=4))
    cache.append_tokens(5, *tokens_for(pool, 0))
    assert_device_equals(pool)
    assert_tables_equal(pool, [5, 1])


def test_reset_frees_every_page_on_the_device_too():
    pool = make_pool([9, 5])
    pool.cache.reserve_pages(0, 2)
    pool.tables.sync([0, 1])
    pool.cache.reset()
    assert not pool.download_metadata().any()
    pool.cache.append_tokens(1, *tokens_for(pool, 6))
    assert_device_equals(pool)
    assert_tables_equal(pool, [1])


def test_a_cache_has_one_pool():
    cache, _, _ = make_cache(small_config(**SMALL), [3])
    pool = device_pool_of(cache)
    assert device_pool_of(cache) is pool and cache.mirrors == [pool]


def test_a_device_that_works_late_ends_with_the_same_bits(monkeypatch):
    use_late_streams(monkeypatch)
    pool = make_pool([9, 0], shuffle=4, summary="minmax")
    cache, batch = pool.cache, [1, 0]
    page_id = int(cache.request_pages(0)[0])
    page = cache.pool.keys[page_id].copy()
    cache.pool.keys[page_id] = np.nan  # a copy that is still to come would carry this
    assert_same_bits(pool.download_page(page_id)[0], page)
    cache.pool.keys[page_id] = page
    for step in range(6):
        keys, values = tokens_for(pool, 2, seed=step)
        cache.append_step(batch, keys, values)
        keys[:], values[:] = np.nan, np.nan  # the caller may reuse his memory
        pool.tables.sync(batch)
    cache.release_request(1)
    cache.append_tokens(2, *tokens_for(pool, 2 * T + 1))
    assert pool.stream.pending and pool.stream.waits
    assert_tables_equal(pool, [2, 0])
    assert_device_equals(pool)
    bare, late = make_bare_pool(), make_bare_pool()
    for target in (bare, late):
        target.prefill_synthetic(0, 9, 7)
        if target is bare:
            target.stream.synchronize()
        target.append_synthetic([0], 7)
    for a, b in zip(bare.download_page(19), late.download_page(19), strict=True):
        assert_same_bits(a, b)


# ---- a cache with storage: what travels


def test_neighbouring_pages_travel_as_one_span():
    cache, _, _ = make_cache(small_config(**SMALL), [9, 3, 7, 1], capacity_pages=10)
    cache.release_request(1)  # pages 7 8 9, and 3 4 5, are left: two spans
    pool = DevicePagePool(cache)
    assert pool.stats.h2d_calls == 2 * 2 + 1  # K and V of each, and once what they hold
    pages = 6 * cache.config.page_bytes
    assert pages < pool.stats.h2d_bytes < pages + 300
    assert_device_equals(pool)


def test_an_upload_takes_pages_in_any_order():
    pool = make_pool([T * 6 - 1], capacity_pages=10)
    for array in (pool.keys, pool.values, pool.summaries, pool.page_tokens):
        pool.stream.fill(array, 0xFF)
    pages = pool.cache.request_pages(0).tolist()  # 4 .. 9
    calls, _, _ = transfers_of(pool, lambda: pool.upload_pages([9, 4, 6, 5, 9]))
    assert calls == 2 * 2 + 1
    pool.upload_pages([7, 8])
    pool.upload_pages([])
    counts = pool.download_metadata()
    assert counts[pages].tolist() == [4, 4, 4, 4, 4, 3] and np.all(counts[:4] == -1)
    pool.mark_free([0, 1, 2, 3])
    assert not pool.download_metadata()[:4].any()
    assert_device_equals(pool)


@pytest.mark.parametrize("dtype", DTYPES)
def test_appended_tokens_travel_in_one_copy_in_the_kv_dtype(dtype):
    pool = make_pool([3, T, 0], kv_dtype=dtype)
    token_bytes = pool.config.token_bytes
    keys, values = tokens_for(pool, 3 * T)
    calls, num_bytes, back = transfers_of(pool, lambda: pool.cache.append_tokens(0, keys, values))
    assert (calls, back) == (1, 0)
    assert 3 * T * token_bytes < num_bytes < 3 * T * token_bytes + 150
    step = keys[:3], values[:3]
    calls, num_bytes, back = transfers_of(pool, lambda: pool.cache.append_step([2, 0, 1], *step))
    assert (calls, back) == (1, 0)
    assert 3 * token_bytes < num_bytes < 3 * token_bytes + 100
    assert_device_equals(pool)


def test_what_changes_no_token_sends_no_token():
    pool = make_pool([9, 5], capacity_pages=6)
    pool.tables.sync([0, 1])

    def calls_that_change_nothing():
        keys, values = tokens_for(pool, 6)
        pool.cache.append_tokens(0, keys[:0], values[:0])
        pool.cache.append_step([], keys[:0], values[:0])
        pool.cache.reserve_pages(1, 1)
        with pytest.raises(PoolExhausted):
            pool.cache.append_tokens(0, keys, values)
        with pytest.raises(ValueError):
            pool.cache.append_tokens(0, keys, values[:1])
        pool.tables.sync([0, 1])
        pool.tables.sync([1])
        pool.tables.sync([])

    assert transfers_of(pool, calls_that_change_nothing) == (0, 0, 0)
    assert_device_equals(pool)
    assert_tables_equal(pool, [0, 1])


# ---- a cache without storage


def fill_both(bare, twin):
    """Give a pool without storage, and a cache, the same prompts and steps."""
    keys, values = tokens_for(bare, 40)
    for request_id, tokens in ((3, 11), (0, T), (9, 0)):
        bare.upload_prompt(request_id, keys[:tokens], values[:tokens])
        twin.append_tokens(request_id, keys[:tokens], values[:tokens])
    bare.upload_prompt(0, keys[20:30], values[20:30])
    twin.append_tokens(0, keys[20:30], values[20:30])
    for step in range(3):
        rows = slice(30 + 3 * step, 33 + 3 * step)
        bare.append_step([9, 3, 0], keys[rows], values[rows])
        twin.append_step([9, 3, 0], keys[rows], values[rows])


@pytest.mark.parametrize("chunk_tokens", [1, 3, 1000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_for_the_device_alone_are_stored_as_a_cache_stores_them(
    dtype, chunk_tokens, monkeypatch
):
    bare = make_bare_pool(kv_dtype=dtype, summary="mean_std")
    token_bytes = 2 * 4 * bare.config.num_kv_heads * bare.config.head_dim
    monkeypatch.setattr(device, "CHUNK_BYTES", chunk_tokens * token_bytes + 1)
    twin = PagedKvCache(bare.config, 20)
    fill_both(bare, twin)
    bare.cache.check_integrity()
    assert_device_equals(bare, twin)
    assert_tables_equal(bare, [9, 0, 3])
    assert bare.cache.release_request(3) == twin.release_request(3)
    bare.upload_prompt(4, *tokens_for(bare, 5))
    twin.append_tokens(4, *tokens_for(bare, 5))
    assert_device_equals(bare, twin)


@pytest.mark.parametrize("chunk_tokens", [4, 1000])
def test_synthetic_tokens_are_those_of_the_uniform_workload(chunk_tokens, monkeypatch):
    bare = make_bare_pool(num_kv_heads=2, kv_dtype="bfloat16")
    monkeypatch.setattr(device, "CHUNK_BYTES", chunk_tokens * 2 * 4 * 2 * 16)
    bare.prefill_synthetic(2, 7, seed=5)
    bare.prefill_synthetic(0, 1, seed=5)
    for _ in range(2):
        bare.append_synthetic([0, 2], seed=5)
    bare.prefill_synthetic(2, 6, seed=5)
    bare.prefill_synthetic(1, 0, seed=5)
    bare.append_synthetic([], seed=5)
    workload = UniformWorkload(bare.config, np.array([3, 0, 15]), seed=5)
    twin = PagedKvCache(bare.config, 20)
    for request_id, rows in ((2, slice(7)), (0, slice(3)), (2, slice(7, 9)), (2, slice(9, 15))):
        twin.append_tokens(request_id, *(a[rows] for a in next(workload.chunks(request_id, 100))))
    twin.append_tokens(1, *(a[:0] for a in tokens_for(bare, 1)))
    assert bare.cache.request_ids == [2, 0, 1]
    assert_device_equals(bare, twin)


def test_a_step_of_synthetic_tokens_brings_the_tables_along():
    bare = make_bare_pool(capacity_pages=40)
    for request_id in range(3):
        bare.prefill_synthetic(request_id, 3 * T + request_id, seed=1)
    ids = (2, 0, 1)
    assert transfers_of(bare, lambda: bare.append_synthetic(ids, 1))[0] == 1
    bare.tables.sync(ids)  # rows that no step has had yet are too much for a step
    for _ in range(2 * T):
        assert transfers_of(bare, lambda: bare.append_synthetic(ids, 1))[0] == 1
        assert transfers_of(bare, lambda: bare.tables.sync(ids)) == (0, 0, 0)
    assert_tables_equal(bare, ids)
    bare.append_synthetic(ids[:1], 2)  # another seed, and another batch
    assert_tables_equal(bare, ids)


def test_synthetic_tokens_are_made_where_they_stay():
    bare = make_bare_pool()
    calls, num_bytes, _ = transfers_of(bare, lambda: bare.prefill_synthetic(0, 40, seed=1))
    assert calls == 1 and num_bytes < 40 * bare.config.token_bytes


FILLING = {
    "upload_prompt": lambda p, k, v: p.upload_prompt(0, k, v),
    "append_step": lambda p, k, v: p.append_step([0, 1], k, v),
    "prefill_synthetic": lambda p, k, v: p.prefill_synthetic(0, 2, 1),
    "append_synthetic": lambda p, k, v: p.append_synthetic([0, 1], 1),
}


@pytest.mark.parametrize("call", FILLING.values(), ids=FILLING)
def test_a_cache_with_storage_takes_its_tokens_itself(call):
    pool = make_pool([9, 5])
    with pytest.raises(StorageUnavailable, match="append"):
        call(pool, *tokens_for(pool, 2))
    assert (pool.cache.num_tokens(0), pool.cache.num_tokens(1)) == (9, 5)
    assert_device_equals(pool)


K, V = random_tokens(small_config(**SMALL, kv_dtype="float16"), 2, 1)
HALF = V.astype(np.float16)
MANY = np.zeros((200, 1, 16), np.float32)
WRONG = {
    "prompt of another head_dim": lambda p: p.upload_prompt(0, K[..., :8], V[..., :8]),
    "values of another length": lambda p: p.upload_prompt(0, K, V[:1]),
    "values of another dtype": lambda p: p.upload_prompt(0, K, HALF),
    "keys of another dtype": lambda p: p.upload_prompt(0, HALF, V),
    "integers": lambda p: p.upload_prompt(0, K.astype(int), V.astype(int)),
    "a request below 0": lambda p: p.upload_prompt(-1, K, V),
    "a step too short": lambda p: p.append_step([0], K, V),
    "a step of two dtypes": lambda p: p.append_step([0, 1], HALF, V),
    "a request twice": lambda p: p.append_step([0, 0], K, V),
    "an unknown request": lambda p: p.append_step([0, 5], K, V),
    "a negative count": lambda p: p.prefill_synthetic(0, -1, 1),
    "half a token": lambda p: p.prefill_synthetic(0, 0.5, 1),
    "a negative seed": lambda p: p.prefill_synthetic(0, 2, -1),
    "a seed too large": lambda p: p.append_synthetic([0], 1 << 32),
    "an unknown synthetic request": lambda p: p.append_synthetic([0, 5], 1),
    "a page below 0": lambda p: p.download_page(-1),
    "a page above the last": lambda p: p.download_page(20),
    "more than the pool": lambda p: p.upload_prompt(0, MANY, MANY),
    "more than the pool, made there": lambda p: p.prefill_synthetic(7, 200, 1),
}


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_a_wrong_call_changes_nothing(call):
    bare = make_bare_pool(kv_dtype="float16")
    twin = PagedKvCache(bare.config, 20)
    for request_id, tokens in ((0, 5), (1, T)):
        bare.upload_prompt(request_id, *tokens_for(bare, tokens))
        twin.append_tokens(request_id, *tokens_for(bare, tokens))
    with pytest.raises((ValueError, PoolExhausted)):
        call(bare)
    assert bare.cache.request_ids == [0, 1]
    bare.cache.check_integrity()
    assert_device_equals(bare, twin)


# ---- memory, and back to the host


@pytest.mark.parametrize("has_storage", [True, False])
def test_a_device_that_is_too_small_is_refused_before_anything_is_taken(monkeypatch, has_storage):
    config = small_config(**SMALL)
    cache = PagedKvCache(config, 1000, allocate_storage=has_storage)
    needed = cache_bytes(config, 1000) + device.RESERVE_BYTES
    allocated = count_allocations(monkeypatch)
    monkeypatch.setattr(SimDriver, "memory_bytes", lambda self: (needed - 1, 1 << 40))
    message = f"capacity_pages: got 1000.*{needed:,} bytes of {needed - 1:,} free"
    with pytest.raises(ValueError, match=message):
        DevicePagePool(cache)
    assert not allocated and not cache.mirrors
    monkeypatch.setattr(SimDriver, "memory_bytes", lambda self: (needed, 1 << 40))
    assert device_pool_of(cache).keys.shape == (1000, 1, T, 16)


def test_what_comes_back_has_the_shapes_of_a_page_and_is_counted():
    pool = make_pool([9], num_kv_heads=2, kv_dtype="float16", summary="minmax")
    pool.stats.reset()
    keys, values, summary = pool.download_page(np.int64(19))
    assert keys.shape == values.shape == (2, T, 16) and keys.dtype == np.float16
    assert summary.shape == (2, 2, 16)
    metadata = pool.download_metadata()
    assert metadata.dtype == np.int32 and metadata.shape == (20,) and metadata.sum() == 9
    num_bytes = pool.config.page_bytes + pool.config.summary_bytes + metadata.nbytes
    assert pool.stats == TransferStats(d2h_calls=4, d2h_bytes=num_bytes)
    before = keys.copy()
    download(pool, pool.keys[19:20])[:] = 0
    assert_same_bits(pool.download_page(19)[0], before)
