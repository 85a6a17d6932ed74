"""PagedKvCache: which tokens sit in which page, and what every failing call leaves alone."""

import numpy as np
import pytest

from numbadsd.errors import PoolExhausted, StorageUnavailable
from numbadsd.pages.cache import PagedKvCache
from tests.builders import make_cache, random_tokens, small_config

CAPACITY = 6
T = 4  # page_size of small_config


def cache_with(tokens, *, capacity_pages=CAPACITY, **changes):
    """Return a cache that holds request b with tokens[b] tokens, and its keys and values."""
    return make_cache(small_config(**changes), tokens, capacity_pages=capacity_pages)


def some_tokens(count, seed=99, **changes):
    return random_tokens(small_config(**changes), count, seed)


def snapshot(cache):
    """Return everything a caller can see of a cache, storage bytes included."""
    pool = cache.pool
    requests = {
        request_id: (cache.num_tokens(request_id), cache.request_pages(request_id).tolist())
        for request_id in cache.request_ids
    }
    pages = [cache.page(page_id) for page_id in range(pool.capacity_pages)]
    allocated = [pool.is_allocated(page_id) for page_id in range(pool.capacity_pages)]
    arrays = [a.tobytes() for a in (pool.keys, pool.values, cache.summaries)]
    return list(cache.request_ids), requests, pages, pool.num_free_pages, allocated, arrays


def free_order(cache):
    """Return the order in which the free pages would be allocated."""
    return [cache.pool.allocate() for _ in range(cache.pool.num_free_pages)]


def assert_holds(cache, request_id, keys, values):
    np.testing.assert_array_equal(cache.copy_keys(request_id), keys)
    np.testing.assert_array_equal(cache.copy_values(request_id), values)


def test_tokens_come_back_as_they_were_stored():
    cache, keys, values = cache_with([0, 1, T, T + 1])
    for request_id in range(4):
        assert_holds(cache, request_id, keys[request_id], values[request_id])
        assert cache.copy_keys(request_id).dtype == np.float32
        assert cache.copy_values(request_id).dtype == np.float32
    assert cache.request_ids == [0, 1, 2, 3]
    cache.check_integrity()


@pytest.mark.parametrize(
    "kv_dtype, given",
    [
        ("float32", np.float64),
        ("float16", np.float64),
        ("bfloat16", np.float64),
        ("float16", np.float16),
        ("bfloat16", np.float16),
    ],
)
def test_any_float_dtype_is_stored_in_the_kv_dtype(kv_dtype, given):
    cache, _, _ = cache_with([], kv_dtype=kv_dtype)
    rng = np.random.default_rng(1)
    keys, values = (rng.standard_normal((5, 2, 16)).astype(given) for _ in range(2))
    cache.append_tokens(0, keys, values)
    stored = cache.pool.keys.dtype
    through = [a.astype(np.float32).astype(stored).astype(np.float32) for a in (keys, values)]
    assert_holds(cache, 0, *through)
    cache.check_integrity()


def test_rows_that_are_not_contiguous_are_stored_right():
    keys, values = some_tokens(12)
    cache, _, _ = cache_with([])
    cache.append_tokens(0, keys[::2], values[::-2])
    assert_holds(cache, 0, keys[::2], values[::-2])


