"""Index arithmetic of pages."""

import numpy as np
import pytest

from numbadsd.pages.layout import run_chunks


@pytest.mark.parametrize(
    ("token_indptr", "max_tokens", "chunks"),
    [
        ([0], 4, []),
        ([0, 1, 2], 100, [(0, 2)]),
        ([0, 3, 7, 11, 12], 5, [(0, 1), (1, 2), (2, 4)]),
        ([0, 16, 32], 4, [(0, 1), (1, 2)]),
        ([0, 0, 0, 5], 3, [(0, 2), (2, 3)]),
    ],
)
def test_chunks_hold_whole_runs_and_as_many_as_fit(token_indptr, max_tokens, chunks):
    assert list(run_chunks(np.array(token_indptr), max_tokens)) == chunks
