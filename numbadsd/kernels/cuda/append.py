"""Write tokens into pages on a device and renew the summaries of the pages that were written.

The same sums in the same order as on the CPU, with nothing contracted, so that the summaries are
the same bits on both.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from numbadsd.kernels.cuda.launch import DeviceArray, Kernel, check_array, check_stored
from numbadsd.kernels.cuda.ops import (
    bf16_high,
    bf16_low,
    bits_to_f32,
    cuda,
    device,
    div_rn,
    f16_high,
    f16_low,
    f32_to_bits,
    float32,
    int32,
    int64,
    mul_rn,
    quotient,
    sqrt_rn,
    to_bf16,
    to_f16,
    uint32,
)  # fmt: skip

NUM_THREADS = 128
SUMMARIES = ("mean", "minmax", "cuboid_mean", "mean_std")
_MEAN, _MINMAX, _CUBOID_MEAN, _ = SUMMARIES
_ZERO, _HALF = float32(0), float32(0.5)
_HIGH_HALF = uint32(16)


@dataclass(frozen=True)
class AppendSpec:
    """Compile-time constants of storing and summarising."""

    head_dim: int
    kv_dtype: str
    summary_dtype: str
    summary: str
    token_dtype: str

    @property
    def name(self) -> str:
        """The constants as a part of a file name."""
        return (
            f"{self.head_dim}-{self.kv_dtype}-{self.summary_dtype}-{self.summary}"
            f"-{self.token_dtype}"
        )


def _make_load(dtype: str, head_dim: int):
    """Return ``load(words, row, d)``: element d of a row of head_dim stored elements."""
    words_per_row = head_dim if dtype == "float32" else head_dim // 2
    low, high = (f16_low, f16_high) if dtype == "float16" else (bf16_low, bf16_high)

    @device
    def load_single(words, row, d):
        return bits_to_f32(words[row * words_per_row + d])

    @device
    def load_half(words, row, d):
        word = words[row * words_per_row + d // 2]
        return low(word) if d % 2 == 0 else high(word)

    return load_single if dtype == "float32" else load_half


def _make_pack(dtype: str):
    """Return ``pack(a, b)``: the stored word of one float32 (a) or of two neighbours."""
    to_half = to_f16 if dtype == "float16" else to_bf16

    @device
    def pack_single(a, b):
        return f32_to_bits(a)

    @device
    def pack_pair(a, b):
        return uint32(to_half(a) | uint32(to_half(b) << _HIGH_HALF))

    return pack_single if dtype == "float32" else pack_pair


def _make_summary_of(spec: AppendSpec):
    """Return ``summary_of(keys, first_row, tokens, d)``: both vectors' element d of one page."""
    load, summary = _make_load(spec.kv_dtype, spec.head_dim), spec.summary

    @device
    def mean_of(keys, first_row, tokens, d):
        total = _ZERO
        for t in range(tokens):
            total += load(keys, first_row + t, d)
        return div_rn(total, float32(tokens))

    @device
    def range_of(keys, first_row, tokens, d):
        low = load(keys, first_row, d)
        high = low
        for t in range(1, tokens):
            key = load(keys, first_row + t, d)
            low = low if low < key or low != low else key
            high = high if high > key or high != high else key
        return low, high

    @device
    def spread_of(keys, first_row, tokens, d, centre, is_squared):
        total = _ZERO
        for t in range(tokens):
            distance = load(keys, first_row + t, d) - centre
            total += mul_rn(distance, distance) if is_squared else abs(distance)
        return div_rn(total, float32(tokens))

    @device
    def summary_of(keys, first_row, tokens, d):
        if summary == _MEAN:
            return mean_of(keys, first_row, tokens, d), _ZERO
        if summary == _MINMAX:
            return range_of(keys, first_row, tokens, d)
        if summary == _CUBOID_MEAN:
            low, high = range_of(keys, first_row, tokens, d)
            centre = mul_rn(low + high, _HALF)
            return centre, spread_of(keys, first_row, tokens, d, centre, False)
        mean = mean_of(keys, first_row, tokens, d)
        return mean, sqrt_rn(spread_of(keys, first_row, tokens, d, mean, True))

    return summary_of


