"""Synthetic tokens from a counter-based generator, on a device: the same numbers as on the CPU."""

from functools import cache

import numpy as np

from numbadsd.kernels import shared
from numbadsd.kernels.cuda.launch import DeviceArray, Kernel, check_array
from numbadsd.kernels.cuda.ops import cuda, device, int64, quotient, uint32

NUM_THREADS = 128
BLOCK_CHANNELS = 4 * NUM_THREADS  # a step has few tokens: their channels fill the device

_mix32 = device(shared.mix32)
_row_key = device(shared.make_row_key(_mix32))
_uniform_at = device(shared.make_uniform_at(_mix32))


@cache
def fill_uniform_kernel() -> Kernel:
    """Return the kernel of uniform numbers in [-1, 1).

    Work      one block per (token, BLOCK_CHANNELS channels)
    Writes    out, every element once
    """

    def fill_uniform(out, request_ids, tokens, seed, kind, channels, parts):
        token = quotient(cuda.blockIdx.x, parts)
        first = (cuda.blockIdx.x - token * parts) * BLOCK_CHANNELS
        key = _row_key(seed, request_ids[token], kind, tokens[token])
        end = min(channels, first + BLOCK_CHANNELS)
        for channel in range(first + cuda.threadIdx.x, end, NUM_THREADS):
            out[int64(token) * channels + channel] = _uniform_at(key, uint32(channel))

    return Kernel(
        name="fill_uniform",
        function=fill_uniform,
        parameters=("f32[]", "i64[]", "i64[]", "u32", "i32", "i32", "i32"),
        num_threads=NUM_THREADS,
        max_registers=32,
        load_bytes=4,
    )


def fill_uniform(
    out: DeviceArray,  # [n, G, D] f32
    seed: int,
    request_ids: DeviceArray,  # [n] i64
    tokens: DeviceArray,  # [n] i64, positions in their requests
    kind: int,
    *,
    stream,
) -> None:
    """Fill `out` with tokens of one random stream (QUERY, KEY or VALUE) of their requests."""
    check_array("out", out, (None, None, None), np.float32)
    check_array("request_ids", request_ids, out.shape[:1], np.int64)
    check_array("tokens", tokens, out.shape[:1], np.int64)
    if out.size:
        channels = out.shape[1] * out.shape[2]
        parts = -(-channels // BLOCK_CHANNELS)
        stream.launch(
            fill_uniform_kernel(), len(out) * parts, out, request_ids, tokens, seed, kind, channels,
            parts,
        )  # fmt: skip
