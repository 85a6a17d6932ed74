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


@kernel
def _fill_uniform_kernel(out, seed, request_ids, tokens, kind):
    """Write uniform numbers in [-1, 1).

    Work      one task per token
    Writes    out, every element once
    """
    for i in prange(out.shape[0]):
        key = _row_key(seed, request_ids[i], kind, tokens[i])
        for channel in range(out.shape[1]):
            out[i, channel] = _uniform_at(key, channel)


_fill_uniform = timed(_fill_uniform_kernel)


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
