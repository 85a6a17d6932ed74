"""The free pages of a pool, a stack of ids: pages are taken from its end and put back there."""

import numpy as np

from numbadsd.kernels.cpu.busy import timed
from numbadsd.kernels.cpu.jit import kernel


@kernel(parallel=False)
def _take_pages_kernel(num_pages, is_allocated, free, num_free):
    """Take pages from the end of the stack.

    Writes    is_allocated
    Returns   their ids, ascending
    """
    page_ids = np.sort(free[num_free - num_pages : num_free])
    for page in page_ids:
        is_allocated[page] = True
    return page_ids


def take_pages(
    num_pages: int,  # at most num_free
    is_allocated: np.ndarray,  # [N] bool
    free: np.ndarray,  # [N] i32, a stack
    num_free: int,
) -> np.ndarray:
    """Take pages from the free list; return their ids ascending, [num_pages] i32."""
    return _take_pages(num_pages, is_allocated, free, num_free)


@kernel(parallel=False)
def _free_pages_kernel(page_ids, is_allocated, free, num_free):
    """Put allocated pages on the free list, all of them or none.

    Returns   the place of the first id that is no allocated page, -1 where all are
    """
    for i in range(page_ids.size):
        page = page_ids[i]
        if page < 0 or page >= is_allocated.size or not is_allocated[page]:
            for done in range(i):
                is_allocated[page_ids[done]] = True
            return i
        is_allocated[page] = False  # so that the same id again is found
    for i in range(page_ids.size):
        free[num_free + i] = page_ids[i]
    return -1


def free_pages(
    page_ids: np.ndarray,  # [n] i32
    is_allocated: np.ndarray,  # [N] bool
    free: np.ndarray,  # [N] i32, a stack
    num_free: int,
) -> int:
    """Put pages on the free list, all or none; return the place of the first wrong id, or -1."""
    return _free_pages(page_ids, is_allocated, free, num_free)


_take_pages, _free_pages = timed(_take_pages_kernel), timed(_free_pages_kernel)
