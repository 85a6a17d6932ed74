"""RequestTable: rows are given away, taken back, and move to more memory as they are."""

import numpy as np
import pytest

from numbadsd.pages import tables
from numbadsd.pages.tables import RequestTable

MAX_PAGES = 50


@pytest.fixture
def table(monkeypatch):
    """Return a table that has to grow: one row of two pages."""
    monkeypatch.setattr(tables, "_FIRST_ROWS", 1)
    monkeypatch.setattr(tables, "_FIRST_PAGES", 2)
    return RequestTable(MAX_PAGES)


def extend(table, request_id, page_ids, num_tokens=0):
    owned, _ = table.counts(request_id)
    table.make_room(owned + len(page_ids), new_requests=request_id not in table)
    table.extend(request_id, np.array(page_ids, np.int32), num_tokens)


def test_rows_hold_what_they_were_given_while_the_table_grows(table):
    expected = {}
    for request_id in range(20, 0, -1):
        for page_ids in ([request_id], [], [30, request_id + 1], range(request_id)):
            extend(table, request_id, page_ids, 3)
            expected.setdefault(request_id, []).extend(page_ids)
        table.check_integrity()
    assert table.request_ids == list(expected)
    for request_id, page_ids in expected.items():
        assert table.pages(request_id).tolist() == page_ids
        assert table.counts(request_id) == (len(page_ids), 12)
        assert table.ids[table.row(request_id)] == request_id
    assert table.arrays.row_pages.shape == (32, 32)


def test_rows_and_columns_double_and_a_row_holds_no_more_than_the_pool(table):
    shapes = []
    for num_pages, new_requests in ((2, 1), (3, 0), (40, 1), (MAX_PAGES, 2), (1, 9)):
        table.make_room(num_pages, new_requests)
        shapes.append(table.arrays.row_pages.shape)
    assert shapes == [(1, 2), (1, 4), (1, 50), (2, 50), (16, 50)]
    assert RequestTable(1).arrays.row_pages.shape == (1, 1)


def test_a_freed_row_is_given_away_again_empty_and_with_a_new_serial(table):
    for request_id in range(3):
        extend(table, request_id, [request_id, 9], 5)
    row, serials = table.row(1), table.serials.copy()
    table.remove(1)
    assert 1 not in table and table.counts(1) == (0, 0)
    assert table.ids[row] == -1 and table.serials[row] == 0
    table.check_integrity()
    shape = table.arrays.row_pages.shape
    extend(table, 8, [])
    extend(table, 7, [])
    assert row in (table.row(7), table.row(8))
    assert table.pages(7).size == table.pages(8).size == 0
    assert table.arrays.row_pages.shape == shape
    new = {table.serials[table.row(7)], table.serials[table.row(8)]}
    assert len(new) == 2 and not new & set(serials.tolist())


def test_rows_of_a_batch_are_read_from_anything_once(table):
    for request_id in (5, 3, 4):
        extend(table, request_id, [])
    expected = [table.row(3), table.row(5)]
    for batch in ((3, 5), [3, 5], np.array([3, 5]), iter([3, 5]), {3: 0, 5: 0}):
        assert table.rows(batch).tolist() == expected
    assert table.rows(()).size == table.rows([]).size == 0
    with pytest.raises(TypeError):
        table.rows(None)


def test_a_list_that_changes_is_another_batch(table):
    for request_id in (0, 1):
        extend(table, request_id, [])
    batch = [0, 0]
    first = table.rows(batch)
    batch[1] = 1
    assert table.rows(batch).tolist() == [table.row(0), table.row(1)]
    assert first.tolist() == [table.row(0)] * 2


def test_an_unknown_request_is_named_and_the_last_batch_stays(table):
    extend(table, 0, [])
    rows = table.rows((0,))
    for batch in ((0, 8, 9), (8,), [0, "a"], [None]):
        with pytest.raises(ValueError, match="request_id: got (8|'a'|None), want a request"):
            table.rows(batch)
    assert table.rows((0,)) is rows


def test_the_owner_of_a_page_is_found_at_its_place(table):
    extend(table, 4, [7, 3, 9])
    extend(table, 2, [1])
    assert table.owner(9) == (4, 2)
    assert table.owner(1) == (2, 0)
    assert table.owner(0) == (-1, -1)
    table.remove(4)
    assert table.owner(9) == (-1, -1)
