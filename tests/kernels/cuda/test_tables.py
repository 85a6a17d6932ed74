"""The page table of a step, packed on the device; scattered writes; page ids outside a pool."""

import re

import numpy as np
import pytest

from numbadsd.kernels.cuda.tables import (
    NUM_THREADS,
    count_outside,
    pack_tables,
    scatter_numbers,
)
from tests.device import down, intact, output, stream, up, written
from tests.kernels.cuda.cases import check_packed


def make_tables(tokens, page_size, seed=0):
    """Return page ids and token counts of rows, with ids that mean nothing behind them."""
    row_tokens = np.array(tokens, np.int32)
    most = -(-int(row_tokens.max(initial=1)) // page_size)
    rng = np.random.default_rng(seed)
    return rng.integers(0, 1000, (len(tokens), most + 3)).astype(np.int32), row_tokens


@pytest.mark.parametrize("page_size", [1, 3, 16])
def test_tables_are_packed(page_size):
    t = page_size
    tables = make_tables([0, 1, t, t + 1, 2 * t - 1, 5 * t], t)
    for rows in ([0], [3], [5, 1], [0, 0], [5, 4, 3, 2, 1, 0]):
        check_packed(np.array(rows, np.int32), *tables, t)


def test_a_request_of_more_pages_than_threads_is_packed():
    tables = make_tables([NUM_THREADS * 4 + 3, 5, NUM_THREADS * 4], 4)
    check_packed(np.array([0, 1, 2, 0], np.int32), *tables, 4)


def test_a_batch_of_more_requests_than_threads_is_packed():
    batch = NUM_THREADS + 3
    tables = make_tables(np.random.default_rng(1).integers(0, 9, batch), 4)
    check_packed(np.arange(batch, dtype=np.int32), *tables, 4)


def test_nothing_is_written_behind_the_pages_of_a_batch():
    rows, row_pages = np.array([0], np.int32), np.array([[7, 8, 9]], np.int32)
    table = [output(size, np.int32) for size in (2, 5, 1, 1)] + [output(1, np.int64)]
    tokens = np.array([5], np.int32)
    pack_tables(up(rows), up(row_pages), up(tokens), 4, *table, stream=stream())
    assert all(map(intact, table))
    page_ids = down(table[1])
    assert page_ids[:2].tolist() == [7, 8] and len(np.unique(page_ids[2:])) == 1


def test_an_empty_batch_writes_nothing():
    arrays = [up(np.zeros(shape, np.int32)) for shape in (0, (1, 1), 1, 1, 0, 0, 0)]
    rows, row_pages, row_tokens, *table = arrays
    table.append(up(np.zeros(0, np.int64)))
    pack_tables(rows, row_pages, row_tokens, 4, *table, stream=stream())
    assert down(table[0]).tolist() == [0]


@pytest.mark.parametrize("count", [0, 1, NUM_THREADS - 1, NUM_THREADS, NUM_THREADS + 1])
def test_numbers_are_scattered(count):
    rng = np.random.default_rng(count)
    target = rng.integers(0, 9, (3, 200)).astype(np.int32)
    places = rng.permutation(600)[:count].astype(np.int64)
    numbers = rng.integers(10, 99, count).astype(np.int32)
    on_device = output(target.shape, np.int32)
    stream().upload(on_device, target)
    scatter_numbers(on_device, up(places), up(numbers), stream=stream())
    target.reshape(-1)[places] = numbers
    scatter_numbers(on_device, up(np.full(3, -1)), up(np.zeros(3, np.int32)), stream=stream())
    assert intact(on_device)
    np.testing.assert_array_equal(down(on_device), target)


@pytest.mark.parametrize("count", [0, 1, 5, NUM_THREADS + 40])
def test_page_ids_outside_a_pool_are_counted(count):
    ids = np.random.default_rng(count).integers(-3, 14, count + 2).astype(np.int32)
    indptr = np.array([0, count // 2, count], np.int32)  # what is behind the table is not read
    faults = output(1, np.int32)
    count_outside(up(indptr), up(ids), 10, faults, stream=stream())
    assert written(faults)[0] == np.sum((ids[:count] < 0) | (ids[:count] >= 10))


def int32(*shape):
    """Return int32 zeros on the device."""
    return up(np.zeros(shape, np.int32))


LEGAL = {
    pack_tables: lambda: dict(
        rows=int32(2), row_pages=int32(3, 4), row_tokens=int32(3), page_size=4,
        page_indptr=int32(3), page_ids=int32(8), last_page_tokens=int32(2), page_counts=int32(2),
        context_tokens=up(np.zeros(2, np.int64)),
    ),
    scatter_numbers: lambda: dict(
        target=int32(3, 4), places=up(np.zeros(2, np.int64)), numbers=int32(2)
    ),
    count_outside: lambda: dict(
        page_indptr=int32(2), page_ids=int32(3), num_pages=4, faults=int32(1)
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "function, name, value, message",
    [
        (pack_tables, "rows", np.zeros(2), "rows: got dtype float64, want int32"),
        (
            pack_tables,
            "row_pages",
            np.zeros(3, np.int32),
            "row_pages: got shape (3,), want (any, any)",
        ),
        (pack_tables, "row_tokens", np.zeros(2, np.int32), "row_tokens: got shape (2,), want (3,)"),
        (
            pack_tables,
            "page_indptr",
            np.zeros(2, np.int32),
            "page_indptr: got shape (2,), want (3,)",
        ),
        (pack_tables, "page_ids", np.zeros(8), "page_ids: got dtype float64, want int32"),
        (
            pack_tables,
            "last_page_tokens",
            np.zeros(3, np.int32),
            "last_page_tokens: got shape (3,), want",
        ),
        (pack_tables, "page_counts", np.zeros(2), "page_counts: got dtype float64, want int32"),
        (
            pack_tables,
            "context_tokens",
            np.zeros(2, np.int32),
            "context_tokens: got dtype int32, want int64",
        ),
        (scatter_numbers, "target", np.zeros(9), "target: got dtype float64, want int32"),
        (scatter_numbers, "places", np.zeros(2, np.int32), "places: got dtype int32, want int64"),
        (scatter_numbers, "numbers", np.zeros(3, np.int32), "numbers: got shape (3,), want (2,)"),
        (count_outside, "page_indptr", np.zeros(2), "page_indptr: got dtype float64, want int32"),
        (count_outside, "page_ids", np.zeros(3), "page_ids: got dtype float64, want int32"),
        (count_outside, "faults", np.zeros(2, np.int32), "faults: got shape (2,), want (1,)"),
    ],
)
def test_a_wrong_argument_is_a_value_error(function, name, value, message):
    function(**LEGAL[function](), stream=stream())
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        function(**(LEGAL[function]() | {name: up(value)}), stream=stream())
