"""Kernels over rows of pages, against lists."""

import numpy as np
import pytest

from numbadsd.kernels.cpu.tables import (
    KnownRows,
    PageRows,
    grow_step,
    list_changes,
    list_runs,
    mark_known,
    plan_step,
    table_of_rows,
)

ROWS, COLUMNS, POOL_PAGES = 7, 5, 100


def page_rows(row_tokens, reserved, page_size, seed=0):
    """Return rows of random pages that hold these tokens, with reserved pages behind them."""
    row_tokens = np.array(row_tokens, np.int64)
    page_counts = -(-row_tokens // page_size) + reserved
    row_pages = np.random.default_rng(seed).permutation(POOL_PAGES)[: ROWS * COLUMNS]
    row_pages = row_pages.reshape(ROWS, COLUMNS).astype(np.int32)
    return PageRows(row_pages, page_counts, row_tokens, np.zeros(ROWS, np.int64))


def some_rows(page_size, reserved=0):
    """Return rows of 0, 1, T - 1, T, T + 1, 2 T and 3 T tokens."""
    T = page_size
    return page_rows([0, 1, T - 1, T, T + 1, 2 * T, 3 * T], reserved, T)


@pytest.mark.parametrize("page_size", [1, 3, 16])
@pytest.mark.parametrize("first", [0, 1, 2, 3, 15, 16, 17, 33])
@pytest.mark.parametrize("count", [0, 1, 2, 15, 16, 17, 40])
def test_runs_put_every_token_in_its_slot(first, count, page_size):
    page_ids = np.random.default_rng(1).permutation(100).astype(np.int32)
    run_pages, first_slots, token_indptr = list_runs(page_ids, first, count, page_size)
    assert token_indptr[0] == 0 and token_indptr[-1] == count
    places = [
        (int(page), int(slot) + i)
        for page, slot, start, end in zip(
            run_pages, first_slots, token_indptr[:-1], token_indptr[1:], strict=True
        )
        for i in range(end - start)
    ]
    tokens = range(first, first + count)
    assert places == [(int(page_ids[t // page_size]), t % page_size) for t in tokens]


def test_runs_need_a_page_for_every_token():
    with pytest.raises(ValueError, match="page_ids: got shape"):
        list_runs(np.arange(2, dtype=np.int32), 20, 13, 16)


@pytest.mark.parametrize("page_size", [1, 3, 16])
@pytest.mark.parametrize("rows", [[], [0], [6], [3, 0, 1, 3], list(range(ROWS))])
def test_a_table_lists_the_pages_with_tokens(rows, page_size):
    table = some_rows(page_size, reserved=1)
    page_indptr, page_ids, last = table_of_rows(
        np.array(rows, np.int64), table.row_pages, table.row_tokens, page_size
    )
    counts = [-(-int(table.row_tokens[row]) // page_size) for row in rows]
    assert page_indptr.tolist() == np.cumsum([0, *counts]).tolist()
    expected = [p for row, n in zip(rows, counts, strict=True) for p in table.row_pages[row, :n]]
    assert page_ids.tolist() == expected
    tokens = [int(table.row_tokens[row]) for row in rows]
    assert last.tolist() == [(t - 1) % page_size + 1 if t else 0 for t in tokens]
    assert {a.dtype for a in (page_indptr, page_ids, last)} == {np.dtype(np.int32)}


@pytest.mark.parametrize("page_size", [1, 3, 16])
@pytest.mark.parametrize("reserved", [0, 1])
def test_a_step_fills_the_tail_and_takes_pages_where_it_is_full(reserved, page_size):
    table, rows = some_rows(page_size, reserved), np.array([6, 0, 2, 4, 3], np.int64)
    before = PageRows(*(a.copy() for a in table))
    is_full = [before.row_tokens[r] == before.page_counts[r] * page_size for r in rows]
    count, most = plan_step(rows, table, page_size)
    assert count == sum(is_full) and (count == 0) == bool(reserved)
    assert most == max(before.page_counts[r] + full for r, full in zip(rows, is_full, strict=True))
    new = np.arange(200, 200 + count, dtype=np.int32)
    page_ids, slots = grow_step(rows, table, page_size, new)
    left = iter(new.tolist())
    for row, full, page_id, slot in zip(rows, is_full, page_ids, slots, strict=True):
        page, expected_slot = divmod(int(before.row_tokens[row]), page_size)
        assert page_id == (next(left) if full else before.row_pages[row, page])
        assert table.row_pages[row, page] == page_id and slot == expected_slot
        assert table.page_counts[row] == before.page_counts[row] + full
        assert table.row_tokens[row] == before.row_tokens[row] + 1
    for row in (1, 5):  # not in the batch
        for got, want in zip(table[:3], before[:3], strict=True):
            np.testing.assert_array_equal(got[row], want[row])


@pytest.mark.parametrize("rows", [[0, 0], [1, 2, 3, 1], [5, 4, 4]])
def test_a_step_with_a_row_twice_is_found(rows):
    table = some_rows(4)
    before = [a.copy() for a in table[:3]]
    assert plan_step(np.array(rows, np.int64), table, 4)[0] == -1
    for got, want in zip(table, before, strict=False):
        np.testing.assert_array_equal(got, want)


def nothing_known(num_rows=ROWS):
    return KnownRows(*(np.zeros(num_rows, np.int64) for _ in range(3)))


def send(rows, table, serials, known, copy, size=100):
    """Bring a flat copy of the rows up to date; return how many numbers that took."""
    rows = np.array(rows, np.int64)
    num_rows = len(known.pages)
    shape = (num_rows, copy.size // num_rows - 1, POOL_PAGES)
    places, numbers = np.empty(size, np.int64), np.empty(size, np.int32)
    count, faulty = list_changes(rows, table, serials, known, 4, shape, places, numbers)
    assert faulty == -1
    if count <= size:
        copy[places[:count]] = numbers[:count]
        mark_known(rows, table, serials, known, 4)
    return count


def test_only_what_a_copy_lacks_is_listed():
    table, serials, known = some_rows(4), np.arange(1, ROWS + 1), nothing_known()
    copy = np.full(ROWS * (8 + 1), -7, np.int32)  # more columns than the rows have
    assert send([6, 4, 6], table, serials, known, copy) == (3 + 1) + (2 + 1)
    assert copy[6 * 8 : 6 * 8 + 3].tolist() == table.row_pages[6, :3].tolist()
    assert copy[4 * 8 : 4 * 8 + 2].tolist() == table.row_pages[4, :2].tolist()
    assert copy[ROWS * 8 :].tolist() == [-7] * 4 + [5, -7, 12]
    assert np.count_nonzero(copy != -7) == 7
    assert send([6, 4, 6], table, serials, known, copy) == 0
    table.row_tokens[[4, 6]] += 1
    assert send([4, 5, 6, 4], table, serials, known, copy) == 1 + (2 + 1) + (1 + 1)
    assert copy[6 * 8 + 3] == table.row_pages[6, 3]
    serials[6] = 99  # another owner, and as many tokens
    assert send([4, 6], table, serials, known, copy) == 4 + 1
    assert send([0], table, serials, known, copy) == 1  # an empty row has a count


@pytest.mark.parametrize("size", range(7))
def test_a_list_that_is_too_short_is_not_written_past_its_end(size):
    table, serials, known = some_rows(4), np.ones(ROWS, np.int64), nothing_known()
    places, numbers = np.full(8, -5, np.int64), np.full(8, -5, np.int32)
    rows, shape = np.array([6, 4], np.int64), (ROWS, COLUMNS, POOL_PAGES)
    lists = places[:size], numbers[:size]
    assert list_changes(rows, table, serials, known, 4, shape, *lists) == (7, -1)
    assert np.all(places[size:] == -5) and np.all(numbers[size:] == -5)


@pytest.mark.parametrize("bad", [-1, POOL_PAGES, 2**31 - 1])
def test_a_page_outside_the_pool_is_found_where_it_would_be_read(bad):
    table, serials, known = some_rows(4), np.ones(ROWS, np.int64), nothing_known()
    lists = np.empty(50, np.int64), np.empty(50, np.int32)
    rows, shape = np.array([5, 6, 4], np.int64), (ROWS, COLUMNS, POOL_PAGES)
    table.row_pages[6, 3] = bad  # beyond the tokens
    assert list_changes(rows, table, serials, known, 4, shape, *lists)[1] == -1
    table.row_pages[6, 2] = bad
    assert list_changes(rows, table, serials, known, 4, shape, *lists)[1] == 6
    lists = np.empty(0, np.int64), np.empty(0, np.int32)
    assert list_changes(rows, table, serials, known, 4, shape, *lists)[1] == 6
