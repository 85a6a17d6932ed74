"""DevicePagePool: K, V, summaries and page tables of a cache on a device."""

import numpy as np

from numbadsd.config import KV_DTYPES, ModelConfig, check, check_integer
from numbadsd.errors import StorageUnavailable
from numbadsd.kernels.cuda.append import append_runs
from numbadsd.kernels.cuda.launch import DeviceArray
from numbadsd.kernels.cuda.prefill import fill_uniform
from numbadsd.kernels.cuda.runtime import get_driver
from numbadsd.kernels.cuda.tables import scatter_numbers
from numbadsd.kernels.shared import KEY, VALUE
from numbadsd.pages.cache import PagedKvCache
from numbadsd.pages.device_append import AppendStep
from numbadsd.pages.device_tables import DeviceTables
from numbadsd.pages.layout import (
    Runs,
    cache_bytes,
    run_chunks,
    runs_of,
    storable_tokens,
    summary_shape,
)
from numbadsd.pages.staging import Staging, TransferStats

CHUNK_BYTES = 16 << 20  # of tokens that are staged or generated at a time
MAX_SEED = 2**32 - 1  # of the tokens that are made here
RESERVE_BYTES = 256 << 20  # tables, workspace, and the driver's own


class DevicePagePool:
    """The pages of a cache on a device, kept current.

    A cache with storage is copied when the pool is made, and followed from then on: appended tokens
    travel in one copy and are written, with their summaries, by one kernel. A cache without storage
    (``allocate_storage=False``) lives on the device only, and the calls below that take tokens
    fill it.

    Parameters
    ----------
    cache : PagedKvCache
        Owner of page lists and, where it has storage, of the tokens.

    Raises
    ------
    ValueError
        When the pages do not fit in the memory of the device; nothing is allocated.
    """

    def __init__(self, cache: PagedKvCache):
        self.cache, self.config = cache, cache.config
        self.driver = get_driver()
        config, num_pages = cache.config, cache.pool.capacity_pages
        check_device_memory(config, num_pages, self.driver.memory_bytes()[0])
        self.stream = self.driver.stream()
        self.stats = TransferStats()
        self._staging = Staging(self.driver, self.stream, self.stats)
        self._token_shape = (config.num_kv_heads, config.head_dim)
        self._append_steps: dict[int, AppendStep] = {}  # by batch
        # K and V of prompts made on the device: kept, so that most neither allocate nor wait
        self._generated = [self.driver.empty((1, *self._token_shape), np.float32) for _ in range(2)]
        shape = (num_pages, config.num_kv_heads, config.page_size, config.head_dim)
        self.keys = self.driver.empty(shape, KV_DTYPES[config.kv_dtype])
        self.values = self.driver.empty(shape, KV_DTYPES[config.kv_dtype])
        self.summaries = self.driver.empty(
            summary_shape(config, num_pages), KV_DTYPES[config.summary_dtype]
        )
        self.page_tokens = self.driver.empty(num_pages, np.int32)  # 0 where a page is free
        self.stream.fill(self.page_tokens, 0)
        self.tables = DeviceTables(cache, self.driver, self.stream, self._staging)
        if cache.pool.has_storage:
            self.upload_pages(np.flatnonzero(self._page_counts()))
        cache.mirrors.append(self)

    # ---- a cache with storage: its pages, and what is appended to it

    def upload_pages(self, page_ids) -> None:
        """Copy pages of the cache; neighbours travel as one span, summaries are made here."""
        page_ids = np.unique(np.asarray(page_ids, np.int32))
        spans = np.split(page_ids, np.flatnonzero(np.diff(page_ids) > 1) + 1)
        for span in spans if page_ids.size else ():
            pages = slice(int(span[0]), int(span[-1]) + 1)
            self._upload(self.keys[pages], self.cache.pool.keys[pages])
            self._upload(self.values[pages], self.cache.pool.values[pages])
        counts = self._page_counts()[page_ids].astype(np.int32)
        self._store_empty(page_ids[counts > 0], counts[counts > 0])

    def _upload(self, target: DeviceArray, source: np.ndarray) -> None:
        self.stream.upload(target, source)
        self.stats.count_h2d(source.nbytes)
        self.stream.synchronize()  # the cache may write its memory again

    def on_store(self, keys: np.ndarray, values: np.ndarray, runs: Runs) -> None:
        """Write tokens, [tokens, G, D] each, that the cache has just stored."""
        self._append(keys, values, runs)

    def on_release(self, page_ids: np.ndarray) -> None:
        """Take note that the cache has freed pages."""
        self.mark_free(page_ids)

    def mark_free(self, page_ids: np.ndarray) -> None:
        """Set the token counts of pages to 0."""
        if len(page_ids):
            places = np.asarray(page_ids, np.int64)
            sent = self._staging.send(places, np.zeros(places.size, np.int32))
            scatter_numbers(self.page_tokens, *sent, stream=self.stream)

    # ---- a cache without storage: tokens that are given to the device only

    def upload_prompt(self, request_id: int, keys: np.ndarray, values: np.ndarray) -> None:
        """Append tokens, [tokens, G, D] each, without a copy in host pages."""
        keys, values = self._storable(keys, values)
        for first, count, runs in self._grow(request_id, len(keys)):
            self._append(keys[first : first + count], values[first : first + count], runs)

    def append_step(self, request_ids, keys: np.ndarray, values: np.ndarray) -> None:
        """Append one token to each of several requests, [B, G, D] each, in one copy."""
        keys, values = self._storable(keys, values, len(request_ids))
        self._append(keys, values, self._grow_step(request_ids))

    def prefill_synthetic(self, request_id: int, num_tokens: int, seed: int) -> None:
        """Append random tokens that are made on the device: those of the uniform workload."""
        check_integer("num_tokens", num_tokens, 0)
        check_integer("seed", seed, 0, MAX_SEED)
        start = self._tokens_of(request_id)
        for first, count, runs in self._grow(request_id, num_tokens):
            positions = np.arange(start + first, start + first + count)
            self._generate(np.full(count, request_id), positions, seed, runs)

    def append_synthetic(self, request_ids, seed: int) -> None:
        """Append one random token, made on the device, to each of several requests."""
        check_integer("seed", seed, 0, MAX_SEED)
        self._check_on_device_only()
        request_ids = tuple(request_ids)
        rows, positions = self.cache.rows(request_ids), self.cache.context_tokens(request_ids)
        runs = self.cache.append_step_metadata(request_ids)
        if request_ids:
            self.tables.locate(request_ids)
            step = self._append_step(len(request_ids), seed)
            step.run(self.cache.table.ids[rows], positions, *runs)

    def _append_step(self, num_requests: int, seed: int) -> AppendStep:
        """Return the step of a batch, made again when the tables have moved."""
        batch = 1 << (num_requests - 1).bit_length()
        step = self._append_steps.get(batch)
        if step is None or (step.seed, step.generation) != (seed, self.tables.generation):
            self.stream.synchronize()  # nobody may have waited for the one that goes
            step = self._append_steps[batch] = AppendStep(self, batch, seed)
        return step

    # ---- to the host

    def download_page(self, page_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return K [G, T, D], V and the summary of a page, as stored."""
        page_id = check_integer("page_id", page_id, 0, self.cache.pool.capacity_pages - 1)
        page = slice(page_id, page_id + 1)
        return tuple(self._download(a[page])[0] for a in (self.keys, self.values, self.summaries))

    def download_metadata(self) -> np.ndarray:
        """Return the tokens of every page on the device, [N] int32; 0 where a page is free."""
        return self._download(self.page_tokens)

    def _download(self, source: DeviceArray) -> np.ndarray:
        target = np.empty(source.shape, source.dtype)
        self.stream.download(target, source)
        self.stats.count_d2h(target.nbytes)
        self.stream.synchronize()
        return target

    # ---- what the calls above share

    def _tokens_of(self, request_id: int) -> int:
        return self.cache.num_tokens(request_id) if request_id in self.cache else 0

    def _page_counts(self) -> np.ndarray:
        """Return the tokens of every page of the cache, [N] int64."""
        counts, size = np.zeros(self.cache.pool.capacity_pages, np.int64), self.config.page_size
        for request_id in self.cache.request_ids:
            pages, tokens = self.cache.request_pages(request_id), self._tokens_of(request_id)
            counts[pages] = np.minimum(size, tokens - np.arange(pages.size) * size)
        return counts

    def _storable(self, keys, values, tokens: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        return storable_tokens(keys, values, (tokens, *self._token_shape))

    def _check_on_device_only(self) -> None:
        if self.cache.pool.has_storage:
            raise StorageUnavailable(
                "tokens of a cache with storage are appended to the cache, which tells the device"
            )

    def _grow(self, request_id: int, num_tokens: int):
        """Count tokens of a request; yield (first, count, runs) of chunks of them."""
        self._check_on_device_only()
        start = self._tokens_of(request_id)
        self.cache.append_metadata(request_id, num_tokens)
        pages = self.cache.request_pages(request_id)
        token_bytes = 2 * 4 * self.config.num_kv_heads * self.config.head_dim
        chunk = max(1, CHUNK_BYTES // token_bytes)
        for first in range(0, num_tokens, chunk):
            count = min(chunk, num_tokens - first)
            yield first, count, runs_of(pages, start + first, count, self.config.page_size)

    def _grow_step(self, request_ids) -> Runs:
        """Count one more token of each request."""
        self._check_on_device_only()
        page_ids, slots = self.cache.append_step_metadata(request_ids)
        return Runs(page_ids, slots, np.arange(len(page_ids) + 1))

    def _append(self, keys: np.ndarray, values: np.ndarray, runs: Runs) -> None:
        """Send tokens and write them: in one copy, but for long prompts."""
        token_bytes = (keys.nbytes + values.nbytes) // max(1, len(keys))
        for first, last in run_chunks(runs.token_indptr, max(1, CHUNK_BYTES // token_bytes)):
            begin, end = runs.token_indptr[first], runs.token_indptr[last]
            part = Runs(
                runs.page_ids[first:last],
                runs.first_slots[first:last],
                runs.token_indptr[first : last + 1] - begin,
            )
            self._append_chunk(keys[begin:end], values[begin:end], part)

    def _append_chunk(self, keys: np.ndarray, values: np.ndarray, runs: Runs) -> None:
        if keys.dtype != self.keys.dtype:  # rounded here: half the bytes travel
            keys, values = keys.astype(self.keys.dtype), values.astype(self.keys.dtype)
        sent = self._staging.send(keys, values, *runs)
        self.store(*sent)

    def _generate(self, request_ids: np.ndarray, positions: np.ndarray, seed: int, runs) -> None:
        """Make random tokens on the device and write them."""
        ids, places, *sent = self._staging.send(
            request_ids.astype(np.int64), positions.astype(np.int64), *runs
        )
        if positions.size > len(self._generated[0]):
            self.stream.synchronize()  # the old memory may still be read
            shape = (positions.size, *self._token_shape)
            self._generated = [self.driver.empty(shape, np.float32) for _ in range(2)]
        tokens = [memory[: positions.size] for memory in self._generated]
        for target, kind in zip(tokens, (KEY, VALUE), strict=True):
            fill_uniform(target, seed, ids, places, kind, stream=self.stream)
        self.store(*tokens, *sent)

    def _store_empty(self, page_ids: np.ndarray, counts: np.ndarray) -> None:
        """Make the summaries and token counts of pages that hold `counts` tokens."""
        no_tokens = np.empty((0, *self._token_shape), self.keys.dtype)
        nothing = np.zeros(page_ids.size + 1, np.int64)
        self.store(*self._staging.send(no_tokens, no_tokens, page_ids, counts, nothing))

    def store(self, keys, values, page_ids, first_slots, token_indptr) -> None:
        """Write tokens that are on the device, as `append_runs` takes them."""
        append_runs(
            keys, values, page_ids, first_slots, token_indptr, self.keys, self.values,
            self.config.summary, self.summaries, stream=self.stream, page_tokens=self.page_tokens,
        )  # fmt: skip


def check_device_memory(config: ModelConfig, num_pages: int, free_bytes: int) -> None:
    """Raise ValueError, with the bytes, when so many pages do not fit on a device."""
    needed = cache_bytes(config, num_pages) + RESERVE_BYTES
    check(
        needed <= free_bytes,
        "capacity_pages",
        num_pages,
        f"pages that fit on the device: these need {needed:,} bytes of {free_bytes:,} free",
    )


def device_pool_of(cache: PagedKvCache) -> DevicePagePool:
    """Return the pool that follows a cache, made if there is none yet."""
    for mirror in cache.mirrors:
        if isinstance(mirror, DevicePagePool):
            return mirror
    return DevicePagePool(cache)
