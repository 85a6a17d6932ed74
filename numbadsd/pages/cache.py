"""PagedKvCache: requests, the pages they own, and summaries that are always current."""

from dataclasses import dataclass

import numpy as np

from numbadsd.config import KV_DTYPES, ModelConfig, check, check_integer
from numbadsd.kernels.cpu.append import append_runs
from numbadsd.pages.descriptors import AppendedToken, PageDescriptor
from numbadsd.pages.integrity import check_ownership, check_summaries
from numbadsd.pages.layout import Runs, as_storable, pages_for, runs_of, summary_shape
from numbadsd.pages.mirror import PageMirror
from numbadsd.pages.pool import PagePool
from numbadsd.types import PageTable

DEFAULT_CAPACITY_PAGES = 1024


@dataclass
class _Sequence:
    """Pages of one request in logical order; those beyond its tokens are reserved."""

    pages: np.ndarray  # [pages] int32
    num_tokens: int = 0


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
        self._sequences: dict[int, _Sequence] = {}
        self.version = 0  # a new one after every change
        self.mirrors: list[PageMirror] = []

    @property
    def request_ids(self) -> list[int]:
        """Requests of the cache, in order of arrival."""
        return list(self._sequences)

    def num_tokens(self, request_id: int) -> int:
        """Return the tokens of a request."""
        return self._sequence(request_id).num_tokens

    def request_pages(self, request_id: int) -> np.ndarray:
        """Return a copy of the pages that hold a request's tokens, in logical order, [P] int32."""
        sequence = self._sequence(request_id)
        return sequence.pages[: self._pages_for(sequence.num_tokens)].copy()

    def page_table(self, request_ids) -> PageTable:
        """Return the page lists of these requests; an id may stand in the list more than once."""
        size, page_indptr, pages, last_page_tokens = self.config.page_size, [0], [], []
        for request_id in request_ids:
            sequence = self._sequences.get(request_id) or self._sequence(request_id)
            count = pages_for(sequence.num_tokens, size)
            page_indptr.append(page_indptr[-1] + count)
            pages.append(sequence.pages[:count])
            last_page_tokens.append(sequence.num_tokens - max(0, count - 1) * size)
        return PageTable(
            np.array(page_indptr, np.int32),
            pages[0].copy() if len(pages) == 1 else np.concatenate((np.empty(0, np.int32), *pages)),
            np.array(last_page_tokens, np.int32),
        )

    def page(self, page_id: int) -> PageDescriptor:
        """Return what a page holds."""
        page_id = check_integer("page_id", page_id, 0, self.pool.capacity_pages - 1)
        offset = page_id * self.config.num_kv_heads * self.config.page_size * self.config.head_dim
        if self.pool.is_allocated(page_id):
            for request_id, sequence in self._sequences.items():
                for index in np.flatnonzero(sequence.pages == page_id):
                    start = int(index) * self.config.page_size
                    count = min(self.config.page_size, max(0, sequence.num_tokens - start))
                    return PageDescriptor(page_id, request_id, start, count, offset)
        return PageDescriptor(page_id, -1, 0, 0, offset)

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

        A page table can describe a partial page at the tail only, so `force_new_page` is refused
        while the tail page has free slots.
        """
        slot = self._tail_tokens(request_id) % self.config.page_size
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
        request_ids = list(request_ids)
        keys, values = self._storable(keys, values, len(request_ids))
        page_ids, slots = self._grow_step(request_ids)
        token_indptr = np.arange(len(request_ids) + 1, dtype=np.int64)
        self._store(keys, values, Runs(page_ids, slots, token_indptr))

    def append_step_metadata(self, request_ids) -> tuple[np.ndarray, np.ndarray]:
        """Count one token of each request without storing it; returns pages and slots, [B] each."""
        self._check_no_storage("append_step_metadata")
        return self._grow_step(list(request_ids))

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
        page_ids = self.pool.allocate_many(num_pages)
        sequence = self._sequences.setdefault(request_id, _Sequence(np.empty(0, np.int32)))
        sequence.pages = np.concatenate((sequence.pages, page_ids))
        return page_ids

    def release_request(self, request_id: int) -> int:
        """Forget a request and free its pages; returns how many."""
        sequence = self._sequence(request_id)
        self.pool.free_many(sequence.pages)
        del self._sequences[request_id]
        self.version += 1
        for mirror in self.mirrors:
            mirror.on_release(request_id, sequence.pages)
        return sequence.pages.size

    def reset(self) -> None:
        """Forget every request and free every page."""
        for request_id in self.request_ids:
            self.release_request(request_id)
        self.pool.reset()

    def check_integrity(self) -> None:
        """Raise IntegrityError, with the numbers, when a page is lost, shared or wrong.

        Checks that every page is either free or owned by one request, that counts agree, and that
        every summary equals a rebuild from the page's keys bit for bit.
        """
        self.pool.check_integrity()
        check_ownership(self.pool, self._sequences, self.config.page_size)
        if self.pool.has_storage:
            check_summaries(self)

    # ---- what the calls above share

    def _pages_for(self, num_tokens: int) -> int:
        return pages_for(num_tokens, self.config.page_size)

    def _check_request_id(self, request_id: int) -> None:
        check_integer("request_id", request_id, 0, 2**63 - 1)

    def _sequence(self, request_id: int) -> _Sequence:
        check(request_id in self._sequences, "request_id", request_id, "a request of this cache")
        return self._sequences[request_id]

    def _tail_tokens(self, request_id: int) -> int:
        """Return the tokens of a request that may not exist yet."""
        sequence = self._sequences.get(request_id)
        return sequence.num_tokens if sequence else 0

    def _check_tail_full(self, request_id: int, argument: str, got: object) -> None:
        tail = self._tail_tokens(request_id) % self.config.page_size
        check(tail == 0, argument, got, f"a full tail page (it holds {tail} tokens)")

    def _storable(self, keys, values, tokens: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        shape = (tokens, self.config.num_kv_heads, self.config.head_dim)
        keys = as_storable("keys", keys, shape)
        values = as_storable("values", values, (len(keys), *shape[1:]))
        check(values.dtype == keys.dtype, "values", str(values.dtype), f"dtype {keys.dtype}")
        self.pool.keys  # noqa: B018 (raises where there is no storage, before anything changes)
        return keys, values

    def _grow(self, request_id: int, num_tokens: int) -> tuple[int, np.ndarray]:
        """Count `num_tokens` more, taking pages as needed; return the first one and all pages."""
        self._check_request_id(request_id)
        sequence = self._sequences.get(request_id) or _Sequence(np.empty(0, np.int32))
        first_token = sequence.num_tokens
        missing = self._pages_for(first_token + num_tokens) - sequence.pages.size
        if missing > 0:
            page_ids = self.pool.allocate_many(missing)
            sequence.pages = np.concatenate((sequence.pages, page_ids))
        sequence.num_tokens += num_tokens
        self._sequences[request_id] = sequence
        self.version += 1
        return first_token, sequence.pages

    def _grow_step(self, request_ids: list) -> tuple[np.ndarray, np.ndarray]:
        """Count one more token of each request, taking pages as needed; return pages and slots."""
        check(len(set(request_ids)) == len(request_ids), "request_ids", request_ids, "each once")
        size = self.config.page_size
        sequences = [self._sequence(request_id) for request_id in request_ids]
        needy = [s for s in sequences if s.num_tokens == s.pages.size * size]
        for sequence, page_id in zip(needy, self.pool.allocate_many(len(needy)), strict=True):
            sequence.pages = np.append(sequence.pages, page_id)
        tokens = np.array([s.num_tokens for s in sequences], np.int64)
        page_ids = [s.pages[s.num_tokens // size] for s in sequences]
        for sequence in sequences:
            sequence.num_tokens += 1
        self.version += 1
        return np.array(page_ids, np.int32), (tokens % size).astype(np.int32)

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
