"""Checks that explain, with numbers, what is wrong with a pool or a cache."""

import numpy as np

from numbadsd.errors import IntegrityError
from numbadsd.kernels.cpu.append import summarise_pages
from numbadsd.pages.layout import pages_for


def check_ownership(pool, table, page_size: int) -> None:
    """Raise IntegrityError unless each allocated page has one owner and room for its tokens."""
    owned = [np.empty(0, np.int32)]
    for request_id in table.request_ids:
        pages, (_, num_tokens) = table.pages(request_id), table.counts(request_id)
        outside = pages[(pages < 0) | (pages >= pool.capacity_pages)]
        if num_tokens < 0 or outside.size:
            raise IntegrityError(
                f"request {request_id} has {num_tokens} tokens and {outside.size} pages "
                f"that are not in 0 .. {pool.capacity_pages - 1}: first {outside[:8]}"
            )
        needed = pages_for(num_tokens, page_size)
        if pages.size < needed:
            raise IntegrityError(
                f"request {request_id} has {num_tokens} tokens, which need {needed} pages "
                f"of {page_size}, but owns {pages.size}"
            )
        owned.append(pages)
    owners = np.bincount(np.concatenate(owned), minlength=pool.capacity_pages)
    for problem, pages in (
        ("owned more than once", np.flatnonzero(owners > 1)),
        ("owned but free", np.flatnonzero((owners > 0) & ~pool.allocated_mask())),
    ):
        if pages.size:
            raise IntegrityError(f"{pages.size} pages are {problem}: first {pages[:8]}")
    in_use, owned = pool.capacity_pages - pool.num_free_pages, int((owners > 0).sum())
    if in_use != owned:
        raise IntegrityError(f"{in_use} pages are allocated, {owned} of them have an owner")


def check_summaries(cache) -> None:
    """Raise IntegrityError unless every summary equals a rebuild from its page's keys."""
    size = cache.config.page_size
    for request_id in cache.request_ids:
        pages = cache.request_pages(request_id)
        if not pages.size:
            continue
        page_tokens = np.full(pages.size, size, np.int32)
        page_tokens[-1] = (cache.num_tokens(request_id) - 1) % size + 1
        kept = cache.summaries[pages]
        rebuilt = np.empty_like(kept)
        summarise_pages(cache.pool.keys, pages, page_tokens, cache.config.summary, rebuilt)
        wrong = np.flatnonzero((_page_bytes(kept) != _page_bytes(rebuilt)).any(axis=1))
        if wrong.size:
            raise IntegrityError(
                f"request {request_id}: {wrong.size} of {pages.size} page summaries differ from "
                f"a rebuild: first page {pages[wrong[0]]}"
            )


def _page_bytes(summaries: np.ndarray) -> np.ndarray:
    """Return summaries as bytes, one row a page: compared like this, NaN equals NaN."""
    return summaries.reshape(len(summaries), -1).view(np.uint8)
