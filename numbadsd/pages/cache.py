"""PagedKvCache: requests, the pages they own, and summaries that are always current."""

import numpy as np

from numbadsd.config import KV_DTYPES, ModelConfig, check, check_integer
from numbadsd.kernels.cpu.append import append_runs
from numbadsd.kernels.cpu.tables import grow_step, plan_step, table_of_rows
from numbadsd.pages.descriptors import AppendedToken, PageDescriptor
from numbadsd.pages.integrity import check_ownership, check_summaries
from numbadsd.pages.layout import Runs, pages_for, runs_of, storable_tokens, summary_shape
from numbadsd.pages.mirror import PageMirror
from numbadsd.pages.pool import PagePool
from numbadsd.pages.tables import RequestTable
from numbadsd.types import PageTable

DEFAULT_CAPACITY_PAGES = 1024
_NO_PAGES = np.empty(0, np.int32)


class PagedKvCache:
    """Keys and values of many requests in pages, with one summary per page.

    Parameters
    ----------
    config : ModelConfig
        Shape, storage types, and the kind of summary.
    capacity_pages : int
        Pages of the pool.
    allocate_storage : bool
        False keeps page lists and counts only (for storage that lives elsewhere).

    Notes
    -----
    Every call is all or nothing: one that raises has changed nothing. A tail page is always filled
    before a new page is opened, so that only the last page of a request is ever partial.
    """

    def __init__(
        self,
        config: ModelConfig,
        capacity_pages: int = DEFAULT_CAPACITY_PAGES,
        allocate_storage: bool = True,
    ):
        self.config = config
        self.pool = PagePool(
            capacity_pages,
            config.num_kv_heads,
            config.page_size,
            config.head_dim,
            config.kv_dtype,
            allocate_storage,
        )
        summary_pages = self.pool.capacity_pages if allocate_storage else 0
        self.summaries = np.zeros(
            summary_shape(config, summary_pages), KV_DTYPES[config.summary_dtype]
        )
        self.table = RequestTable(self.pool.capacity_pages)  # who has which pages
        self.version = 0  # a new one after every change
        self.mirrors: list[PageMirror] = []

    @property
    def request_ids(self) -> list[int]:
        """Requests of the cache, in order of arrival."""
        return self.table.request_ids

    def __contains__(self, request_id: int) -> bool:
        return request_id in self.table

    def num_tokens(self, request_id: int) -> int:
        """Return the tokens of a request."""
        return int(self.table.arrays.row_tokens[self.table.row(request_id)])

    def context_tokens(self, request_ids) -> np.ndarray:
        """Return the tokens of each of these requests, [B] int64."""
        return self.table.arrays.row_tokens[self.rows(request_ids)]

    def request_pages(self, request_id: int) -> np.ndarray:
        """Return a copy of the pages that hold a request's tokens, in logical order, [P] int32."""
        pages = self.table.pages(request_id)
        return pages[: pages_for(self.num_tokens(request_id), self.config.page_size)].copy()

    def rows(self, request_ids) -> np.ndarray:
        """Return the rows of these requests in the cache's arrays, [B] int64, read-only.

        As long as no request is released, the same requests give the same array; the same tuple
        gives it at once.
        """
        return self.table.rows(request_ids)

    def page_table(self, request_ids) -> PageTable:
        """Return the page lists of these requests; an id may stand in the list more than once."""
        rows, (row_pages, _, row_tokens, _) = self.rows(request_ids), self.table.arrays
        return PageTable(*table_of_rows(rows, row_pages, row_tokens, self.config.page_size))

    def page(self, page_id: int) -> PageDescriptor:
        """Return what a page holds."""
        page_id = check_integer("page_id", page_id, 0, self.pool.capacity_pages - 1)
        offset = page_id * self.config.num_kv_heads * self.config.page_size * self.config.head_dim
        request_id, place = self.table.owner(page_id)
        if request_id < 0 or not self.pool.is_allocated(page_id):
            return PageDescriptor(page_id, -1, 0, 0, offset)
        start = place * self.config.page_size
        count = min(self.config.page_size, max(0, self.num_tokens(request_id) - start))
        return PageDescriptor(page_id, request_id, start, count, offset)

    def copy_keys(self, request_id: int) -> np.ndarray:
        """Return a request's keys, [tokens, G, D] float32."""
        return self._copy(self.pool.keys, request_id)

    def copy_values(self, request_id: int) -> np.ndarray:
        """Return a request's values, [tokens, G, D] float32."""
        return self._copy(self.pool.values, request_id)

    def append_tokens(self, request_id: int, keys: np.ndarray, values: np.ndarray) -> None:
        """Append tokens to a request, which is made if it is new.

        Parameters
        ----------
        request_id : int
            Any integer >= 0.
        keys, values : ndarray [tokens, G, D]
            Any float dtype; rounded to the storage type. No tokens make an empty request.

        Raises
        ------
        PoolExhausted
            When the pages do not suffice; nothing is changed.
        ValueError
            On a wrong argument; nothing is changed.
        """
        keys, values = self._storable(keys, values)
        first_token, pages = self._grow(request_id, len(keys))
        self._store(keys, values, runs_of(pages, first_token, len(keys), self.config.page_size))

    def append_token(
        self, request_id: int, key: np.ndarray, value: np.ndarray, force_new_page: bool = False
    ) -> AppendedToken:
        """Append one token, [G, D] each; `force_new_page` asks that it opens a page.

        It is refused while the tail page has free slots: no other page may be partial.
        """
        slot = self.table.counts(request_id)[1] % self.config.page_size
        if force_new_page:
            self._check_tail_full(request_id, "force_new_page", True)
        self.append_tokens(request_id, np.asarray(key)[None], np.asarray(value)[None])
        return AppendedToken(int(self.request_pages(request_id)[-1]), slot, slot == 0)

    def append_page(self, request_id: int, keys: np.ndarray, values: np.ndarray) -> int:
        """Append 1 .. page_size tokens as a page of their own; returns its id."""
        size = self.config.page_size
        check(1 <= len(keys) <= size, "keys", f"{len(keys)} tokens", f"1 .. {size} tokens")
        self._check_tail_full(request_id, "append_page", len(keys))
        self.append_tokens(request_id, keys, values)
        return int(self.request_pages(request_id)[-1])

    def append_step(self, request_ids, keys: np.ndarray, values: np.ndarray) -> None:
        """Append one token to each of several requests, [B, G, D] each, all or nothing."""
        request_ids = tuple(request_ids)
        keys, values = self._storable(keys, values, len(request_ids))
        page_ids, slots = self._grow_step(request_ids)
        token_indptr = np.arange(len(request_ids) + 1, dtype=np.int64)
        self._store(keys, values, Runs(page_ids, slots, token_indptr))

    def append_step_metadata(self, request_ids) -> tuple[np.ndarray, np.ndarray]:
        """Count one token of each request without storing it; returns pages and slots, [B] each."""
        self._check_no_storage("append_step_metadata")
        return self._grow_step(tuple(request_ids))

    def append_metadata(self, request_id: int, num_tokens: int) -> None:
        """Count tokens of a request without storing them (storage that lives elsewhere)."""
        check_integer("num_tokens", num_tokens, 0)
        self._check_no_storage("append_metadata")
        self._grow(request_id, num_tokens)

    def reserve_pages(self, request_id: int, num_pages: int) -> np.ndarray:
        """Give a request pages for tokens to come; returns their ids ascending.

        Ascending ids let a prompt travel as runs of consecutive pages.
        """
        self._check_request_id(request_id)
        return self._extend(request_id, num_pages, 0)

    def reserve_tokens(self, request_id: int, num_tokens: int) -> np.ndarray:
        """Reserve what `num_tokens` more tokens lack of pages; returns the new ids ascending."""
        self._check_request_id(request_id)
        num_tokens = check_integer("num_tokens", num_tokens, 0)
        return self.reserve_pages(request_id, self._missing_pages(request_id, num_tokens))

    def release_request(self, request_id: int) -> int:
        """Forget a request and free its pages; returns how many."""
        return self.release_many((request_id,))

    def release_many(self, request_ids) -> int:
        """Forget requests, each given once, and free their pages; returns how many."""
        request_ids = tuple(request_ids)
        if len(set(request_ids)) != len(request_ids):
            check(False, "request_ids", request_ids, "each once")
        pages = [self.table.pages(r).copy() for r in request_ids]
        if not pages:
            return 0
        page_ids = pages[0] if len(pages) == 1 else np.concatenate(pages)
        self.pool.free_many(page_ids)
        for request_id in request_ids:
            self.table.remove(request_id)
        self.version += 1
        for mirror in self.mirrors:
            mirror.on_release(page_ids)
        return page_ids.size

    def reset(self) -> None:
        """Forget every request and free every page."""
        self.release_many(self.request_ids)
        self.pool.reset()

    def check_integrity(self) -> None:
        """Raise IntegrityError, with the numbers, when a page is lost, shared or wrong.

        Checks that every page is either free or owned by one request, that counts agree, and that
        every summary equals a rebuild from the page's keys bit for bit.
        """
        self.pool.check_integrity()
        self.table.check_integrity()
        check_ownership(self.pool, self.table, self.config.page_size)
        if self.pool.has_storage:
            check_summaries(self)

    # ---- what the calls above share

    def _check_request_id(self, request_id: int) -> None:
        check_integer("request_id", request_id, 0, 2**63 - 1)

    def _check_tail_full(self, request_id: int, argument: str, got: object) -> None:
        tail = self.table.counts(request_id)[1] % self.config.page_size
        check(tail == 0, argument, got, f"a full tail page (it holds {tail} tokens)")

    def _storable(self, keys, values, tokens: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        shape = (tokens, self.config.num_kv_heads, self.config.head_dim)
        pair = storable_tokens(keys, values, shape)
        self.pool.keys  # noqa: B018 (raises where there is no storage, before anything changes)
        return pair

    def _grow(self, request_id: int, num_tokens: int) -> tuple[int, np.ndarray]:
        """Count `num_tokens` more, taking pages as needed; return the first one and all pages."""
        self._check_request_id(request_id)
        _, first_token = self.table.counts(request_id)
        missing = self._missing_pages(request_id, num_tokens)
        if missing or request_id not in self.table:
            self._extend(request_id, missing, num_tokens)
        else:  # they were reserved
            self.table.extend(request_id, _NO_PAGES, num_tokens)
        self.version += 1
        return first_token, self.table.pages(request_id)

    def _missing_pages(self, request_id: int, num_tokens: int) -> int:
        """Return how many pages a request lacks for `num_tokens` more."""
        owned_pages, tokens = self.table.counts(request_id)
        return max(0, pages_for(tokens + num_tokens, self.config.page_size) - owned_pages)

    def _extend(self, request_id: int, num_pages: int, num_tokens: int) -> np.ndarray:
        """Give a request, made if it is new, pages and tokens; return the new pages."""
        owned_pages, _ = self.table.counts(request_id)
        self.pool.check_free(num_pages)
        self.table.make_room(owned_pages + num_pages, new_requests=request_id not in self.table)
        page_ids = self.pool.allocate_many(num_pages)  # nothing fails from here on
        self.table.extend(request_id, page_ids, num_tokens)
        return page_ids

    def _grow_step(self, request_ids: tuple) -> tuple[np.ndarray, np.ndarray]:
        """Count one more token of each request, taking pages as needed; return pages and slots."""
        rows, size = self.rows(request_ids), self.config.page_size
        new_pages, most_pages = plan_step(rows, self.table.arrays, size)
        if new_pages < 0:
            check(False, "request_ids", request_ids, "each once")
        page_ids = _NO_PAGES
        if new_pages:
            self.pool.check_free(new_pages)
            self.table.make_room(most_pages)
            page_ids = self.pool.allocate_many(new_pages)  # nothing fails from here on
        self.version += 1
        return grow_step(rows, self.table.arrays, size, page_ids)

    def _check_no_storage(self, call: str) -> None:
        check(not self.pool.has_storage, call, "a cache with storage", "a cache without")

    def _store(self, keys: np.ndarray, values: np.ndarray, runs: Runs) -> None:
        """Write tokens into their pages and renew these pages' summaries."""
        if len(keys):
            append_runs(
                keys, values, *runs,
                self.pool.keys, self.pool.values, self.config.summary, self.summaries,
            )  # fmt: skip
            for mirror in self.mirrors:
                mirror.on_store(keys, values, runs)

    def _copy(self, pool: np.ndarray, request_id: int) -> np.ndarray:
        """Return a request's tokens of K or V, [tokens, G, D] float32."""
        pages = pool[self.request_pages(request_id)]  # [P, G, T, D]
        tokens = pages.transpose(0, 2, 1, 3).reshape(-1, *pool.shape[1:4:2])
        return tokens[: self.num_tokens(request_id)].astype(np.float32)