def test_the_pool_layout_is_page_head_slot():
    cache, keys, values = cache_with([T + 2])
    for position in range(T + 2):
        page_id, slot = cache.request_pages(0)[position // T], position % T
        np.testing.assert_array_equal(cache.pool.keys[page_id, :, slot], keys[0][position])
        np.testing.assert_array_equal(cache.pool.values[page_id, :, slot], values[0][position])


def test_an_empty_context_is_a_registered_request():
    cache, _, _ = cache_with([0])
    assert cache.request_ids == [0]
    assert cache.num_tokens(0) == 0
    assert cache.request_pages(0).tolist() == []
    assert cache.copy_keys(0).shape == (0, 2, 16)
    table = cache.page_table([0])
    assert table.page_indptr.tolist() == [0, 0]
    assert table.last_page_tokens.tolist() == [0]
    assert cache.release_request(0) == 0
    assert cache.request_ids == []


def test_the_page_table_is_ragged_in_the_order_asked_for():
    cache, _, _ = cache_with([2 * T, 0, 1, T + 1])
    table = cache.page_table([3, 0, 1, 2])
    assert table.page_indptr.tolist() == [0, 2, 4, 4, 5]
    assert table.last_page_tokens.tolist() == [1, T, 0, 1]
    expected = [p for r in (3, 0, 1, 2) for p in cache.request_pages(r).tolist()]
    assert table.page_ids.tolist() == expected
    assert table.context_tokens(T).tolist() == [T + 1, 2 * T, 0, 1]
    assert all(field.dtype == np.int32 for field in table)


def test_the_page_table_of_nothing_is_empty():
    cache, _, _ = cache_with([3])
    table = cache.page_table([])
    assert [field.tolist() for field in table] == [[0], [], []]


def test_the_page_table_reads_an_iterator_once():
    cache, _, _ = cache_with([3, T + 1])
    for field, expected in zip(
        cache.page_table(iter([1, 0])), cache.page_table([1, 0]), strict=True
    ):
        np.testing.assert_array_equal(field, expected)


def test_a_page_list_is_not_a_handle_on_the_cache():
    cache, keys, values = cache_with([T, T])
    try:
        cache.request_pages(0)[0] = cache.request_pages(1)[0]
    except ValueError:
        pass  # a read-only array is as good as a copy
    cache.check_integrity()
    assert_holds(cache, 0, keys[0], values[0])


def test_a_request_may_stand_in_the_table_twice():
    cache, _, _ = cache_with([3, T + 1])
    table = cache.page_table([1, 1])
    pages = cache.request_pages(1).tolist()
    assert table.page_ids.tolist() == pages + pages


def test_a_token_fills_the_tail_page_before_a_new_one_opens():
    cache, keys, values = cache_with([T - 1])
    more_keys, more_values = some_tokens(3)
    appended = [cache.append_token(0, k, v) for k, v in zip(more_keys, more_values, strict=True)]
    pages = cache.request_pages(0).tolist()
    assert [(a.page_id, a.slot, a.new_page) for a in appended] == [
        (pages[0], T - 1, False),
        (pages[1], 0, True),
        (pages[1], 1, False),
    ]
    assert_holds(cache, 0, *map(np.concatenate, ([keys[0], more_keys], [values[0], more_values])))


def test_the_first_token_of_an_unknown_request_registers_it():
    cache, _, _ = cache_with([])
    keys, values = some_tokens(1)
    appended = cache.append_token(7, keys[0], values[0])
    assert (appended.page_id, appended.slot, appended.new_page) == (CAPACITY - 1, 0, True)
    assert cache.request_ids == [7]


def test_more_tokens_fill_the_tail_page_first():
    cache, keys, values = cache_with([T + 1])
    more_keys, more_values = some_tokens(T)
    cache.append_tokens(0, more_keys, more_values)
    assert len(cache.request_pages(0)) == 3
    assert_holds(cache, 0, *map(np.concatenate, ([keys[0], more_keys], [values[0], more_values])))
    cache.append_tokens(0, more_keys[:0], more_values[:0])
    assert cache.num_tokens(0) == 2 * T + 1


def test_a_partial_tail_page_is_never_abandoned():
    cache, _, _ = cache_with([T + 1])
    keys, values = some_tokens(1)
    before = snapshot(cache)
    with pytest.raises(ValueError, match="force_new_page"):
        cache.append_token(0, keys[0], values[0], force_new_page=True)
    with pytest.raises(ValueError):
        cache.append_page(0, keys, values)
    assert snapshot(cache) == before


def test_force_new_page_on_a_full_page_opens_one():
    cache, _, _ = cache_with([T])
    keys, values = some_tokens(1)
    appended = cache.append_token(0, keys[0], values[0], force_new_page=True)
    assert appended.new_page and appended.slot == 0
    assert cache.request_pages(0).tolist()[1] == appended.page_id


@pytest.mark.parametrize("tokens", [1, T])
def test_a_page_is_appended_whole(tokens):
    cache, keys, values = cache_with([T])
    more_keys, more_values = some_tokens(tokens)
    page_id = cache.append_page(0, more_keys, more_values)
    assert cache.request_pages(0).tolist()[1] == page_id
    assert cache.num_tokens(0) == T + tokens
    assert_holds(cache, 0, *map(np.concatenate, ([keys[0], more_keys], [values[0], more_values])))
    cache.check_integrity()


@pytest.mark.parametrize("tokens", [0, T + 1])
def test_a_page_of_no_or_too_many_tokens_is_refused(tokens):
    cache, _, _ = cache_with([T])
    before = snapshot(cache)
    with pytest.raises(ValueError):
        cache.append_page(0, *some_tokens(tokens))
    assert snapshot(cache) == before


def test_one_step_appends_a_token_to_each_request():
    cache, keys, values = cache_with([T - 1, T, 0])
    step_keys, step_values = some_tokens(3)
    cache.append_step([2, 0, 1], step_keys, step_values)
    for row, request_id in enumerate([2, 0, 1]):
        expected = np.concatenate([keys[request_id], step_keys[row : row + 1]])
        np.testing.assert_array_equal(cache.copy_keys(request_id), expected)
        expected = np.concatenate([values[request_id], step_values[row : row + 1]])
        np.testing.assert_array_equal(cache.copy_values(request_id), expected)
    assert [len(cache.request_pages(r)) for r in range(3)] == [1, 2, 1]
    cache.check_integrity()


def test_a_page_descriptor_tells_owner_place_and_offset():
    cache, _, _ = cache_with([T + 3, 1])
    for index, page_id in enumerate(cache.request_pages(0)):
        page = cache.page(int(page_id))
        assert (page.page_id, page.request_id) == (page_id, 0)
        assert (page.start_token, page.token_count) == (index * T, [T, 3][index])
        assert page.offset == page_id * 2 * T * 16
        flat = cache.pool.keys.reshape(-1)[page.offset : page.offset + 16]
        np.testing.assert_array_equal(flat, cache.pool.keys[page_id, 0, 0])
    free = next(p for p in range(CAPACITY) if not cache.pool.is_allocated(p))
    assert (cache.page(free).request_id, cache.page(free).token_count) == (-1, 0)


def test_reserved_pages_are_used_by_later_appends_in_ascending_order():
    cache, _, _ = cache_with([])
    cache.append_tokens(1, *some_tokens(1))
    reserved = cache.reserve_pages(0, 3)
    assert list(reserved) == [2, 3, 4]
    assert cache.pool.num_free_pages == 2
    assert cache.request_pages(0).tolist() == []
    assert cache.page_table([0]).page_ids.tolist() == []
    keys, values = some_tokens(3 * T + 1)
    cache.append_tokens(0, keys[:T], values[:T])
    assert cache.request_pages(0).tolist() == [2]
    cache.append_token(0, keys[T], values[T])
    assert cache.request_pages(0).tolist() == [2, 3]
    assert cache.pool.num_free_pages == 2
    cache.append_tokens(0, keys[T + 1 :], values[T + 1 :])
    assert cache.request_pages(0).tolist() == [2, 3, 4, 1]
    assert_holds(cache, 0, keys, values)
    cache.check_integrity()


def test_a_release_gives_reserved_pages_back_too():
    cache, _, _ = cache_with([T + 1])
    cache.reserve_pages(0, 2)
    cache.check_integrity()
    assert cache.release_request(0) == 4
    assert cache.pool.num_free_pages == CAPACITY
    cache.check_integrity()


def test_a_reservation_that_does_not_fit_reserves_nothing():
    cache, _, _ = cache_with([T, 1])
    before = snapshot(cache)
    for request_id in (0, 5):
        with pytest.raises(PoolExhausted) as caught:
            cache.reserve_pages(request_id, CAPACITY - 1)
        assert (caught.value.needed_pages, caught.value.free_pages) == (CAPACITY - 1, CAPACITY - 2)
        assert snapshot(cache) == before
    assert free_order(cache) == [3, 2, 1, 0]


def test_pages_of_a_released_request_are_reused_without_its_tokens():
    cache, _, _ = cache_with([3 * T, 3 * T])
    old = set(cache.request_pages(0).tolist())
    assert cache.release_request(0) == 3
    keys, values = some_tokens(2 * T + 1, seed=5)
    cache.append_tokens(9, keys, values)
    assert set(cache.request_pages(9).tolist()) == old
    assert_holds(cache, 9, keys, values)
    assert cache.page_table([9]).last_page_tokens.tolist() == [1]
    assert cache.page(int(cache.request_pages(9)[-1])).token_count == 1
    cache.check_integrity()
    with pytest.raises(ValueError):
        cache.num_tokens(0)


def test_an_id_may_come_back_after_release():
    cache, _, _ = cache_with([T + 1])
    cache.release_request(0)
    keys, values = some_tokens(2)
    cache.append_tokens(0, keys, values)
    assert_holds(cache, 0, keys, values)


def test_reset_forgets_everything():
    cache, _, _ = cache_with([T + 1, 3])
    cache.reserve_pages(0, 1)
    cache.reset()
    assert cache.request_ids == []
    assert all(cache.page(page_id).request_id == -1 for page_id in range(CAPACITY))
    cache.check_integrity()
    assert free_order(cache) == [5, 4, 3, 2, 1, 0]


EXHAUSTING = {
    "append_tokens to a request": lambda c: c.append_tokens(0, *some_tokens(2 * T)),
    "append_tokens to a new request": lambda c: c.append_tokens(8, *some_tokens(T + 1)),
    "append_step": lambda c: c.append_step([0, 1, 2], *some_tokens(3)),
    "reserve_pages": lambda c: c.reserve_pages(0, 2),
    "reserve_tokens": lambda c: c.reserve_tokens(0, T + 1),
}


@pytest.mark.parametrize("call", EXHAUSTING.values(), ids=EXHAUSTING)
def test_an_exhausted_pool_changes_nothing(call):
    cache, _, _ = cache_with([2 * T, T, T + 2])  # one page is free
    before = snapshot(cache)
    with pytest.raises(PoolExhausted) as caught:
        call(cache)
    assert (caught.value.free_pages, caught.value.capacity_pages) == (1, CAPACITY)
    assert caught.value.needed_pages == 2
    assert snapshot(cache) == before
    cache.check_integrity()


def test_a_full_pool_still_takes_the_tokens_that_fit_the_tail():
    cache, keys, _ = cache_with([T - 1], capacity_pages=1)
    more_keys, more_values = some_tokens(2)
    before = snapshot(cache)
    for call in (
        lambda: cache.append_tokens(0, more_keys, more_values),
        lambda: cache.append_page(1, more_keys, more_values),
        lambda: cache.append_token(1, more_keys[0], more_values[0]),
    ):
        with pytest.raises(PoolExhausted):
            call()
        assert snapshot(cache) == before
    cache.append_token(0, more_keys[0], more_values[0])
    np.testing.assert_array_equal(cache.copy_keys(0), np.concatenate([keys[0], more_keys[:1]]))


K, V = some_tokens(2)
WRONG = {
    "keys of one dimension less": lambda c: c.append_tokens(0, K[0], V),
    "values of another length": lambda c: c.append_tokens(0, K, V[:1]),
    "keys of another head count": lambda c: c.append_tokens(0, K[:, :1], V),
    "values of another head_dim": lambda c: c.append_tokens(0, K, V[..., :8]),
    "integer keys": lambda c: c.append_tokens(0, K.astype(np.int64), V),
    "complex values": lambda c: c.append_tokens(0, K, V.astype(np.complex64)),
    "values of another dtype than keys": lambda c: c.append_tokens(0, K, V.astype(np.float16)),
    "wrong keys of a new request": lambda c: c.append_tokens(8, K[:, :1], V),
    "a token with a token axis": lambda c: c.append_token(0, K, V),
    "a token of another head_dim": lambda c: c.append_token(0, K[0, :, :8], V[0, :, :8]),
    "a page of another head count": lambda c: c.append_page(1, K[:, :1], V[:, :1]),
    "a step with one row less": lambda c: c.append_step([0, 1], K[:1], V[:1]),
    "a step with a request twice": lambda c: c.append_step([0, 0], K, V),
    "a step with an unknown request": lambda c: c.append_step([0, 8], K, V),
    "release of an unknown request": lambda c: c.release_request(8),
    "release of a known and an unknown request": lambda c: c.release_many([0, 8]),
    "release of a request twice": lambda c: c.release_many([1, 1]),
    "rows of an unknown request": lambda c: c.rows([0, 8]),
    "counts of an unknown request": lambda c: c.context_tokens([0, 8]),
    "a reservation of half a token": lambda c: c.reserve_tokens(0, 0.5),
    "a reservation for no request id": lambda c: c.reserve_tokens("a", 1),
    "table of an unknown request": lambda c: c.page_table([0, 8]),
    "tokens of an unknown request": lambda c: c.num_tokens(8),
    "pages of an unknown request": lambda c: c.request_pages(8),
    "keys of an unknown request": lambda c: c.copy_keys(8),
    "values of an unknown request": lambda c: c.copy_values(8),
    "a page id outside the pool": lambda c: c.page(CAPACITY),
    "a negative page id": lambda c: c.page(-1),
    "a negative reservation": lambda c: c.reserve_pages(0, -1),
    "a reservation of half pages": lambda c: c.reserve_pages(0, 1.5),
    "a negative request id": lambda c: c.append_tokens(-1, K, V),
    "a request id that is no integer": lambda c: c.append_tokens("a", K, V),
}


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_a_wrong_argument_changes_nothing(call):
    cache, _, _ = cache_with([T + 1, T])
    before = snapshot(cache)
    with pytest.raises(ValueError, match="(?s)got .*want"):
        call(cache)
    assert snapshot(cache) == before
    cache.check_integrity()


def test_a_metadata_only_cache_counts_tokens_and_stores_none():
    cache = PagedKvCache(small_config(), CAPACITY, allocate_storage=False)
    cache.append_metadata(0, T + 1)
    cache.append_metadata(1, 0)
    assert cache.num_tokens(0) == T + 1
    assert cache.request_pages(0).tolist() == [4, 5]
    table = cache.page_table([0, 1])
    assert table.page_indptr.tolist() == [0, 2, 2]
    assert table.last_page_tokens.tolist() == [1, 0]
    cache.append_metadata(0, T)
    assert cache.page_table([0]).last_page_tokens.tolist() == [1]
    assert len(cache.request_pages(0)) == 3
    with pytest.raises(PoolExhausted):
        cache.append_metadata(1, 3 * T + 1)
    assert cache.num_tokens(1) == 0
    with pytest.raises(ValueError):
        cache.append_metadata(0, -1)
    cache.check_integrity()
    assert cache.release_request(0) == 3


def test_a_metadata_only_cache_refuses_keys():
    cache = PagedKvCache(small_config(), CAPACITY, allocate_storage=False)
    cache.append_metadata(0, 1)
    for call in (
        lambda: cache.append_tokens(0, K, V),
        lambda: cache.append_token(0, K[0], V[0]),
        lambda: cache.append_step([0], K[:1], V[:1]),
        lambda: cache.copy_keys(0),
        lambda: cache.copy_values(0),
    ):
        with pytest.raises(StorageUnavailable):
            call()
    assert cache.num_tokens(0) == 1
    cache.check_integrity()


def test_offsets_beyond_two_billion_elements_do_not_wrap():
    config = small_config(num_heads=8, num_kv_heads=8, head_dim=128, page_size=64)
    cache = PagedKvCache(config, 1 << 20, allocate_storage=False)
    cache.append_metadata(0, 1)
    page_id = cache.request_pages(0)[0]
    assert page_id == (1 << 20) - 1
    assert cache.page(page_id).offset == ((1 << 20) - 1) * 8 * 64 * 128


def test_the_default_capacity_is_1024_pages():
    cache = PagedKvCache(small_config(), allocate_storage=False)
    assert cache.pool.capacity_pages == 1024
    assert cache.config == small_config()
