"""A device pool against its cache, over random sequences of operations."""

from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from numbadsd.errors import PoolExhausted
from numbadsd.pages import device_tables
from numbadsd.pages.cache import PagedKvCache
from numbadsd.pages.device import DevicePagePool
from tests.builders import DTYPES, SUMMARIES, random_tokens, small_config
from tests.pages.checks import assert_device_equals, assert_tables_equal

CAPACITY = 7
T = 3  # not a power of two: slots and pages must be divided, never masked
IDS = st.integers(0, 4)


class DeviceMachine(RuleBasedStateMachine):
    """Every change goes to the cache; tables start so small that they have to grow."""

    def __init__(self):
        super().__init__()
        self.serial = 0
        sizes = mock.patch.multiple(device_tables, _FIRST_ROWS=1, _FIRST_PAGES=1, _FIRST_NUMBERS=1)
        sizes.start()
        self.stop = sizes.stop

    def teardown(self):
        self.stop()

    @initialize(
        summary=st.sampled_from(SUMMARIES),
        kv_dtype=st.sampled_from(DTYPES),
        tokens=st.lists(st.integers(0, 2 * T), max_size=2),
    )
    def start(self, summary, kv_dtype, tokens):
        config = small_config(
            num_heads=1, num_kv_heads=1, page_size=T, summary=summary, kv_dtype=kv_dtype
        )
        self.cache = PagedKvCache(config, CAPACITY)
        for request_id, count in enumerate(tokens):
            self.cache.append_tokens(request_id, *self.rows(count))
        self.pool = DevicePagePool(self.cache)

    def rows(self, count):
        """Return fresh keys and values; no two rows of a run are equal."""
        self.serial += 1
        return random_tokens(self.cache.config, count, self.serial)

    def known(self, request_ids):
        """Return the requests of a drawn list that the cache has, in that order."""
        return [request_id for request_id in request_ids if request_id in self.cache.request_ids]

    @rule(request_id=IDS, count=st.integers(0, 2 * T + 1))
    def append_tokens(self, request_id, count):
        before = self.pool.stats.h2d_calls
        try:
            self.cache.append_tokens(request_id, *self.rows(count))
        except PoolExhausted:
            count = 0
        assert self.pool.stats.h2d_calls == before + (count > 0)

    @rule(request_ids=st.lists(IDS, max_size=4, unique=True))
    def append_step(self, request_ids):
        request_ids = self.known(request_ids)
        before = self.pool.stats.h2d_calls
        try:
            self.cache.append_step(request_ids, *self.rows(len(request_ids)))
        except PoolExhausted:
            request_ids = []
        assert self.pool.stats.h2d_calls == before + (len(request_ids) > 0)

    @rule(request_id=IDS, count=st.integers(0, 2))
    def reserve_pages(self, request_id, count):
        if count <= self.cache.pool.num_free_pages:
            self.cache.reserve_pages(request_id, count)

    @rule(request_id=IDS)
    def release_request(self, request_id):
        for known in self.known([request_id]):
            self.cache.release_request(known)

    @rule()
    def reset(self):
        self.cache.reset()

    @rule(request_ids=st.lists(IDS, max_size=5))
    def sync(self, request_ids):
        assert_tables_equal(self.pool, self.known(request_ids))

    @rule()
    def upload_everything_again(self):
        self.pool.upload_pages(range(CAPACITY))

    @invariant()
    def the_device_holds_what_the_cache_holds(self):
        assert_device_equals(self.pool)


DeviceMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestDeviceMachine = DeviceMachine.TestCase
