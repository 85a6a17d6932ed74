"""PagedKvCache for an engine: reservations by tokens, and many requests in one call."""

import numpy as np
import pytest

from numbadsd.errors import PoolExhausted
from numbadsd.pages import tables
from tests.pages.test_cache import CAPACITY, T, assert_holds, cache_with, snapshot, some_tokens


def test_reserved_tokens_are_appended_without_the_pool():
    cache, _, _ = cache_with([T + 1])
    assert cache.reserve_tokens(0, T - 1).tolist() == []  # they fit the tail page
    assert cache.reserve_tokens(0, 2 * T).tolist() == [2, 3]
    assert cache.reserve_tokens(0, 2 * T).tolist() == []
    assert cache.num_tokens(0) == T + 1 and len(cache.request_pages(0)) == 2
    assert cache.pool.allocate_many(2).tolist() == [0, 1]
    for step in range(2 * T):
        cache.append_step([0], *some_tokens(1, step))
    assert cache.num_tokens(0) == 3 * T + 1
    assert cache.request_pages(0).tolist() == [4, 5, 2, 3]
    assert cache.reserve_tokens(0, T - 1).tolist() == []
    with pytest.raises(PoolExhausted):
        cache.reserve_tokens(0, T)


def test_tokens_may_be_reserved_for_a_request_that_is_new():
    cache, _, _ = cache_with([])
    assert cache.reserve_tokens(3, T + 1).tolist() == [4, 5]
    assert 3 in cache and 0 not in cache
    assert cache.num_tokens(3) == 0
    cache.check_integrity()


def test_many_requests_are_released_at_once():
    cache, keys, values = cache_with([T + 1, 3, 0, T])
    cache.reserve_pages(2, 1)
    version = cache.version
    assert cache.release_many((2, 0)) == 3
    assert cache.version != version
    assert cache.request_ids == [1, 3]
    assert cache.pool.num_free_pages == CAPACITY - 2
    cache.check_integrity()
    for request_id in (1, 3):
        assert_holds(cache, request_id, keys[request_id], values[request_id])
    assert cache.release_many([]) == 0
    assert cache.release_many(iter([1, 3])) == 2
    assert cache.pool.num_free_pages == CAPACITY


def test_the_tokens_of_a_batch_are_counted_at_once():
    cache, _, _ = cache_with([T + 1, 3, 0])
    tokens = cache.context_tokens([2, 0, 0])
    assert tokens.tolist() == [0, T + 1, T + 1] and tokens.dtype == np.int64
    tokens[:] = 7  # the caller's own
    assert cache.context_tokens(iter([1])).tolist() == [3]
    assert cache.context_tokens([]).tolist() == []


def test_the_rows_of_a_batch_stay_until_a_request_goes():
    cache, _, _ = cache_with([1, 2, 3])
    batch = (2, 0, 2)
    rows = cache.rows(batch)
    assert rows.dtype == np.int64 and rows[0] == rows[2] != rows[1]
    with pytest.raises(ValueError):
        rows[0] = 1
    cache.append_step([0, 1], *some_tokens(2))
    cache.append_tokens(9, *some_tokens(1))
    assert cache.rows(batch) is not rows  # another batch was asked for
    rows = cache.rows(batch)
    cache.append_tokens(8, *some_tokens(1))
    assert cache.rows(batch) is rows and cache.rows(list(batch)) is rows
    cache.release_request(2)
    for again in (batch, list(batch)):
        with pytest.raises(ValueError, match="request_id: got 2"):
            cache.rows(again)
    cache.release_request(0)
    for request_id in (0, 2):
        cache.append_tokens(request_id, *some_tokens(request_id))
    assert cache.rows(batch).tolist() == [cache.table.row(r) for r in batch]


def test_no_memory_for_more_requests_changes_nothing(monkeypatch):
    monkeypatch.setattr(tables, "_FIRST_ROWS", 1)
    monkeypatch.setattr(tables, "_FIRST_PAGES", 1)
    cache, _, _ = cache_with([T])
    before = snapshot(cache)

    def no_memory(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(cache.table, "_allocate", no_memory)
        for call in (
            lambda: cache.append_tokens(0, *some_tokens(1)),
            lambda: cache.append_tokens(1, *some_tokens(1)),
            lambda: cache.append_step([0], *some_tokens(1)),
            lambda: cache.reserve_pages(0, 1),
        ):
            with pytest.raises(MemoryError):
                call()
            assert snapshot(cache) == before
    cache.check_integrity()
    cache.append_step([0], *some_tokens(1))
    cache.check_integrity()
