"""DeviceTables: the page lists of any batch on the device, and only what changed travels."""

import pytest

from numbadsd.errors import IntegrityError
from numbadsd.kernels.cuda.sim_driver import SimDriver
from numbadsd.pages import device_tables
from tests.pages.checks import assert_tables_equal, make_pool, tokens_for, transfers_of
from tests.pages.late import use_late_streams

T = 4  # page_size of make_pool


def test_only_changed_rows_travel():
    pool = make_pool([9, 5, T - 1])
    sync = pool.tables.sync
    first = transfers_of(pool, lambda: sync([0, 1, 2]))
    assert first == (1, 9 * 8 + 8 + 9 * 4 + 12, 0)  # 6 ids and 3 counts; each array to 16 bytes
    assert transfers_of(pool, lambda: sync([0, 1, 2])) == (0, 0, 0)
    assert transfers_of(pool, lambda: sync([2, 0, 2])) == (0, 0, 0)
    pool.cache.append_tokens(0, *tokens_for(pool, 1))
    assert transfers_of(pool, lambda: sync([1, 2])) == (0, 0, 0)
    assert transfers_of(pool, lambda: sync([0, 1, 2])) == (1, 16 + 16, 0)  # a count
    pool.cache.append_step([0, 2], *tokens_for(pool, 2))
    assert transfers_of(pool, lambda: sync([0, 1, 2])) == (1, 16 + 16, 0)  # two counts
    pool.cache.append_tokens(2, *tokens_for(pool, 1))
    assert transfers_of(pool, lambda: sync([2, 2, 0])) == (1, 16 + 16, 0)  # an id and a count
    assert_tables_equal(pool, [2, 0, 1, 2])


def test_rows_are_those_of_the_cache():
    pool = make_pool([9, 5, 3])
    rows, _ = pool.tables.sync((2, 0))
    assert rows.tolist() == pool.cache.rows((2, 0)).tolist()
    assert_tables_equal(pool, [2, 0])
    pool.cache.release_request(0)
    with pytest.raises(ValueError, match="request_id"):
        pool.tables.sync([0, 1])
    assert_tables_equal(pool, [1, 2])


def test_a_row_that_has_changed_hands_is_sent_whole():
    pool = make_pool([9, 5], capacity_pages=20)
    pool.tables.sync([0, 1])
    (row,) = pool.cache.rows([0])
    pool.cache.reserve_pages(7, 1)  # so that the next one gets other pages
    pool.cache.release_request(0)
    pool.cache.append_tokens(8, *tokens_for(pool, 9))
    assert pool.cache.rows([8]) == row
    pool.stats.reset()
    pool.tables.sync([1])
    assert pool.stats.h2d_calls == 0
    assert transfers_of(pool, lambda: pool.tables.sync([8])) == (1, 4 * 8 + 4 * 4, 0)
    assert_tables_equal(pool, [8, 1])
    pool.cache.release_request(8)
    pool.cache.append_tokens(8, *tokens_for(pool, 9))  # the same request and length
    assert_tables_equal(pool, [1, 8])


def test_a_batch_that_is_the_same_is_found_at_once():
    pool = make_pool([9, 5])
    batch = (1, 0)
    rows, _ = pool.tables.sync(batch)
    assert pool.tables.sync(batch)[0] is rows
    assert pool.tables.sync([1, 0])[0] is rows
    pool.cache.append_step(batch, *tokens_for(pool, 2))
    assert pool.tables.sync(batch)[0].tolist() == rows.tolist()
    assert_tables_equal(pool, batch)


@pytest.mark.parametrize("first_numbers", [1, 3, 100])
def test_a_step_sends_as_many_numbers_as_it_must(monkeypatch, first_numbers):
    monkeypatch.setattr(device_tables, "_FIRST_NUMBERS", first_numbers)
    pool = make_pool([9, 5, 0, 3 * T])
    assert_tables_equal(pool, [3, 2])
    assert_tables_equal(pool, [0, 1, 1, 3])
    pool.cache.append_tokens(2, *tokens_for(pool, 6 * T))
    assert_tables_equal(pool, [2, 1])


def test_tables_grow_with_the_requests_and_with_the_pages(monkeypatch):
    monkeypatch.setattr(device_tables, "_FIRST_ROWS", 2)
    monkeypatch.setattr(device_tables, "_FIRST_PAGES", 2)
    pool = make_pool([T, 5, 2 * T, 1, 3], capacity_pages=40)
    tables, cache = pool.tables, pool.cache
    before = tables.generation
    assert_tables_equal(pool, [0, 1])
    assert tables.generation == before
    assert_tables_equal(pool, [2, 1, 3])  # a third and a fourth row
    assert tables.generation == before + 1 and tables.row_pages.shape == (4, 2)
    cache.append_tokens(1, *tokens_for(pool, 5 * T))  # seven pages
    assert_tables_equal(pool, [1, 0])
    assert tables.generation == before + 2 and tables.row_pages.shape == (4, 8)
    cache.append_tokens(3, *tokens_for(pool, 8 * T))
    assert_tables_equal(pool, [0, 1, 2, 3, 4])  # both at once
    assert tables.generation == before + 3 and tables.row_pages.shape == (8, 16)
    for request_id in (0, 3):
        cache.release_request(request_id)
    for request_id in range(10, 15):
        cache.append_tokens(request_id, *tokens_for(pool, 2))
    assert_tables_equal(pool, cache.request_ids)
    assert tables.generation == before + 3 and tables.row_pages.shape == (8, 16)


def test_tables_grow_when_nobody_reads_the_old_ones(monkeypatch):
    monkeypatch.setattr(device_tables, "_FIRST_ROWS", 1)
    use_late_streams(monkeypatch)
    pool, pending, empty = make_pool([T, 5]), [], SimDriver.empty
    pool.tables.sync([0])

    def watched(self, shape, dtype):
        pending.append(len(pool.stream.pending))
        return empty(self, shape, dtype)

    monkeypatch.setattr(SimDriver, "empty", watched)
    assert pool.stream.pending
    pool.tables.sync([0, 1])
    assert pending == [0]
    assert_tables_equal(pool, [0, 1])


def test_a_page_outside_the_pool_is_found_and_nothing_is_taken_for_known():
    pool = make_pool([9, 5])
    pages = pool.cache.table.pages(1)
    good = pages.copy()
    for bad in (-1, 20):
        pages[0] = bad
        with pytest.raises(IntegrityError, match=rf"request 1 .*outside.*\[{bad}\].*0 .. 19"):
            pool.tables.sync([0, 1])
    pages[:] = good
    assert_tables_equal(pool, [0, 1])


def test_tables_that_find_no_memory_to_grow_stay_as_they_were(monkeypatch):
    monkeypatch.setattr(device_tables, "_FIRST_ROWS", 2)
    pool = make_pool([T, 5, 3, 1])
    assert_tables_equal(pool, [0, 1])

    def no_memory(self, shape, dtype):
        raise OSError("CUDA_ERROR_OUT_OF_MEMORY")

    with monkeypatch.context() as patch:
        patch.setattr(SimDriver, "empty", no_memory)
        with pytest.raises(OSError):
            pool.tables.sync([0, 1, 2])
    assert_tables_equal(pool, [1, 0])
    pool.cache.release_request(0)
    assert_tables_equal(pool, [1, 2])
    assert_tables_equal(pool, [1, 2, 3])
