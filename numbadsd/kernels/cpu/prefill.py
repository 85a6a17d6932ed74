"""Synthetic tokens from a counter-based generator: no state, the same numbers on every backend."""

import numpy as np
from numba import prange

from numbadsd.kernels import shared
from numbadsd.kernels.cpu.jit import device, kernel
from numbadsd.kernels.words import check_array

QUERY, KEY, VALUE = 0, 1, 2

_mix32 = device(shared.mix32)
_row_key = device(shared.make_row_key(_mix32))
_uniform_at = device(shared.make_uniform_at(_mix32))


@kernel
def _fill_uniform_kernel(out, seed, request_id, first_token, stream):
    """Write uniform numbers in [-1, 1).

    Work      one task per token
    Writes    out, every element once
    """
    for token in prange(out.shape[0]):
        key = _row_key(seed, request_id, stream, first_token + token)
        for channel in range(out.shape[1]):
            out[token, channel] = _uniform_at(key, channel)


def fill_uniform(
    out: np.ndarray,  # [n, G, D] f32
    seed: int,
    request_id: int,
    first_token: int,
    stream: int,
) -> None:
    """Fill `out` with tokens first_token .. first_token + n of one stream of one request."""
    check_array("out", out, (None, None, None), np.float32)
    _fill_uniform_kernel(out.reshape(out.shape[0], -1), seed, request_id, first_token, stream)
