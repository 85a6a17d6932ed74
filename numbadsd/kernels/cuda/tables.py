"""The page table of a step, made on the device from tables that live there.

Every request has a row of page ids and a token count on the device; a step names rows. The CSR
table that the other kernels read is written by one launch, so that lengths never come from the
host.
"""

from functools import cache

import numpy as np

from numbadsd.kernels.cuda.launch import DeviceArray, Kernel, check_array
from numbadsd.kernels.cuda.ops import cuda, device, int32, int64, quotient
from numbadsd.kernels.cuda.scan import make_block_sum_before

NUM_THREADS = 256
_NUM_WARPS = NUM_THREADS // 32

_block_sum_before = make_block_sum_before(_NUM_WARPS)


@device
def _tokens_of(rows, row_tokens, request):
    """Return the tokens of a request of the batch; 0 where its row is -1."""
    row = rows[request]
    return row_tokens[row] if row >= 0 else int32(0)


@cache
def pack_tables_kernel() -> Kernel:
    """Return the kernel that packs the rows of a batch into one table.

    Work      one block per request
    Writes    page_indptr, page_counts, last_page_tokens, context_tokens, and the first
              page_indptr[B] of page_ids
    """

    def pack_tables(
        rows, row_pages, row_tokens, page_indptr, page_ids, last_page_tokens, page_counts,
        context_tokens, batch, stride, page_size,
    ):  # fmt: skip
        warp_totals = cuda.shared.array(_NUM_WARPS, int32)
        thread, request = cuda.threadIdx.x, cuda.blockIdx.x
        before = int32(0)
        for other in range(thread, request, NUM_THREADS):
            before += quotient(_tokens_of(rows, row_tokens, other) + page_size - 1, page_size)
        _, start = _block_sum_before(before, warp_totals)
        tokens = _tokens_of(rows, row_tokens, request)
        count = quotient(tokens + page_size - 1, page_size)
        first = int64(rows[request]) * stride
        for i in range(thread, count, NUM_THREADS):
            page_ids[start + i] = row_pages[first + i]
        if thread == 0:
            page_indptr[request] = start
            page_counts[request] = count
            context_tokens[request] = tokens
            last_page_tokens[request] = tokens - max(0, count - 1) * page_size
            if request == batch - 1:
                page_indptr[batch] = start + count

    return Kernel(
        name="pack_tables",
        function=pack_tables,
        parameters=("i32[]",) * 7 + ("i64[]",) + ("i32",) * 3,
        num_threads=NUM_THREADS,
        max_registers=40,
        load_bytes=4,
    )


def pack_tables(
    rows: DeviceArray,  # [B] i32, rows of the tables; -1 for a request without tokens
    row_pages: DeviceArray,  # [R, P] i32
    row_tokens: DeviceArray,  # [R] i32, at most P * page_size each
    page_size: int,
    page_indptr: DeviceArray,  # [B + 1] i32 out
    page_ids: DeviceArray,  # [n] i32 out, n >= the pages of the batch
    last_page_tokens: DeviceArray,  # [B] i32 out
    page_counts: DeviceArray,  # [B] i32 out
    context_tokens: DeviceArray,  # [B] i64 out
    *,
    stream,
) -> None:
    """Write the CSR table of the requests in `rows`."""
    check_array("rows", rows, (None,), np.int32)
    (batch,) = rows.shape
    check_array("row_pages", row_pages, (None, None), np.int32)
    check_array("row_tokens", row_tokens, row_pages.shape[:1], np.int32)
    check_array("page_indptr", page_indptr, (batch + 1,), np.int32)
    check_array("page_ids", page_ids, (None,), np.int32)
    check_array("last_page_tokens", last_page_tokens, (batch,), np.int32)
    check_array("page_counts", page_counts, (batch,), np.int32)
    check_array("context_tokens", context_tokens, (batch,), np.int64)
    if batch:
        stream.launch(
            pack_tables_kernel(), batch, rows, row_pages, row_tokens, page_indptr, page_ids,
            last_page_tokens, page_counts, context_tokens, batch, row_pages.shape[1], page_size,
        )  # fmt: skip


@cache
def scatter_numbers_kernel() -> Kernel:
    """Return the kernel of scattered writes.

    Work      one thread per number; a place of -1 is none
    """

    def scatter_numbers(target, places, numbers, count):
        i = cuda.blockIdx.x * NUM_THREADS + cuda.threadIdx.x
        if i < count and places[i] >= 0:
            target[places[i]] = numbers[i]

    return Kernel(
        name="scatter_numbers",
        function=scatter_numbers,
        parameters=("i32[]", "i64[]", "i32[]", "i32"),
        num_threads=NUM_THREADS,
        max_registers=32,
        load_bytes=4,
    )


def scatter_numbers(
    target: DeviceArray,  # any shape, i32
    places: DeviceArray,  # [n] i64, flat indices into target, or -1
    numbers: DeviceArray,  # [n] i32
    *,
    stream,
) -> None:
    """Write numbers[i] to target[places[i]]; those of place -1 are left out."""
    check_array("target", target, target.shape, np.int32)
    check_array("places", places, (None,), np.int64)
    check_array("numbers", numbers, places.shape, np.int32)
    if len(places):
        stream.launch(
            scatter_numbers_kernel(), -(-len(places) // NUM_THREADS), target, places, numbers,
            len(places),
        )  # fmt: skip


@cache
def count_outside_kernel() -> Kernel:
    """Return the kernel that looks for page ids outside a pool (one block)."""

    def count_outside(page_indptr, page_ids, faults, batch, num_pages):
        warp_totals = cuda.shared.array(_NUM_WARPS, int32)
        outside = int32(0)
        for i in range(cuda.threadIdx.x, page_indptr[batch], NUM_THREADS):
            outside += int32(page_ids[i] < 0 or page_ids[i] >= num_pages)
        _, total = _block_sum_before(outside, warp_totals)
        if cuda.threadIdx.x == 0:
            faults[0] = total

    return Kernel(
        name="count_outside",
        function=count_outside,
        parameters=("i32[]", "i32[]", "i32[]", "i32", "i32"),
        num_threads=NUM_THREADS,
        max_registers=32,
        load_bytes=4,
    )


def count_outside(
    page_indptr: DeviceArray,  # [B + 1] i32
    page_ids: DeviceArray,  # [n] i32
    num_pages: int,
    faults: DeviceArray,  # [1] i32 out
    *,
    stream,
) -> None:
    """Count the page ids of a table that are not pages of the pool."""
    check_array("page_indptr", page_indptr, (None,), np.int32)
    check_array("page_ids", page_ids, (None,), np.int32)
    check_array("faults", faults, (1,), np.int32)
    batch = len(page_indptr) - 1
    stream.launch(count_outside_kernel(), 1, page_indptr, page_ids, faults, batch, num_pages)
