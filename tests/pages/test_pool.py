"""PagePool: who owns which page id."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from numbadsd.errors import PageStateError, PoolExhausted, StorageUnavailable
from numbadsd.pages.pool import PagePool

CAPACITY = 6


def make_pool(capacity_pages=CAPACITY, **options):
    return PagePool(capacity_pages, num_kv_heads=2, page_size=4, head_dim=16, **options)


def owners(pool):
    return [pool.is_allocated(page_id) for page_id in range(pool.capacity_pages)]


def drain(pool):
    """Allocate every free page; the order tells the state of the free list."""
    return [pool.allocate() for _ in range(pool.num_free_pages)]


def test_the_first_ids_come_from_the_end():
    pool = make_pool()
    assert [pool.allocate() for _ in range(3)] == [5, 4, 3]
    assert pool.num_free_pages == 3
    assert owners(pool) == [False] * 3 + [True] * 3


def test_the_page_freed_last_is_allocated_first():
    pool = make_pool()
    drain(pool)
    for page_id in (2, 5, 0):
        pool.free(page_id)
    assert drain(pool) == [0, 5, 2]


def test_many_pages_come_ascending():
    pool = make_pool()
    page_ids = pool.allocate_many(4)
    assert page_ids.dtype == np.int32
    assert page_ids.tolist() == [2, 3, 4, 5]
    assert pool.allocate_many(0).tolist() == []
    assert drain(pool) == [1, 0]


def test_many_pages_are_sorted_whatever_order_they_were_freed_in():
    pool = make_pool()
    drain(pool)
    for page_id in (1, 4, 0, 3):
        pool.free(page_id)
    assert pool.allocate_many(3).tolist() == [0, 3, 4]
    assert pool.allocate() == 1


@pytest.mark.parametrize(
    "kv_dtype, dtype",
    [("float32", np.float32), ("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)],
)
def test_storage_has_the_documented_layout(kv_dtype, dtype):
    pool = make_pool(kv_dtype=kv_dtype)
    for storage in (pool.keys, pool.values):
        assert storage.shape == (CAPACITY, 2, 4, 16)
        assert storage.dtype == dtype
        assert storage.flags.c_contiguous
    assert not np.shares_memory(pool.keys, pool.values)


def test_a_page_is_a_view_of_the_pool():
    pool = make_pool()
    page_id = pool.allocate()
    pool.key_page(page_id)[1, 2, 3] = 7
    pool.value_page(page_id)[0, 1, 2] = 8
    assert pool.keys[page_id, 1, 2, 3] == 7
    assert pool.values[page_id, 0, 1, 2] == 8
    assert pool.key_page(page_id).shape == (2, 4, 16)


def test_a_free_page_is_not_shown():
    pool = make_pool()
    page_id = pool.allocate()
    pool.free(page_id)
    for access in (pool.key_page, pool.value_page):
        with pytest.raises(PageStateError, match=str(page_id)):
            access(page_id)


@pytest.mark.parametrize("page_id", [-1, CAPACITY, 2**31, 1.5, None])
@pytest.mark.parametrize("access", ["free", "key_page", "value_page", "is_allocated"])
def test_an_id_outside_the_pool_is_a_value_error(access, page_id):
    pool = make_pool()
    drain(pool)
    with pytest.raises(ValueError):
        getattr(pool, access)(page_id)
    assert pool.num_free_pages == 0


def test_an_exhausted_pool_says_the_numbers():
    pool = make_pool()
    drain(pool)
    with pytest.raises(PoolExhausted) as caught:
        pool.allocate()
    error = caught.value
    assert (error.needed_pages, error.free_pages, error.capacity_pages) == (1, 0, CAPACITY)


def test_too_many_pages_at_once_take_none():
    pool = make_pool()
    pool.allocate()
    with pytest.raises(PoolExhausted) as caught:
        pool.allocate_many(CAPACITY)
    assert (caught.value.needed_pages, caught.value.free_pages) == (CAPACITY, CAPACITY - 1)
    pool.check_integrity()
    assert drain(pool) == [4, 3, 2, 1, 0]


def test_a_question_takes_no_page():
    pool = make_pool()
    assert pool.check_free(CAPACITY) == CAPACITY
    with pytest.raises(PoolExhausted):
        pool.check_free(CAPACITY + 1)
    mask = pool.allocated_mask()
    mask[:] = True  # the caller's own
    assert owners(pool) == [False] * CAPACITY
    pool.allocate()
    assert pool.allocated_mask().tolist() == owners(pool)


def test_the_error_names_the_page_that_is_freed_twice():
    pool = make_pool()
    drain(pool)
    with pytest.raises(PageStateError, match="page 2 is freed twice"):
        pool.free_many(np.array([4, 2, 5, 2], np.int32))
    assert pool.num_free_pages == 0


@pytest.mark.parametrize("count", [-1, 1.5, None])
def test_a_count_that_is_no_count_is_a_value_error(count):
    pool = make_pool()
    with pytest.raises(ValueError):
        pool.allocate_many(count)
    assert pool.num_free_pages == CAPACITY


def test_a_page_freed_twice_is_refused():
    pool = make_pool()
    page_id = pool.allocate()
    pool.free(page_id)
    with pytest.raises(PageStateError, match=str(page_id)):
        pool.free(page_id)
    pool.check_integrity()
    assert drain(pool) == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize(
    "page_ids, error",
    [
        ([5, 4, 5], PageStateError),
        ([5, 0], PageStateError),
        ([5, -1], ValueError),
        ([4, CAPACITY], ValueError),
    ],
)
def test_a_bad_list_frees_nothing(page_ids, error):
    pool = make_pool()
    taken = [pool.allocate(), pool.allocate()]
    with pytest.raises(error):
        pool.free_many(page_ids)
    assert all(pool.is_allocated(page_id) for page_id in taken)
    pool.check_integrity()
    assert drain(pool) == [3, 2, 1, 0]


def test_many_pages_are_freed_at_once():
    pool = make_pool()
    pool.free_many(pool.allocate_many(4))
    pool.free_many([])
    assert pool.num_free_pages == CAPACITY
    assert sorted(drain(pool)) == list(range(CAPACITY))


def test_reset_restores_the_first_state():
    pool = make_pool()
    page_ids = drain(pool)
    pool.free_many(page_ids[1:4])
    pool.reset()
    assert owners(pool) == [False] * CAPACITY
    assert drain(pool) == [5, 4, 3, 2, 1, 0]


def test_a_metadata_only_pool_counts_but_stores_nothing():
    pool = make_pool(allocate_storage=False)
    page_id = pool.allocate()
    for access in (
        lambda: pool.keys,
        lambda: pool.values,
        lambda: pool.key_page(page_id),
        lambda: pool.value_page(page_id),
    ):
        with pytest.raises(StorageUnavailable):
            access()
    pool.free(page_id)
    pool.check_integrity()


@pytest.mark.parametrize(
    "changes",
    [
        {"capacity_pages": 0},
        {"capacity_pages": -1},
        {"num_kv_heads": 0},
        {"page_size": 0},
        {"head_dim": 0},
        {"kv_dtype": "int8"},
    ],
)
def test_a_wrong_shape_names_the_argument(changes):
    arguments = dict(capacity_pages=4, num_kv_heads=2, page_size=4, head_dim=16) | changes
    with pytest.raises(ValueError, match=next(iter(changes))):
        PagePool(**arguments)


class PoolMachine(RuleBasedStateMachine):
    """A pool against a Python list that is popped and pushed at its end."""

    def __init__(self):
        super().__init__()
        self.pool = make_pool()
        self.free = list(range(CAPACITY))

    @property
    def taken(self):
        return sorted(set(range(CAPACITY)) - set(self.free))

    @rule()
    def allocate(self):
        if self.free:
            assert self.pool.allocate() == self.free.pop()
        else:
            with pytest.raises(PoolExhausted):
                self.pool.allocate()

    @rule(count=st.integers(0, CAPACITY + 1))
    def allocate_many(self, count):
        if count > len(self.free):
            with pytest.raises(PoolExhausted):
                self.pool.allocate_many(count)
            return
        page_ids = self.pool.allocate_many(count).tolist()
        assert page_ids == sorted(self.free[len(self.free) - count :])
        del self.free[len(self.free) - count :]

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def free_one(self, data):
        page_id = data.draw(st.sampled_from(self.taken))
        self.pool.free(page_id)
        self.free.append(page_id)

    @rule(page_ids=st.lists(st.integers(-1, CAPACITY), max_size=4))
    def free_some(self, page_ids):
        outside = any(not 0 <= page_id < CAPACITY for page_id in page_ids)
        twice = len(set(page_ids)) < len(page_ids) or not set(page_ids) <= set(self.taken)
        if outside or twice:
            with pytest.raises(
                ValueError if outside and not twice else (ValueError, PageStateError)
            ):
                self.pool.free_many(page_ids)
            return
        self.pool.free_many(page_ids)
        self.free.extend(page_ids)
        if page_ids:  # which of them is on top is not specified: take them off and put them back
            back = self.pool.allocate_many(len(page_ids)).tolist()
            assert back == sorted(page_ids)
            for page_id in page_ids:
                self.pool.free(page_id)

    @rule()
    def free_a_free_page(self):
        if self.free:
            with pytest.raises(PageStateError):
                self.pool.free(self.free[0])

    @rule()
    def reset(self):
        self.pool.reset()
        self.free = list(range(CAPACITY))

    @invariant()
    def agrees_with_the_model(self):
        self.pool.check_integrity()
        assert self.pool.num_free_pages == len(self.free)
        assert [p for p in range(CAPACITY) if self.pool.is_allocated(p)] == self.taken


TestPoolMachine = PoolMachine.TestCase
