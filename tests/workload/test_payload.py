"""Tokens for an engine: the streams of the uniform workload, whoever asks and in any order."""

import numpy as np
import pytest

from numbadsd.config import ModelConfig
from numbadsd.kernels.cpu.prefill import fill_uniform
from numbadsd.kernels.shared import KEY, QUERY, VALUE
from numbadsd.workload.payload import StoredTokens, UniformTokens

CONFIG = ModelConfig(num_heads=4, num_kv_heads=2, head_dim=16)
SEED = 9


def room(num_tokens, **none):
    """Return queries, keys and values, poisoned; of no rows where they are not wanted."""
    counts = {"queries": num_tokens, "keys": num_tokens} | none
    queries = np.full((counts["queries"], 4, 16), np.nan, np.float32)
    keys = np.full((counts["keys"], 2, 16), np.nan, np.float32)
    return queries, keys, keys.copy()


def expected(ids, positions):
    streams = []
    for heads, kind in ((4, QUERY), (2, KEY), (2, VALUE)):
        out = np.empty((len(ids), heads, 16), np.float32)
        fill_uniform(out, SEED, np.array(ids), np.array(positions), kind)
        streams.append(out)
    return streams


IDS, POSITIONS = [0, 2, 1, 0], [5, 9, 4, 6]


def check(tokens, arrays):
    tokens.make(np.array(IDS), np.array(POSITIONS), *arrays)
    for got, want in zip(arrays, expected(IDS, POSITIONS), strict=True):
        np.testing.assert_array_equal(got, want[: len(got)])


@pytest.mark.parametrize("none", [{}, {"queries": 0}, {"keys": 0}])
def test_tokens_are_those_of_the_uniform_workload(none):
    check(UniformTokens(SEED), room(4, **none))


class Counted(UniformTokens):
    calls = 0

    def make(self, *arguments):
        self.calls += 1
        super().make(*arguments)


@pytest.mark.parametrize("none", [{}, {"queries": 0}, {"keys": 0}])
def test_stored_tokens_are_made_once_and_before(none):
    source = Counted(SEED)
    stored = StoredTokens(source, CONFIG, first_positions=[5, 4, 8], counts=[2, 3, 2])
    assert source.calls == 1
    check(stored, room(4, **none))
    assert source.calls == 1
    assert StoredTokens.num_bytes(CONFIG, 7) == 7 * 8 * 16 * 4


@pytest.mark.parametrize("none", [{}, {"queries": 0}, {"keys": 0}])
def test_stored_queries_come_with_keys_and_values_that_are_made_when_asked_for(none):
    source = Counted(SEED)
    stored = StoredTokens(source, CONFIG, [5, 4, 8], [2, 3, 2], queries_only=True)
    check(stored, room(4, **none))
    assert source.calls == (1 if none == {"keys": 0} else 2)
    assert StoredTokens.num_bytes(CONFIG, 7, queries_only=True) == 7 * 4 * 16 * 4
    assert StoredTokens.num_bytes(CONFIG, 7) == 2 * 7 * 4 * 16 * 4


def test_tokens_that_are_not_stored_come_from_the_source():
    source = Counted(SEED)
    stored = StoredTokens(source, CONFIG, first_positions=[5, 4, 20], counts=[2, 3, 2])
    check(stored, room(4))  # request 2 asks for position 9
    assert source.calls == 2
