"""The free list of a pool, against a Python list."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from numbadsd.kernels.cpu.free_list import free_pages, take_pages

NUM_PAGES = 9


@given(st.lists(st.integers(-4, 4), max_size=12), st.randoms(use_true_random=False))
def test_pages_come_from_the_end_ascending_and_go_back_there(moves, random):
    free = np.arange(NUM_PAGES, dtype=np.int32)
    is_allocated = np.zeros(NUM_PAGES, bool)
    stack, taken = list(range(NUM_PAGES)), []
    for move in moves:
        if move >= 0:
            count = min(move, len(stack))
            page_ids = take_pages(count, is_allocated, free, len(stack))
            assert page_ids.tolist() == sorted(stack[len(stack) - count :])
            assert page_ids.dtype == np.int32
            del stack[len(stack) - count :]
            taken += page_ids.tolist()
        else:
            random.shuffle(taken)
            back = [taken.pop() for _ in range(min(-move, len(taken)))]
            assert free_pages(np.array(back, np.int32), is_allocated, free, len(stack)) == -1
            stack += back
        assert free[: len(stack)].tolist() == stack
        assert np.flatnonzero(is_allocated).tolist() == sorted(taken)


def test_a_wrong_page_is_found_and_nothing_is_freed():
    free, is_allocated = np.arange(4, dtype=np.int32), np.zeros(4, bool)
    page_ids = take_pages(3, is_allocated, free, 4)
    for wrong, place in (([1, 0], 1), ([1, 2, 1], 2), ([-1], 0), ([3, 4], 1)):
        before = is_allocated.copy()
        assert free_pages(np.array(wrong, np.int32), is_allocated, free, 1) == place
        assert (is_allocated == before).all() and page_ids.tolist() == [1, 2, 3]
