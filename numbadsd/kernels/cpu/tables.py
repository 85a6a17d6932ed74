"""Page lists of many requests, a row each: one more token of a batch, its CSR table, what is new.

A row's first ceil(tokens / page_size) pages hold tokens; pages beyond those are reserved:

    row_pages  [ 7  3  9  .  . ]     page_counts 3, row_tokens 18, page_size 16:
                 |  |  reserved      the CSR table lists 7 3, with 2 tokens in the last page
                 |  2 tokens
                 16 tokens

Everything here takes nanoseconds a request, so one thread does it.
"""

from typing import NamedTuple

import numpy as np

from numbadsd.kernels.cpu.busy import timed
from numbadsd.kernels.cpu.jit import kernel
from numbadsd.kernels.words import check_array


class PageRows(NamedTuple):
    """Page lists by row.

    Attributes
    ----------
    row_pages : ndarray [R, C] int32
        Page ids in logical order.
    page_counts : ndarray [R] int64
        Pages of each row, the reserved ones included.
    row_tokens : ndarray [R] int64
        Tokens of each row.
    marks : ndarray [R] int64
        Memory in which a kernel finds the rows that stand twice in a batch.
    """

    row_pages: np.ndarray
    page_counts: np.ndarray
    row_tokens: np.ndarray
    marks: np.ndarray


class KnownRows(NamedTuple):
    """What a copy of the rows holds already.

    Attributes
    ----------
    pages, tokens : ndarray [R] int64
        Page ids and tokens of each row that the copy has.
    serials : ndarray [R] int64
        For which owner of the row it has them.
    """

    pages: np.ndarray
    tokens: np.ndarray
    serials: np.ndarray


@kernel(parallel=False)
def _plan_step_kernel(rows, table, page_size):
    """Count the pages that one more token of each row needs.

    Returns   (new pages, most pages of a row afterwards), new pages -1 when a row stands twice
    """
    _, page_counts, row_tokens, marks = table
    needed, most = 0, 0
    for i in range(rows.size):
        row = rows[i]
        marks[row] = i
        count = page_counts[row]
        if row_tokens[row] == count * page_size:
            needed += 1
            count += 1
        most = max(most, count)
    for i in range(rows.size):
        if marks[rows[i]] != i:
            return -1, most
    return needed, most


def plan_step(
    rows: np.ndarray,  # [B] i64
    table: PageRows,
    page_size: int,
) -> tuple[int, int]:
    """Return (pages that one more token of each row needs, most pages of a row afterwards).

    The first is -1 when a row stands twice.
    """
    return _plan_step(rows, table, page_size)


@kernel(parallel=False)
def _grow_step_kernel(rows, table, page_size, new_page_ids, page_ids, slots):
    """Count one more token of each row; full rows take the new pages in turn.

    Writes    page_ids, slots, and what changes in the rows
    """
    row_pages, page_counts, row_tokens, _ = table
    taken = 0
    for i in range(rows.size):
        row = rows[i]
        tokens = row_tokens[row]
        page = tokens // page_size
        if page == page_counts[row]:
            row_pages[row, page] = new_page_ids[taken]
            page_counts[row] += 1
            taken += 1
        page_ids[i] = row_pages[row, page]
        slots[i] = tokens - page * page_size
        row_tokens[row] = tokens + 1


def grow_step(
    rows: np.ndarray,  # [B] i64, distinct
    table: PageRows,  # with room for the new pages
    page_size: int,
    new_page_ids: np.ndarray,  # [n] i32, as many as plan_step counts
) -> tuple[np.ndarray, np.ndarray]:
    """Count one more token of each row; return its page [B] i32 and its slot [B] i32."""
    page_ids, slots = np.empty(rows.size, np.int32), np.empty(rows.size, np.int32)
    _grow_step(rows, table, page_size, new_page_ids, page_ids, slots)
    return page_ids, slots


@kernel(parallel=False)
def _table_of_rows_kernel(rows, row_pages, row_tokens, page_size):
    """Return the CSR table of the rows: it is as long as their tokens need.

    Bytes     reads and writes 4 a page
    """
    page_indptr = np.empty(rows.size + 1, np.int32)
    last_page_tokens = np.empty(rows.size, np.int32)
    page_indptr[0] = 0
    for i in range(rows.size):
        tokens = row_tokens[rows[i]]
        count = (tokens + page_size - 1) // page_size
        page_indptr[i + 1] = page_indptr[i] + count
        last_page_tokens[i] = tokens - max(0, count - 1) * page_size
    page_ids = np.empty(page_indptr[rows.size], np.int32)
    for i in range(rows.size):
        source = row_pages[rows[i]]
        target = page_ids[page_indptr[i] : page_indptr[i + 1]]
        for page in range(target.size):
            target[page] = source[page]
    return page_indptr, page_ids, last_page_tokens


