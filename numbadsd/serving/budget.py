"""KvBudget: how many pages of KV requests may hold, and who holds them."""

import re
from collections.abc import Callable
from fractions import Fraction

from numbadsd.config import check, check_integer
from numbadsd.errors import PageStateError
from numbadsd.pages.layout import pages_for

AUTO_FRACTION = Fraction(8, 10)  # of what is free; the rest is for everything that is no page
SUFFIXES = {
    "": 1, "K": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30,
}  # fmt: skip
# 18 digits: more bytes than any machine has, and no number that takes long to read
BYTES = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)(K|M|G|Ki|Mi|Gi)|([0-9]{1,18})")
TOKENS = re.compile(r"([0-9]{1,18})tok")
WANT_BUDGET = "auto, unlimited, bytes (123456789, 512M, 1.5Gi) or tokens (20000tok)"


class KvBudget:
    """Pages that requests have reserved, of a fixed number or of any.

    Parameters
    ----------
    capacity_pages : int | None
        Pages that all requests together may hold; None for no limit.
    page_size : int
        Tokens of a page.

    Raises
    ------
    PageStateError
        By `reserve`, `grow` and `release` when a request reserves twice, or holds nothing.
    """

    def __init__(self, capacity_pages: int | None, page_size: int):
        if capacity_pages is not None:
            check_integer("capacity_pages", capacity_pages, 1, 2**63 - 1)
        self.capacity_pages = capacity_pages
        self.page_size = check_integer("page_size", page_size, 1)
        self._held: dict[int, int] = {}
        self._limit = float("inf") if capacity_pages is None else capacity_pages
        self._used = self._peak = 0

    @property
    def used_pages(self) -> int:
        """Pages that requests hold."""
        return self._used

    @property
    def peak_pages(self) -> int:
        """Most pages that were held at once."""
        return self._peak

    @property
    def free_pages(self) -> int | None:
        """Pages that nobody holds; None when there is no limit."""
        return None if self.capacity_pages is None else self.capacity_pages - self._used

    def pages_for(self, tokens: int) -> int:
        """Return the pages that so many tokens of one request need."""
        return pages_for(tokens, self.page_size)

    def could_ever_hold(self, pages: int) -> bool:
        """Return whether one request alone may hold so many pages."""
        return pages <= self._limit

    def held_pages(self, request_id: int) -> int:
        """Return the pages that a request holds; 0 when it holds none."""
        return self._held.get(request_id, 0)

    def reserve(self, request_id: int, pages: int) -> bool:
        """Give a request its first pages; False, and nothing changed, when they are not free."""
        if request_id in self._held:
            raise PageStateError(
                f"request {request_id} reserves again, it holds {self._held[request_id]} pages"
            )
        return self._take(request_id, pages, 0)

    def grow(self, request_id: int, pages: int) -> bool:
        """Give a request more pages; False, and nothing changed, when they are not free."""
        return self._take(request_id, pages, self._holding(request_id))

    def release(self, request_id: int) -> int:
        """Take back all that a request holds; returns how many pages that were."""
        pages = self._holding(request_id)
        del self._held[request_id]
        self._used -= pages
        return pages

    def _holding(self, request_id: int) -> int:
        held = self._held.get(request_id)
        if held is None:
            raise PageStateError(f"request {request_id} holds no pages of the budget")
        return held

    def _take(self, request_id: int, pages: int, held: int) -> bool:
        if pages < 0:
            raise ValueError(f"pages: got {pages}, want at least 0")
        used = self._used + pages
        if used > self._limit:
            return False
        self._held[request_id] = held + pages
        self._used = used
        if used > self._peak:
            self._peak = used
        return True


def parse_kv_budget(
    text: str, token_bytes: int, page_size: int, free_bytes: Callable[[], int]
) -> int | None:
    """Return the pages that ``--kv-budget`` names.

    Parameters
    ----------
    text : str
        ``auto`` (0.8 of the free bytes), ``unlimited``, bytes (with K M G or Ki Mi Gi, then also
        decimals), or tokens with the suffix ``tok``.
    token_bytes, page_size : int
        Bytes that one token takes, and tokens of a page.
    free_bytes : callable
        Returns the free bytes of the device; called for ``auto`` only.

    Returns
    -------
    int | None
        Whole pages, rounded down; None for no limit.

    Raises
    ------
    ValueError
        When the text means nothing, or less than one page.
    """
    if text == "unlimited":
        return None
    in_bytes, in_tokens = BYTES.fullmatch(text), TOKENS.fullmatch(text)
    if text == "auto":
        tokens = int(free_bytes() * AUTO_FRACTION) // token_bytes
    elif in_tokens:
        tokens = int(in_tokens[1])
    else:
        check(in_bytes is not None, "kv_budget", text, WANT_BUDGET)
        tokens = int(Fraction(in_bytes[1] or in_bytes[3]) * SUFFIXES[in_bytes[2] or ""])
        tokens //= token_bytes
    want = f"at least one page: {page_size} tokens of {token_bytes} bytes"
    check(tokens >= page_size, "kv_budget", f"{text} ({max(tokens, 0)} tokens)", want)
    return tokens // page_size
