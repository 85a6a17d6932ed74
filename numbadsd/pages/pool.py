"""PagePool: a fixed number of pages, who is free, and the storage of K and V."""

import numpy as np

from numbadsd.config import KV_DTYPES, check, check_integer
from numbadsd.errors import IntegrityError, PageStateError, PoolExhausted, StorageUnavailable
from numbadsd.kernels.cpu.free_list import free_pages, take_pages


class PagePool:
    """K and V storage of a fixed number of pages with a last-in-first-out free list.

    Parameters
    ----------
    capacity_pages : int
        Pages of the pool, N.
    num_kv_heads, page_size, head_dim : int
        Shape of a page: [G, T, D] in K and in V.
    kv_dtype : {"float32", "float16", "bfloat16"}
        Storage type.
    allocate_storage : bool
        False gives a pool that only counts pages; reading its storage raises StorageUnavailable.

    Notes
    -----
    The free list starts as 0 .. N-1 and is popped from the back: the first pages are N-1, N-2, ...
    """

    def __init__(
        self,
        capacity_pages: int,
        num_kv_heads: int,
        page_size: int,
        head_dim: int,
        kv_dtype: str = "float32",
        allocate_storage: bool = True,
    ):
        for name, value in (
            ("capacity_pages", capacity_pages),
            ("num_kv_heads", num_kv_heads),
            ("page_size", page_size),
            ("head_dim", head_dim),
        ):
            check_integer(name, value, 1)
        check(kv_dtype in KV_DTYPES, "kv_dtype", kv_dtype, "one of " + ", ".join(KV_DTYPES))
        self.capacity_pages = int(capacity_pages)
        self._keys = self._values = None
        if allocate_storage:
            shape = (self.capacity_pages, num_kv_heads, page_size, head_dim)
            self._keys = np.zeros(shape, KV_DTYPES[kv_dtype])
            self._values = np.zeros(shape, KV_DTYPES[kv_dtype])
        self._free = np.empty(self.capacity_pages, np.int32)
        self._is_allocated = np.empty(self.capacity_pages, bool)
        self.reset()

    def reset(self) -> None:
        """Free every page; the free list is as it was at the start."""
        self._free[:] = np.arange(self.capacity_pages)
        self._num_free = self.capacity_pages
        self._is_allocated[:] = False

    @property
    def has_storage(self) -> bool:
        """Whether the pool holds K and V, or only counts pages."""
        return self._keys is not None

    @property
    def keys(self) -> np.ndarray:
        """K of all pages, [N, G, T, D]."""
        return self._storage(self._keys)

    @property
    def values(self) -> np.ndarray:
        """V of all pages, [N, G, T, D]."""
        return self._storage(self._values)

    @staticmethod
    def _storage(array: np.ndarray | None) -> np.ndarray:
        if array is None:
            raise StorageUnavailable("the pool was made with allocate_storage=False")
        return array

    @property
    def num_free_pages(self) -> int:
        """Pages that can be allocated now."""
        return self._num_free

    def is_allocated(self, page_id: int) -> bool:
        """Return whether a page is in use."""
        return bool(self._is_allocated[self._checked(page_id)])

    def allocated_mask(self) -> np.ndarray:
        """Return which pages are in use, [N] bool, as a copy."""
        return self._is_allocated.copy()

    def key_page(self, page_id: int) -> np.ndarray:
        """Return K of an allocated page as a view, [G, T, D]."""
        return self.keys[self._in_use(page_id)]

    def value_page(self, page_id: int) -> np.ndarray:
        """Return V of an allocated page as a view, [G, T, D]."""
        return self.values[self._in_use(page_id)]

    def allocate(self) -> int:
        """Take one page; raises PoolExhausted."""
        return int(self.allocate_many(1)[0])

    def allocate_many(self, num_pages: int) -> np.ndarray:
        """Take pages, all or none; returns their ids ascending, [num_pages] int32."""
        num_pages = self.check_free(num_pages)
        page_ids = take_pages(num_pages, self._is_allocated, self._free, self._num_free)
        self._num_free -= num_pages
        return page_ids

    def check_free(self, num_pages: int) -> int:
        """Return a count of pages, of which so many are free; raises PoolExhausted."""
        num_pages = check_integer("num_pages", num_pages, 0)
        if num_pages > self._num_free:
            raise PoolExhausted(num_pages, self._num_free, self.capacity_pages)
        return num_pages

    def free(self, page_id: int) -> None:
        """Give one page back; raises PageStateError when it is free already."""
        self.free_many([page_id])

    def free_many(self, page_ids: np.ndarray) -> None:
        """Give pages back, all or none; an id may stand in the list once."""
        given = np.asarray(page_ids)
        if given.dtype != np.int32:
            given = np.array([self._checked(page_id) for page_id in page_ids], np.int32)
        wrong = free_pages(given, self._is_allocated, self._free, self._num_free)
        if wrong >= 0:
            self._in_use(page_ids[wrong])  # raises, unless it stands in the list before
            raise PageStateError(f"page {page_ids[wrong]} is freed twice in one call")
        self._num_free += given.size

    def check_integrity(self) -> None:
        """Raise IntegrityError unless every page is exactly once free or allocated."""
        free = self._free[: self._num_free]
        times_free = np.bincount(free, minlength=self.capacity_pages)
        for problem, pages in (
            ("several times in the free list", np.flatnonzero(times_free > 1)),
            ("both free and allocated", np.flatnonzero((times_free > 0) & self._is_allocated)),
            ("lost: neither free nor allocated",
             np.flatnonzero((times_free == 0) & ~self._is_allocated)),
        ):  # fmt: skip
            if pages.size:
                raise IntegrityError(
                    f"{pages.size} of {self.capacity_pages} pages are {problem}: first {pages[:8]}"
                )

    def _checked(self, page_id: int) -> int:
        return check_integer("page_id", page_id, 0, self.capacity_pages - 1)

    def _in_use(self, page_id: int) -> int:
        if not self._is_allocated[self._checked(page_id)]:
            raise PageStateError(f"page {page_id} is free")
        return int(page_id)
