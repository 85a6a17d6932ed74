"""check_integrity: whatever is corrupted, the error tells what and how much."""

import numpy as np
import pytest

from numbadsd.errors import IntegrityError
from numbadsd.pages.cache import PagedKvCache
from tests.builders import SUMMARIES, make_cache, small_config

T = 4


def two_requests(**changes):
    """Return a cache of 8 pages; request 0 owns 3 (the last holds 2 tokens), request 1 owns 2."""
    cache, _, _ = make_cache(small_config(**changes), [2 * T + 2, T + 1], capacity_pages=8)
    cache.check_integrity()
    return cache


def table_row(cache, request_id):
    return cache.rows([request_id])[0]


def first_page(cache, request_id):
    return int(cache.request_pages(request_id)[0])


def give_a_page_two_owners(cache):
    cache.table.pages(1)[0] = first_page(cache, 0)


def give_a_page_twice_to_one_owner(cache):
    cache.table.pages(0)[1] = first_page(cache, 0)


def lose_a_page(cache):
    cache.pool.allocate()


def forget_a_request(cache):
    del cache.table._row_of[1]


def free_an_owned_page(cache):
    cache.pool.free(first_page(cache, 1))


def own_a_page_outside_the_pool(cache):
    cache.table.pages(1)[0] = cache.pool.capacity_pages


def own_a_negative_page(cache):
    cache.table.pages(1)[0] = -1


def count_more_tokens_than_pages_hold(cache):
    cache.table.arrays.row_tokens[table_row(cache, 0)] = 3 * T + 1


def count_fewer_tokens_than_stored(cache):
    cache.table.arrays.row_tokens[table_row(cache, 0)] -= 1


def count_no_tokens_below_zero(cache):
    cache.table.arrays.row_tokens[table_row(cache, 1)] = -1


def mark_a_free_page_allocated(cache):
    cache.pool._is_allocated[0] = True


def mark_an_owned_page_free(cache):
    cache.pool._is_allocated[first_page(cache, 0)] = False


def free_list_names_a_page_twice(cache):
    cache.pool._free[1] = cache.pool._free[0]


def free_list_is_one_short(cache):
    cache.pool._num_free -= 1


def two_requests_share_a_row(cache):
    cache.table._row_of[1] = cache.table._row_of[0]


def a_row_in_use_is_free(cache):
    cache.table._free_rows.append(cache.table._row_of[1])


def a_row_names_another_request(cache):
    cache.table.ids[table_row(cache, 1)] = 0


def a_free_row_names_a_request(cache):
    cache.table.ids[cache.table._free_rows[0]] = 7


def a_free_row_holds_a_page(cache):
    cache.table.arrays.page_counts[cache.table._free_rows[-1]] = 1


def a_free_row_holds_tokens(cache):
    cache.table.arrays.row_tokens[cache.table._free_rows[-1]] = 1


CORRUPTIONS = (
    give_a_page_two_owners,
    give_a_page_twice_to_one_owner,
    lose_a_page,
    forget_a_request,
    free_an_owned_page,
    own_a_page_outside_the_pool,
    own_a_negative_page,
    count_more_tokens_than_pages_hold,
    count_fewer_tokens_than_stored,
    count_no_tokens_below_zero,
    mark_a_free_page_allocated,
    mark_an_owned_page_free,
    free_list_names_a_page_twice,
    free_list_is_one_short,
    two_requests_share_a_row,
    a_row_in_use_is_free,
    a_row_names_another_request,
    a_free_row_names_a_request,
    a_free_row_holds_a_page,
    a_free_row_holds_tokens,
)


@pytest.mark.parametrize("corrupt", CORRUPTIONS, ids=lambda corrupt: corrupt.__name__)
def test_a_corrupted_cache_is_explained_with_numbers(corrupt):
    cache = two_requests(summary="minmax")
    corrupt(cache)
    with pytest.raises(IntegrityError, match=r"\d"):
        cache.check_integrity()


@pytest.mark.parametrize("kind", SUMMARIES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_one_wrong_bit_of_a_summary_is_found(kind, dtype):
    cache = two_requests(summary=kind, kv_dtype=dtype)
    page_id = int(cache.request_pages(0)[1])
    cache.summaries[page_id].reshape(-1)[-1:].view(np.uint8)[0] ^= 1
    with pytest.raises(IntegrityError, match=rf"\b{page_id}\b"):
        cache.check_integrity()


def test_a_key_that_changed_behind_the_cache_is_found():
    cache = two_requests()
    page_id = int(cache.request_pages(1)[0])
    cache.pool.key_page(page_id)[1, 2, 3] += 1
    with pytest.raises(IntegrityError, match=rf"\b{page_id}\b"):
        cache.check_integrity()


def test_slots_beyond_the_tail_and_free_pages_may_hold_anything():
    cache = two_requests()
    tail = int(cache.request_pages(0)[-1])
    cache.pool.key_page(tail)[:, 2:] = np.nan
    free = next(p for p in range(8) if not cache.pool.is_allocated(p))
    cache.pool.keys[free] = np.nan
    cache.summaries[free] = 5
    cache.check_integrity()


def test_reserved_pages_are_owned_pages():
    cache = two_requests()
    cache.reserve_pages(1, 2)
    cache.reserve_pages(5, 1)
    cache.check_integrity()
    cache.table.arrays.page_counts[table_row(cache, 5)] = 0
    with pytest.raises(IntegrityError, match=r"\d"):
        cache.check_integrity()


@pytest.mark.parametrize(
    "corrupt",
    [mark_a_free_page_allocated, mark_an_owned_page_free, free_list_names_a_page_twice],
    ids=lambda corrupt: corrupt.__name__,
)
def test_the_pool_alone_finds_its_own_faults(corrupt):
    cache = two_requests()
    corrupt(cache)
    with pytest.raises(IntegrityError, match=r"\d"):
        cache.pool.check_integrity()


def test_a_metadata_only_cache_is_checked_too():
    cache = PagedKvCache(small_config(), 8, allocate_storage=False)
    cache.append_metadata(0, 2 * T)
    cache.append_metadata(1, 1)
    cache.check_integrity()
    give_a_page_two_owners(cache)
    with pytest.raises(IntegrityError, match=r"\d"):
        cache.check_integrity()
