"""What a cache tells a copy of itself that lives elsewhere."""

from typing import Protocol

import numpy as np

from numbadsd.pages.layout import Runs


class PageMirror(Protocol):
    """A copy of a cache that follows it."""

    def on_store(self, keys: np.ndarray, values: np.ndarray, runs: Runs) -> None:
        """Tokens were stored, [tokens, G, D] each."""

    def on_release(self, page_ids: np.ndarray) -> None:
        """Requests were forgotten, their pages are free."""