def table_of_rows(
    rows: np.ndarray,  # [B] i64
    row_pages: np.ndarray,  # [R, C] i32
    row_tokens: np.ndarray,  # [R] i64, at most C * page_size each
    page_size: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (page_indptr [B + 1], page_ids, last_page_tokens [B]), i32, of the requests in rows.

    A row may stand in the batch more than once.
    """
    check_array("row_pages", row_pages, (len(row_pages), row_pages.shape[1]), np.int32)
    check_array("row_tokens", row_tokens, row_pages.shape[:1], np.int64)
    return _table_of_rows(rows, row_pages, row_tokens, page_size)


@kernel(parallel=False)
def _list_runs_kernel(page_ids, first_token, num_tokens, page_size):
    """List the parts of an append, one for each page that it writes."""
    first_page = first_token // page_size
    end_page = (first_token + num_tokens + page_size - 1) // page_size
    num_runs = end_page - first_page if num_tokens else 0
    run_pages, first_slots = np.empty(num_runs, np.int32), np.zeros(num_runs, np.int32)
    token_indptr = np.empty(num_runs + 1, np.int64)
    for run in range(num_runs):
        run_pages[run] = page_ids[first_page + run]
        token_indptr[run] = max(0, (first_page + run) * page_size - first_token)
    token_indptr[num_runs] = num_tokens
    if num_runs:
        first_slots[0] = first_token - first_page * page_size
    return run_pages, first_slots, token_indptr


def list_runs(
    page_ids: np.ndarray,  # [P] i32, those of a request in logical order
    first_token: int,
    num_tokens: int,
    page_size: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (page_ids [R] i32, first_slots [R] i32, token_indptr [R + 1] i64) of an append.

    Run r stores the new tokens token_indptr[r] .. token_indptr[r + 1] in its page, from its first
    slot on.
    """
    num_pages = -(-(first_token + num_tokens) // page_size)
    check_array("page_ids", page_ids, (max(num_pages, len(page_ids)),), np.int32)
    return _list_runs(page_ids, first_token, num_tokens, page_size)


_list_runs = timed(_list_runs_kernel)
_plan_step, _grow_step = timed(_plan_step_kernel), timed(_grow_step_kernel)
_table_of_rows = timed(_table_of_rows_kernel)


@kernel(parallel=False)
def _list_changes_kernel(rows, table, serials, known, page_size, shape, places, numbers):
    """List the numbers that a copy lacks, as many as fit.

    Writes    places, numbers
    Returns   (how many there are, the first row with a page outside the pool or -1)
    """
    row_pages, _, row_tokens, marks = table
    num_rows, num_columns, pool_pages = shape
    for i in range(rows.size):
        marks[rows[i]] = i
    end, faulty = 0, -1
    for i in range(rows.size):
        row = rows[i]
        tokens = row_tokens[row]
        is_known = known.serials[row] == serials[row]
        if marks[row] != i or (is_known and known.tokens[row] == tokens):
            continue
        first = known.pages[row] if is_known else 0
        count = (tokens + page_size - 1) // page_size
        fits = end + count - first < places.size
        for page in range(first, count):
            page_id = row_pages[row, page]
            if (page_id < 0 or page_id >= pool_pages) and faulty < 0:
                faulty = row
            if fits:
                places[end + page - first] = row * num_columns + page
                numbers[end + page - first] = page_id
        end += count - first
        if fits:
            places[end] = num_rows * num_columns + row
            numbers[end] = tokens
        end += 1
    return end, faulty


def list_changes(
    rows: np.ndarray,  # [B] i64; a row may stand in it more than once
    table: PageRows,
    serials: np.ndarray,  # [R] i64, the owner of each row
    known: KnownRows,  # of the copy
    page_size: int,
    shape: tuple[int, int, int],  # rows and columns of the copy, pages of the pool
    places: np.ndarray,  # [n] i64 out
    numbers: np.ndarray,  # [n] i32 out
) -> tuple[int, int]:
    """List the numbers that a copy of the rows lacks: of each row new page ids, then its tokens.

    The copy is flat: page ids by row and column, then the tokens of every row. Returns how many
    numbers there are, which may be more than fit (places and numbers are then of no use), and the
    first row that has a page outside the pool, -1 without one.
    """
    check_array("numbers", numbers, places.shape, np.int32)
    return _list_changes_kernel(rows, table, serials, known, page_size, shape, places, numbers)


@kernel(parallel=False)
def _mark_known_kernel(rows, row_tokens, serials, known, page_size):
    """Note what a copy has now."""
    for i in range(rows.size):
        row = rows[i]
        known.pages[row] = (row_tokens[row] + page_size - 1) // page_size
        known.tokens[row] = row_tokens[row]
        known.serials[row] = serials[row]


def mark_known(
    rows: np.ndarray,  # [B] i64
    table: PageRows,
    serials: np.ndarray,  # [R] i64, the owner of each row
    known: KnownRows,  # of the copy, out
    page_size: int,
) -> None:
    """Note that a copy has the page ids and the token counts of these rows."""
    _mark_known_kernel(rows, table.row_tokens, serials, known, page_size)
