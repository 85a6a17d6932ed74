"""Synthetic tokens from a counter-based generator: no state, the same numbers on every backend."""

import numpy as np
from numba import prange

from numbadsd.kernels import shared
from numbadsd.kernels.cpu.busy import timed
from numbadsd.kernels.cpu.jit import device, kernel
from numbadsd.kernels.words import check_array

_mix32 = device(shared.mix32)
_row_key = device(shared.make_row_key(_mix32))
_uniform_at = device(shared.make_uniform_at(_mix32))


@device
def _fill_row(out, i, row_key):
    for channel in range(out.shape[1]):
        out[i, channel] = _uniform_at(row_key, channel)


@kernel
def _fill_uniform_kernel(out, seed, request_ids, tokens, kind):
    """Write uniform numbers in [-1, 1).

    Work      one task per token
    Writes    out, every element once
    """
    for i in prange(out.shape[0]):
        _fill_row(out, i, _row_key(seed, request_ids[i], kind, tokens[i]))


@kernel
def _fill_tokens_kernel(queries, keys, values, seed, request_ids, tokens):
    """Write all three streams of tokens; those of no rows are left out.

    Work      one task per token
    Writes    queries, keys and values, every element once
    """
    for i in prange(request_ids.size):
        if i < queries.shape[0]:
            _fill_row(queries, i, _row_key(seed, request_ids[i], shared.QUERY, tokens[i]))
        if i < keys.shape[0]:
            _fill_row(keys, i, _row_key(seed, request_ids[i], shared.KEY, tokens[i]))
            _fill_row(values, i, _row_key(seed, request_ids[i], shared.VALUE, tokens[i]))


_fill_uniform, _fill_tokens = timed(_fill_uniform_kernel), timed(_fill_tokens_kernel)


def fill_uniform(
    out: np.ndarray,  # [n, G, D] f32
    seed: int,
    request_ids: np.ndarray,  # [n] i64
    tokens: np.ndarray,  # [n] i64, positions in their requests
    kind: int,
) -> None:
    """Fill `out` with tokens of one random stream (QUERY, KEY or VALUE) of their requests."""
    check_array("out", out, (None, None, None), np.float32)
    check_array("request_ids", request_ids, out.shape[:1], np.int64)
    check_array("tokens", tokens, out.shape[:1], np.int64)
    _fill_uniform(out.reshape(out.shape[0], -1), seed, request_ids, tokens, kind)


def make_tokens(
    queries: np.ndarray,  # [n, H, D] f32, or no rows
    keys: np.ndarray,  # [n, G, D] f32, or no rows
    values: np.ndarray,  # as keys
    seed: int,
    request_ids: np.ndarray,  # [n] i64
    tokens: np.ndarray,  # [n] i64, positions in their requests
) -> None:
    """Fill the streams of tokens that are wanted; an engine's step makes them in one call."""
    # our own arrays, and a step of small requests cannot pay for more than this
    assert request_ids.shape == tokens.shape and keys.shape == values.shape
    assert {len(queries), len(keys)} <= {0, request_ids.size}
    _fill_tokens(
        queries.reshape(len(queries), queries.shape[1] * queries.shape[2]),
        keys.reshape(len(keys), keys.shape[1] * keys.shape[2]),
        values.reshape(len(values), values.shape[1] * values.shape[2]),
        seed, request_ids, tokens,
    )  # fmt: skip
