"""RequestTable: which request has which row, and the rows' page ids and token counts."""

from itertools import repeat

import numpy as np

from numbadsd.config import check
from numbadsd.errors import IntegrityError
from numbadsd.kernels.cpu.tables import PageRows

_FIRST_ROWS, _FIRST_PAGES = 16, 64


class RequestTable:
    """A row for each request, in arrays that grow by doubling; a freed row is given away again.

    Parameters
    ----------
    max_pages : int
        The most pages of a request: those of the pool.

    Attributes
    ----------
    arrays : PageRows
        Page ids, page counts and token counts by row. Fetch it anew after `make_room`.
    ids : ndarray [R] int64
        The request of each row, -1 where it is free.
    serials : ndarray [R] int64
        A new number for each owner of a row, 0 where it is free: a copy of the rows sees by it that
        a row has changed hands.

    Notes
    -----
    A row's memory beyond its pages is never touched, so that one long request among many short ones
    takes addresses and no memory.
    """

    def __init__(self, max_pages: int):
        self._max_pages = max_pages
        self._row_of: dict[int, int] = {}
        self._free_rows: list[int] = []
        self._last_serial = 0
        self._forget_batch()
        self._allocate(0, 0)
        self._move(_FIRST_ROWS, min(_FIRST_PAGES, max_pages))

    # ---- who has which row

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._row_of

    @property
    def request_ids(self) -> list[int]:
        """Every request, in order of arrival."""
        return list(self._row_of)

    def row(self, request_id: int) -> int:
        """Return the row of a request; raises ValueError when it has none."""
        row = self._row_of.get(request_id, -1)
        check(row >= 0, "request_id", request_id, "a request of this cache")
        return row

    def rows(self, request_ids) -> np.ndarray:
        """Return the rows of a batch, [B] int64, read-only.

        It is the same array as long as the batch is the same and no request is removed; with the
        same tuple, finding that out takes no time.
        """
        if request_ids is self._batch_ids:
            return self._batch_rows
        request_ids = tuple(request_ids)
        if request_ids != self._batch_ids:
            found = map(self._row_of.get, request_ids, repeat(-1))
            rows = np.fromiter(found, np.int64, len(request_ids))
            if rows.min(initial=0) < 0:
                self.row(request_ids[int(rows.argmin())])  # raises
            rows.flags.writeable = False
            self._batch_rows = rows
        self._batch_ids = request_ids
        return self._batch_rows

    def _forget_batch(self) -> None:
        """Forget which rows the last batch had."""
        self._batch_ids, self._batch_rows = (), np.empty(0, np.int64)
        self._batch_rows.flags.writeable = False

    def remove(self, request_id: int) -> None:
        """Take the row of a request."""
        row = self._row_of.pop(request_id)
        self.arrays.page_counts[row] = self.arrays.row_tokens[row] = 0
        self.ids[row], self.serials[row] = -1, 0
        self._free_rows.append(row)
        self._forget_batch()

    # ---- what the rows hold

    def counts(self, request_id: int) -> tuple[int, int]:
        """Return (pages, the reserved ones included; tokens) of a request, 0 and 0 without one."""
        row = self._row_of.get(request_id)
        if row is None:
            return 0, 0
        return int(self.arrays.page_counts[row]), int(self.arrays.row_tokens[row])

    def pages(self, request_id: int) -> np.ndarray:
        """Return the pages of a request in logical order, [pages] int32, as a view."""
        row = self.row(request_id)
        return self.arrays.row_pages[row, : self.arrays.page_counts[row]]

    def owner(self, page_id: int) -> tuple[int, int]:
        """Return (request, place in its pages) of a page, (-1, -1) where nobody has it."""
        for request_id in self._row_of:
            for place in np.flatnonzero(self.pages(request_id) == page_id):
                return request_id, int(place)
        return -1, -1

    def extend(self, request_id: int, page_ids: np.ndarray, num_tokens: int) -> None:
        """Give a request, made if it is new, pages and tokens, for which there is room."""
        row = self._row_of.get(request_id)
        if row is None:
            row = self._row_of[request_id] = self._free_rows.pop()
            self._last_serial += 1
            self.ids[row], self.serials[row] = request_id, self._last_serial
        first = self.arrays.page_counts[row]
        self.arrays.row_pages[row, first : first + page_ids.size] = page_ids
        self.arrays.page_counts[row] += page_ids.size
        self.arrays.row_tokens[row] += num_tokens

    # ---- memory

    def make_room(self, num_pages: int, new_requests: int = 0) -> None:
        """Make sure that a row can hold so many pages, and that there are rows to give away."""
        num_rows, num_columns = self.arrays.row_pages.shape
        if num_pages <= num_columns and new_requests <= len(self._free_rows):
            return
        assert num_pages <= self._max_pages
        while new_requests > num_rows - len(self._row_of):
            num_rows *= 2
        while num_pages > num_columns:
            num_columns *= 2
        self._move(num_rows, min(num_columns, self._max_pages))

    def _move(self, num_rows: int, num_columns: int) -> None:
        """Move to new memory of this size; where there is none, nothing is changed."""
        old, old_ids, old_serials, old_rows = self.arrays, self.ids, self.serials, self.ids.size
        self._allocate(num_rows, num_columns)
        self.ids[:old_rows], self.serials[:old_rows] = old_ids, old_serials
        self.arrays.page_counts[:old_rows] = old.page_counts
        self.arrays.row_tokens[:old_rows] = old.row_tokens
        for row in self._row_of.values():
            count = old.page_counts[row]
            self.arrays.row_pages[row, :count] = old.row_pages[row, :count]
        self._free_rows = [*range(num_rows - 1, old_rows - 1, -1), *self._free_rows]

    def _allocate(self, num_rows: int, num_columns: int) -> None:
        """Take memory for rows that are free."""
        row_pages = np.empty((num_rows, num_columns), np.int32)
        ids = np.full(num_rows, -1, np.int64)
        arrays = PageRows(row_pages, *(np.zeros(num_rows, np.int64) for _ in range(3)))
        self.arrays, self.serials, self.ids = arrays, np.zeros(num_rows, np.int64), ids

    def check_integrity(self) -> None:
        """Raise IntegrityError unless every row is free and empty, or has one request."""
        used = np.fromiter(self._row_of.values(), np.int64, len(self._row_of))
        times = np.bincount([*used, *self._free_rows], minlength=self.ids.size)
        is_free = np.ones(self.ids.size, bool)
        is_free[used] = False
        wrong_ids = self.ids != -1
        wrong_ids[used] = self.ids[used] != np.fromiter(self._row_of, np.int64, len(used))
        holds_any = (self.arrays.page_counts != 0) | (self.arrays.row_tokens != 0)
        for problem, rows in (
            ("not exactly once free or of a request", np.flatnonzero(times != 1)),
            ("of another request than they say", np.flatnonzero(wrong_ids)),
            ("free and hold pages or tokens", np.flatnonzero(is_free & holds_any)),
        ):
            if rows.size:
                raise IntegrityError(
                    f"{rows.size} of {times.size} rows of requests are {problem}: first {rows[:8]}"
                )
