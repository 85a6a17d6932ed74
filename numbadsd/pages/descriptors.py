"""What a cache says of a page or of a token that it stored."""

from typing import NamedTuple


class AppendedToken(NamedTuple):
    """Where a token went."""

    page_id: int
    slot: int
    new_page: bool


class PageDescriptor(NamedTuple):
    """What a page holds; `request_id` is -1 and the counts are 0 while it is free."""

    page_id: int
    request_id: int
    start_token: int
    token_count: int
    offset: int  # of the page's first element, in K and in V
