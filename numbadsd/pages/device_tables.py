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

    `sync` does it all. Who has a copy of his own to send calls `locate`, puts what `list_changes`
    gives into that copy, and says `mark_sent` when it is on its way.
    """

    def __init__(self, cache, driver, stream, staging: Staging):
        self._cache, self._driver, self._stream = cache, driver, stream
        self._staging = staging
        self.generation = 0
        self._batch = self._rows = np.empty(0, np.int64)  # rows of the batch located last
        self._version, self._max_pages = -1, 0  # of the cache then, and of the batch
        self._is_current = False  # whether the device has that batch, of that version
        self._allocate(_FIRST_ROWS, _FIRST_PAGES)
        self._make_lists(_FIRST_NUMBERS)

    def _allocate(self, num_rows: int, num_pages: int) -> None:
        """Take memory for tables in which nothing is known."""
        self._memory = self._driver.empty(num_rows * (num_pages + 1), np.int32)
        self._num_rows, self._num_pages = num_rows, num_pages
        self._known = KnownRows(*(np.zeros(num_rows, np.int64) for _ in range(3)))
        self.generation += 1
        self._is_current = False

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

    @property
    def numbers(self) -> DeviceArray:
        """Page ids and then tokens of all rows, flat, i32."""
        return self._memory

    def reserve(self, num_rows: int, num_pages: int) -> None:
        """Take memory for so many rows of so many pages: who knows his load grows nothing later."""
        self._grow(num_rows, num_pages)

    def locate(self, request_ids) -> tuple[np.ndarray, int]:
        """Find the rows of a batch, for which the memory has room then.

        Returns
        -------
        rows : ndarray [B] int32
            The row of each request; the same array for the same batch.
        max_pages : int
            The most pages of any of them.
        """
        batch, version = self._cache.rows(request_ids), self._cache.version
        if batch is not self._batch:
            self._batch, self._rows, self._version = batch, batch.astype(np.int32), -1
        if version != self._version:
            tokens = self._cache.table.arrays.row_tokens[batch]
            self._max_pages = pages_for(int(tokens.max(initial=0)), self._cache.config.page_size)
            self._is_current = False
            self._grow(int(batch.max(initial=-1)) + 1, self._max_pages)
            self._version = version
        return self._rows, self._max_pages

    def sync(self, request_ids) -> tuple[np.ndarray, int]:
        """Locate a batch and bring its rows on the device up to date."""
        located = self.locate(request_ids)
        if not self._is_current:
            self._send()
        return located

    def _grow(self, wanted_rows: int, max_pages: int) -> None:
        num_rows, num_pages = self._num_rows, self._num_pages
        while wanted_rows > num_rows:
            num_rows *= 2
        while max_pages > num_pages:
            num_pages *= 2
        if (num_rows, num_pages) != (self._num_rows, self._num_pages):
            self._stream.synchronize()  # the old memory may still be read
            self._allocate(num_rows, num_pages)

    def _send(self) -> None:
        """Send new page ids and token counts of the batch."""
        count = self.list_changes(self._places, self._numbers)
        if count > self._places.size:
            self._make_lists(1 << (count - 1).bit_length())
            self.list_changes(self._places, self._numbers)
        if count:
            sent = self._staging.send(self._places[:count], self._numbers[:count])
            scatter_numbers(self._memory, *sent, stream=self._stream)
        self.mark_sent()

    def list_changes(self, places: np.ndarray, numbers: np.ndarray) -> int:
        """List what the device lacks of the batch: numbers[i] at places[i] of `numbers`.

        Returns how many there are; when they are more than fit, the lists are of no use.
        """
        if self._is_current:
            return 0
        table, pool = self._cache.table, self._cache.pool
        shape = (self._num_rows, self._num_pages, pool.capacity_pages)
        count, faulty_row = list_changes(
            self._batch, table.arrays, table.serials, self._known, self._cache.config.page_size,
            shape, places, numbers,
        )  # fmt: skip
        if faulty_row >= 0:
            self._explain(int(table.ids[faulty_row]))
        return count

    def mark_sent(self) -> None:
        """Note that the device gets what was listed; until then it would be listed again."""
        table, size = self._cache.table, self._cache.config.page_size
        if not self._is_current:
            mark_known(self._batch, table.arrays, table.serials, self._known, size)
            self._is_current = True

    def _explain(self, request_id: int) -> None:
        """Raise IntegrityError for a request with pages that are none of the pool's."""
        page_ids, capacity = self._cache.request_pages(request_id), self._cache.pool.capacity_pages
        outside = page_ids[(page_ids < 0) | (page_ids >= capacity)]
        raise IntegrityError(
            f"the page table of request {request_id} points outside the pool: {outside[:8]} "
            f"of pages 0 .. {capacity - 1}"
        )