def _make_summarise_tile(spec: AppendSpec):
    """Return ``summarise_tile``: a block writes one kv head's summary of one page."""
    summary_of, pack = _make_summary_of(spec), _make_pack(spec.summary_dtype)
    is_pair = spec.summary_dtype != "float32"
    arrays = 1 if spec.summary == _MEAN else 2
    row_words = spec.head_dim // 2 if is_pair else spec.head_dim

    @device
    def summarise_tile(keys, first_row, tokens, summaries, row, second_row):
        for w in range(cuda.threadIdx.x, row_words, NUM_THREADS):
            d = 2 * w if is_pair else w
            one, two = summary_of(keys, first_row, tokens, d)
            if is_pair:
                next_one, next_two = summary_of(keys, first_row, tokens, d + 1)
            else:
                next_one, next_two = _ZERO, _ZERO
            summaries[row * row_words + w] = pack(one, next_one)
            if arrays == 2:
                summaries[second_row * row_words + w] = pack(two, next_two)

    return summarise_tile


@cache
def append_runs_kernel(spec: AppendSpec) -> Kernel:
    """Return the kernel that stores runs of tokens and renews their pages' summaries.

    Work      one block per (run, kv head); a run of page -1 does nothing
    Writes    the slots of the runs, the summaries and token counts of their pages
    """
    load, pack = _make_load(spec.token_dtype, spec.head_dim), _make_pack(spec.kv_dtype)
    summarise_tile = _make_summarise_tile(spec)
    is_pair, head_dim = spec.kv_dtype != "float32", spec.head_dim
    row_words, page_rows = head_dim // (1 + is_pair), 1 if spec.summary == _MEAN else 2

    def append_runs(
        new_keys, new_values, page_ids, first_slots, token_indptr, keys, values, summaries,
        page_tokens, kv_heads, page_size,
    ):  # fmt: skip
        run = quotient(cuda.blockIdx.x, kv_heads)
        head = cuda.blockIdx.x - run * kv_heads
        page, slot = int64(page_ids[run]), first_slots[run]
        if page >= 0:
            first_token = token_indptr[run]
            tokens = int32(token_indptr[run + 1] - first_token)
            first_row = (page * kv_heads + head) * page_size
            for i in range(cuda.threadIdx.x, tokens * row_words, NUM_THREADS):
                token, w = i // row_words, i % row_words
                source = (first_token + token) * kv_heads + head
                target = (first_row + slot + token) * row_words + w
                d = 2 * w if is_pair else w
                other = min(d + 1, head_dim - 1)
                keys[target] = pack(load(new_keys, source, d), load(new_keys, source, other))
                values[target] = pack(load(new_values, source, d), load(new_values, source, other))
            cuda.syncthreads()
            row = page * (page_rows * kv_heads) + head
            summarise_tile(keys, first_row, slot + tokens, summaries, row, row + kv_heads)
            if head == 0 and cuda.threadIdx.x == 0:
                page_tokens[page] = slot + tokens

    return Kernel(
        name=f"append_runs-{spec.name}",
        function=append_runs,
        parameters=("u32[]", "u32[]", "i32[]", "i32[]", "i64[]", "u32[]", "u32[]", "u32[]", "i32[]",
                    "i32", "i32"),
        num_threads=NUM_THREADS,
        max_registers=80,
        load_bytes=4,
        low_occupancy="a few blocks a step: it never fills a device",
    )  # fmt: skip


@cache
def summarise_pages_kernel(spec: AppendSpec) -> Kernel:
    """Return the kernel that rebuilds summaries.

    Work      one block per (page, kv head)
    Writes    summaries[i] of page page_ids[i]
    """
    summarise_tile = _make_summarise_tile(spec)
    page_rows = 1 if spec.summary == _MEAN else 2

    def summarise_pages(keys, page_ids, page_tokens, summaries, kv_heads, page_size):
        index = quotient(cuda.blockIdx.x, kv_heads)
        head = cuda.blockIdx.x - index * kv_heads
        first_row = (int64(page_ids[index]) * kv_heads + head) * page_size
        row = int64(index) * (page_rows * kv_heads) + head
        summarise_tile(keys, first_row, page_tokens[index], summaries, row, row + kv_heads)

    return Kernel(
        name=f"summarise_pages-{spec.name}",
        function=summarise_pages,
        parameters=("u32[]", "i32[]", "i32[]", "u32[]", "i32", "i32"),
        num_threads=NUM_THREADS,
        max_registers=64,
        load_bytes=4,
    )


