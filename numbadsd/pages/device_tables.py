"""Page tables that live on a device: of each request its page ids and its token count."""

import numpy as np

from numbadsd.errors import IntegrityError
from numbadsd.kernels.cuda.launch import DeviceArray
from numbadsd.kernels.cuda.tables import scatter_numbers
from numbadsd.pages.layout import pages_for
from numbadsd.pages.staging import Staging

_FIRST_ROWS, _FIRST_PAGES = 16, 64


class DeviceTables:
    """A row of page ids and a token count for every request that was decoded.

    Only what changed travels: new page ids and new counts of a batch in one copy, written by one
    kernel. Rows and columns double when they do not suffice; `generation` tells that the memory has
    moved.
    """

    def __init__(self, cache, driver, stream, staging: Staging):
        self._cache, self._driver, self._stream = cache, driver, stream
        self._staging = staging
        self.generation = 0
        self._last: tuple | None = None
        self._rows: dict[int, int] = {}  # of each request
        self._free = list(range(_FIRST_ROWS - 1, -1, -1))
        self._allocate(_FIRST_ROWS, _FIRST_PAGES)

    def _allocate(self, num_rows: int, num_pages: int) -> None:
        """Take memory for tables in which nothing is known."""
        self._memory = self._driver.empty(num_rows * (num_pages + 1), np.int32)
        self._num_rows, self._num_pages = num_rows, num_pages
        self._known_pages = np.zeros(num_rows, np.int64)  # ids that are on the device
        self._known_tokens = np.full(num_rows, -1, np.int64)
        self.generation += 1

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

    def forget(self, request_id: int) -> None:
        """Give the row of a request to another one."""
        row = self._rows.pop(request_id, None)
        if row is not None:
            self._known_pages[row], self._known_tokens[row] = 0, -1
            self._free.append(row)
        self._last = None

    def sync(self, request_ids) -> tuple[np.ndarray, int]:
        """Bring the rows of a batch up to date.

        Returns
        -------
        rows : ndarray [B] int32
            The row of each request.
        max_pages : int
            The most pages of any of them.
        """
        request_ids = list(request_ids)
        key = (self._cache.version, request_ids)
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        tokens = np.array([self._cache.num_tokens(r) for r in request_ids], np.int64)
        max_pages = pages_for(int(tokens.max(initial=0)), self._cache.config.page_size)
        new_rows = sum(request_id not in self._rows for request_id in set(request_ids))
        self._grow(new_rows, max_pages)
        for request_id in request_ids:
            if request_id not in self._rows:
                self._rows[request_id] = self._free.pop()
        rows = np.array([self._rows[r] for r in request_ids], np.int32)
        changed = np.flatnonzero(self._known_tokens[rows] != tokens)
        if changed.size:
            self._send({int(rows[i]): request_ids[i] for i in changed})
        self._last = (key, (rows, max_pages))
        return rows, max_pages

    def _grow(self, new_rows: int, max_pages: int) -> None:
        num_rows, num_pages = self._num_rows, self._num_pages
        while new_rows > len(self._free) + num_rows - self._num_rows:
            num_rows *= 2
        while max_pages > num_pages:
            num_pages *= 2
        if (num_rows, num_pages) != (self._num_rows, self._num_pages):
            self._stream.synchronize()  # the old memory may still be read
            free = [*range(num_rows - 1, self._num_rows - 1, -1), *self._free]
            self._allocate(num_rows, num_pages)
            self._free = free

    def _send(self, requests: dict[int, int]) -> None:
        """Send new page ids and token counts of rows {row: request}."""
        places, numbers, known = [], [], []
        for row, request_id in requests.items():
            first = int(self._known_pages[row])
            page_ids = self._cache.request_pages(request_id)
            self._check(request_id, page_ids)
            tokens = self._cache.num_tokens(request_id)
            places.append(row * self._num_pages + np.arange(first, page_ids.size))
            places.append(np.array([self._num_rows * self._num_pages + row]))
            numbers += [page_ids[first:], np.array([tokens])]
            known.append((row, page_ids.size, tokens))
        sent = self._staging.send(
            np.concatenate(places).astype(np.int64), np.concatenate(numbers).astype(np.int32)
        )
        scatter_numbers(self._memory, *sent, stream=self._stream)
        for row, num_pages, tokens in known:  # a fault above leaves them to be sent again
            self._known_pages[row], self._known_tokens[row] = num_pages, tokens

    def _check(self, request_id: int, page_ids: np.ndarray) -> None:
        capacity = self._cache.pool.capacity_pages
        outside = page_ids[(page_ids < 0) | (page_ids >= capacity)]
        if outside.size:
            raise IntegrityError(
                f"the page table of request {request_id} points outside the pool: {outside[:8]} "
                f"of pages 0 .. {capacity - 1}"
            )
