"""Page tables that live on a device: of each request its page ids and its token count."""

import numpy as np

from numbadsd.errors import IntegrityError
from numbadsd.kernels.cpu.tables import KnownRows, list_changes, mark_known
from numbadsd.kernels.cuda.launch import DeviceArray
from numbadsd.kernels.cuda.tables import scatter_numbers
from numbadsd.pages.layout import pages_for
from numbadsd.pages.staging import Staging

_FIRST_ROWS, _FIRST_PAGES = 16, 64
_FIRST_NUMBERS = 1 << 10  # that a step sends


class DeviceTables:
    """The rows of a cache's requests, as far as they were decoded: page ids and token counts.

    Only what changed travels: new page ids and new counts of a batch in one copy, written by one
    kernel. Rows and columns double when they do not suffice; `generation` tells that the memory has
    moved.
    """

    def __init__(self, cache, driver, stream, staging: Staging):
        self._cache, self._driver, self._stream = cache, driver, stream
        self._staging = staging
        self.generation = 0
        self._last = (None, -1, None, 0)  # rows and version of the cache, and what sync returned
        self._allocate(_FIRST_ROWS, _FIRST_PAGES)
        self._make_lists(_FIRST_NUMBERS)

    def _allocate(self, num_rows: int, num_pages: int) -> None:
        """Take memory for tables in which nothing is known."""
        self._memory = self._driver.empty(num_rows * (num_pages + 1), np.int32)
        self._num_rows, self._num_pages = num_rows, num_pages
        self._known = KnownRows(*(np.zeros(num_rows, np.int64) for _ in range(3)))
        self.generation += 1

    def _make_lists(self, size: int) -> None:
        """Take host memory for the numbers that a step sends."""
        self._places, self._numbers = np.empty(size, np.int64), np.empty(size, np.int32)

    @property
    def row_pages(self) -> DeviceArray:
        """Page ids of every row, [R, P] int32."""
        return self._memory[: self._num_rows * self._num_pages].reshape(
            self._num_rows, self._num_pages
        )

    @property
    def row_tokens(self) -> DeviceArray:
        """Tokens of every row, [R] int32."""
        return self._memory[self._num_rows * self._num_pages :]

    def sync(self, request_ids) -> tuple[np.ndarray, int]:
        """Bring the rows of a batch up to date.

        Returns
        -------
        rows : ndarray [B] int32
            The row of each request.
        max_pages : int
            The most pages of any of them.
        """
        cache_rows, version = self._cache.rows(request_ids), self._cache.version
        last_rows, last_version, rows, max_pages = self._last
        if cache_rows is last_rows and version == last_version:
            return rows, max_pages
        tokens = self._cache.table.arrays.row_tokens[cache_rows]
        max_pages = pages_for(int(tokens.max(initial=0)), self._cache.config.page_size)
        self._grow(int(cache_rows.max(initial=-1)) + 1, max_pages)
        self._send(cache_rows)
        rows = cache_rows.astype(np.int32)
        self._last = (cache_rows, version, rows, max_pages)
        return rows, max_pages

    def _grow(self, wanted_rows: int, max_pages: int) -> None:
        num_rows, num_pages = self._num_rows, self._num_pages
        while wanted_rows > num_rows:
            num_rows *= 2
        while max_pages > num_pages:
            num_pages *= 2
        if (num_rows, num_pages) != (self._num_rows, self._num_pages):
            self._stream.synchronize()  # the old memory may still be read
            self._allocate(num_rows, num_pages)

    def _send(self, rows: np.ndarray) -> None:
        """Send new page ids and token counts of rows."""
        table, size = self._cache.table, self._cache.config.page_size
        count, faulty_row = self._list_changes(rows)
        if count > self._places.size:
            self._make_lists(1 << (count - 1).bit_length())
            count, faulty_row = self._list_changes(rows)
        if faulty_row >= 0:
            self._explain(int(table.ids[faulty_row]))
        if count:
            sent = self._staging.send(self._places[:count], self._numbers[:count])
            scatter_numbers(self._memory, *sent, stream=self._stream)
            # a fault above leaves them to be sent again
            mark_known(rows, table.arrays, table.serials, self._known, size)

    def _list_changes(self, rows: np.ndarray) -> tuple[int, int]:
        table, pool = self._cache.table, self._cache.pool
        shape = (self._num_rows, self._num_pages, pool.capacity_pages)
        return list_changes(
            rows, table.arrays, table.serials, self._known, self._cache.config.page_size, shape,
            self._places, self._numbers,
        )  # fmt: skip

    def _explain(self, request_id: int) -> None:
        """Raise IntegrityError for a request with pages that are none of the pool's."""
        page_ids, capacity = self._cache.request_pages(request_id), self._cache.pool.capacity_pages
        outside = page_ids[(page_ids < 0) | (page_ids >= capacity)]
        raise IntegrityError(
            f"the page table of request {request_id} points outside the pool: {outside[:8]} "
            f"of pages 0 .. {capacity - 1}"
        )