def _check_pool(keys: DeviceArray, summary: str, summaries: DeviceArray, num_pages: int) -> None:
    """Raise ValueError unless keys, and summaries of `num_pages` pages, are of a pool."""
    check_stored("keys", keys, (None, None, None, None))
    if summary not in SUMMARIES:
        raise ValueError(f"summary: got {summary!r}, want one of {', '.join(SUMMARIES)}")
    vectors = () if summary == _MEAN else (2,)
    check_stored("summaries", summaries, (num_pages, *vectors, keys.shape[1], keys.shape[3]))


def append_runs(
    new_keys: DeviceArray,  # [tokens, G, D] float32 or the pool's dtype
    new_values: DeviceArray,  # [tokens, G, D] as new_keys
    page_ids: DeviceArray,  # [R] i32, distinct; -1: no run
    first_slots: DeviceArray,  # [R] i32, the slot of a run's first token
    token_indptr: DeviceArray,  # [R + 1] i64: run r stores tokens [r] .. [r + 1]
    keys: DeviceArray,  # [N, G, T, D]
    values: DeviceArray,  # [N, G, T, D]
    summary: str,
    summaries: DeviceArray,  # [N, G, D] for mean, else [N, 2, G, D]
    *,
    stream,
    page_tokens: DeviceArray,  # [N] i32 out, tokens of each page
) -> None:
    """Store tokens in the slots of their pages and renew the summaries of these pages."""
    _check_pool(keys, summary, summaries, len(keys))
    kv_heads, page_size, head_dim = keys.shape[1:]
    check_array("new_keys", new_keys, (None, kv_heads, head_dim))
    check_array("new_values", new_values, new_keys.shape, new_keys.dtype)
    check_array("values", values, keys.shape, keys.dtype)
    check_array("page_ids", page_ids, (None,), np.int32)
    check_array("first_slots", first_slots, page_ids.shape, np.int32)
    check_array("token_indptr", token_indptr, (len(page_ids) + 1,), np.int64)
    check_array("page_tokens", page_tokens, keys.shape[:1], np.int32)
    if new_keys.dtype not in (keys.dtype, np.float32):
        raise ValueError(f"new_keys: got dtype {new_keys.dtype}, want float32 or {keys.dtype}")
    dtypes = str(keys.dtype), str(summaries.dtype)
    spec = AppendSpec(head_dim, *dtypes, summary, str(new_keys.dtype))
    if len(page_ids):
        stream.launch(
            append_runs_kernel(spec), len(page_ids) * kv_heads, new_keys, new_values, page_ids,
            first_slots, token_indptr, keys, values, summaries, page_tokens, kv_heads, page_size,
        )  # fmt: skip


def summarise_pages(
    keys: DeviceArray,  # [N, G, T, D]
    page_ids: DeviceArray,  # [n] i32
    page_tokens: DeviceArray,  # [n] i32, at least 1
    summary: str,
    summaries: DeviceArray,  # [n, G, D] for mean, else [n, 2, G, D]
    *,
    stream,
) -> None:
    """Rebuild the summaries of pages from their stored keys."""
    check_array("page_ids", page_ids, (None,), np.int32)
    _check_pool(keys, summary, summaries, len(page_ids))
    kv_heads, page_size, head_dim = keys.shape[1:]
    check_array("page_tokens", page_tokens, page_ids.shape, np.int32)
    dtypes = str(keys.dtype), str(summaries.dtype)
    spec = AppendSpec(head_dim, *dtypes, summary, dtypes[0])
    if len(page_ids):
        stream.launch(
            summarise_pages_kernel(spec), len(page_ids) * kv_heads, keys, page_ids, page_tokens,
            summaries, kv_heads, page_size,
        )  # fmt: skip
