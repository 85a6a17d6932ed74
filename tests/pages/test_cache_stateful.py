"""PagedKvCache against dicts of plain lists, over random sequences of operations."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from numbadsd.config import KV_DTYPES
from numbadsd.errors import PoolExhausted
from numbadsd.pages import tables
from numbadsd.pages.cache import PagedKvCache
from tests.builders import SUMMARIES, small_config

CAPACITY = 7
T = 3  # not a power of two: slots and pages must be divided, never masked
IDS = st.integers(0, 3)


class CacheMachine(RuleBasedStateMachine):
    """tokens: request -> list of (key, value) rows; owned: request -> pages it holds."""

    def __init__(self):
        super().__init__()
        self.tokens, self.owned, self.serial = {}, {}, 0
        sizes = mock.patch.multiple(tables, _FIRST_ROWS=1, _FIRST_PAGES=1)  # they have to grow
        sizes.start()
        self.stop = sizes.stop

    def teardown(self):
        self.stop()

    @initialize(
        summary=st.sampled_from(SUMMARIES), kv_dtype=st.sampled_from(["float32", "float16"])
    )
    def start(self, summary, kv_dtype):
        config = small_config(summary=summary, kv_dtype=kv_dtype, page_size=T)
        self.cache = PagedKvCache(config, CAPACITY)
        self.dtype = KV_DTYPES[kv_dtype]

    @property
    def free(self):
        return CAPACITY - sum(self.owned.values())

    def rows(self, count):
        """Return fresh keys and values; no two rows of a run are equal."""
        self.serial += count
        rng = np.random.default_rng(self.serial)
        return rng.standard_normal((2, count, 2, 16)).astype(np.float32)

    def missing(self, request_id, count):
        """Return how many pages a request needs to take `count` more tokens."""
        pages = -(-(len(self.tokens.get(request_id, [])) + count) // T)
        return max(0, pages - self.owned.get(request_id, 0))

    def store(self, request_id, keys, values):
        stored = [a.astype(self.dtype).astype(np.float32) for a in (keys, values)]
        missing = self.missing(request_id, len(keys))
        self.tokens.setdefault(request_id, []).extend(zip(*stored, strict=True))
        self.owned[request_id] = self.owned.get(request_id, 0) + missing

    @rule(request_id=IDS, count=st.integers(0, 2 * T + 1))
    def append_tokens(self, request_id, count):
        keys, values = self.rows(count)
        if self.missing(request_id, count) > self.free:
            with pytest.raises(PoolExhausted):
                self.cache.append_tokens(request_id, keys, values)
        else:
            self.cache.append_tokens(request_id, keys, values)
            self.store(request_id, keys, values)

    @rule(request_id=IDS, force=st.booleans())
    def append_token(self, request_id, force):
        keys, values = self.rows(1)
        partial = len(self.tokens.get(request_id, [])) % T != 0
        call = (request_id, keys[0], values[0], force)
        if force and partial:
            with pytest.raises(ValueError):
                self.cache.append_token(*call)
        elif self.missing(request_id, 1) > self.free:
            with pytest.raises(PoolExhausted):
                self.cache.append_token(*call)
        else:
            appended = self.cache.append_token(*call)
            assert appended.new_page == (not partial)
            assert appended.slot == len(self.tokens.get(request_id, [])) % T
            assert appended.page_id == self.cache.request_pages(request_id)[-1]
            self.store(request_id, keys, values)

    @rule(request_id=IDS, count=st.integers(0, T + 1))
    def append_page(self, request_id, count):
        keys, values = self.rows(count)
        partial = len(self.tokens.get(request_id, [])) % T != 0
        if partial or not 1 <= count <= T:
            with pytest.raises(ValueError):
                self.cache.append_page(request_id, keys, values)
        elif self.missing(request_id, count) > self.free:
            with pytest.raises(PoolExhausted):
                self.cache.append_page(request_id, keys, values)
        else:
            page_id = self.cache.append_page(request_id, keys, values)
            assert page_id == self.cache.request_pages(request_id)[-1]
            self.store(request_id, keys, values)

    @rule(request_ids=st.lists(IDS, max_size=4))
    def append_step(self, request_ids):
        keys, values = self.rows(len(request_ids))
        wrong = len(set(request_ids)) < len(request_ids) or not set(request_ids) <= set(self.tokens)
        if wrong:
            with pytest.raises(ValueError):
                self.cache.append_step(request_ids, keys, values)
        elif sum(self.missing(r, 1) for r in request_ids) > self.free:
            with pytest.raises(PoolExhausted):
                self.cache.append_step(request_ids, keys, values)
        else:
            self.cache.append_step(request_ids, keys, values)
            for row, request_id in enumerate(request_ids):
                self.store(request_id, keys[row : row + 1], values[row : row + 1])

    @rule(request_id=IDS, count=st.integers(0, 3))
    def reserve_pages(self, request_id, count):
        if count > self.free:
            with pytest.raises(PoolExhausted):
                self.cache.reserve_pages(request_id, count)
            return
        reserved = list(self.cache.reserve_pages(request_id, count))
        assert len(reserved) == count and reserved == sorted(reserved)
        self.tokens.setdefault(request_id, [])
        self.owned[request_id] = self.owned.get(request_id, 0) + count

    @rule(request_id=IDS, count=st.integers(0, 2 * T))
    def reserve_tokens(self, request_id, count):
        missing = self.missing(request_id, count)
        if missing > self.free:
            with pytest.raises(PoolExhausted):
                self.cache.reserve_tokens(request_id, count)
            return
        reserved = list(self.cache.reserve_tokens(request_id, count))
        assert len(reserved) == missing and reserved == sorted(reserved)
        assert not self.cache.reserve_tokens(request_id, count).size
        self.tokens.setdefault(request_id, [])
        self.owned[request_id] = self.owned.get(request_id, 0) + missing

    @rule(request_ids=st.lists(IDS, max_size=3))
    def release_many(self, request_ids):
        if len(set(request_ids)) < len(request_ids) or not set(request_ids) <= set(self.tokens):
            with pytest.raises(ValueError):
                self.cache.release_many(request_ids)
            return
        pages = sum(self.owned.pop(request_id) for request_id in request_ids)
        assert self.cache.release_many(request_ids) == pages
        for request_id in request_ids:
            del self.tokens[request_id]

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def release_request(self, data):
        request_id = data.draw(st.sampled_from(sorted(self.tokens)))
        assert self.cache.release_request(request_id) == self.owned.pop(request_id)
        del self.tokens[request_id]
        with pytest.raises(ValueError):
            self.cache.release_request(request_id)

    @rule()
    def reset(self):
        self.cache.reset()
        self.tokens, self.owned = {}, {}

    @invariant()
    def agrees_with_the_model(self):
        cache = self.cache
        cache.check_integrity()
        assert sorted(cache.request_ids) == sorted(self.tokens)
        assert cache.pool.num_free_pages == self.free
        for request_id, tokens in self.tokens.items():
            assert cache.num_tokens(request_id) == len(tokens)
            shape = (len(tokens), 2, 16)
            keys = np.array([k for k, _ in tokens], np.float32).reshape(shape)
            values = np.array([v for _, v in tokens], np.float32).reshape(shape)
            np.testing.assert_array_equal(cache.copy_keys(request_id), keys)
            np.testing.assert_array_equal(cache.copy_values(request_id), values)

    @invariant()
    def tables_agree_with_the_model(self):
        request_ids = sorted(self.tokens)
        table = self.cache.page_table(request_ids)
        counts = np.array([len(self.tokens[r]) for r in request_ids], np.int64)
        np.testing.assert_array_equal(table.page_counts, -(-counts // T))
        np.testing.assert_array_equal(table.context_tokens(T), counts)
        np.testing.assert_array_equal(self.cache.context_tokens(request_ids), counts)
        assert len(set(self.cache.rows(request_ids).tolist())) == len(request_ids)
        assert len(set(table.page_ids.tolist())) == len(table.page_ids)
        for row, request_id in enumerate(request_ids):
            first, last = table.page_indptr[row : row + 2]
            pages = table.page_ids[first:last].tolist()
            assert pages == self.cache.request_pages(request_id).tolist()
            for index, page_id in enumerate(pages):
                page = self.cache.page(page_id)
                expected = (request_id, index * T, min(T, int(counts[row]) - index * T))
                assert (page.request_id, page.start_token, page.token_count) == expected


CacheMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestCacheMachine = CacheMachine.TestCase
