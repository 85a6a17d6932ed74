"""Select the k best of each row on a device: exact, deterministic, no wait, nothing to reset.

One launch of a fixed grid, in which the device decides by a row's length who selects it: a warp or
a block; where rows can be long and do not fill the device, three more launches let several blocks
share a row (`topk_parts`). The host never sees a length, so a captured graph does for all of them.
"""

from functools import cache

import numpy as np

from numbadsd.kernels.cuda.launch import DeviceArray, Kernel, check_array
from numbadsd.kernels.cuda.ops import cuda, device, int32, int64, quotient
from numbadsd.kernels.cuda.runtime import get_driver
from numbadsd.kernels.cuda.topk_parts import (
    ABOVE_SIZE,
    COUNTS_SIZE,
    DIGITS,
    STATE_SIZE,
    count_digit_kernel,
    emit_parts_kernel,
)
from numbadsd.kernels.cuda.topk_row import (
    NUM_BINS,
    NUM_FOUND,
    NUM_THREADS,
    NUM_TOTALS,
    NUM_WARPS,
    SCORE_PARAMETERS,
    WARP_BITS,
    clamped,
    emit_forced,
    make_emit,
    make_emit_block,
    make_kth_key,
)
from numbadsd.kernels.cuda.topk_sort import MAX_SORTED, sort_selected_kernel
from numbadsd.kernels.cuda.topk_tuning import TopkTuning, tuning_of
from numbadsd.kernels.topk_shape import MAX_K, check_topk

assert MAX_K <= MAX_SORTED

_ALIGN_BYTES = 16  # of the workspace: counts are loaded by four


@cache
def _make_select_by_warp(dtype: str):
    """Return the selection of a row by one warp."""
    kth_key = make_kth_key(dtype, by_block=False)
    _, emit_run = make_emit(dtype)

    @device
    def select_by_warp(
        scores, base, count, wanted, histogram, totals, found, indices, out, first_index
    ):
        warp = cuda.threadIdx.x // 32
        threshold, equal = kth_key(
            scores, base, count, wanted, histogram, warp << WARP_BITS, totals, found, 3 * warp
        )
        before = (int32(0), int32(0))
        emit_run(scores, base, 0, count, threshold, equal, before, indices, out, first_index)

    return select_by_warp


@cache
def _make_select_by_block(dtype: str):
    """Return the selection of a row by one block."""
    kth_key, emit_block = make_kth_key(dtype, by_block=True), make_emit_block(dtype)

    @device
    def select_by_block(
        scores, base, count, wanted, histogram, totals, found, indices, out, first_index
    ):
        threshold, equal = kth_key(scores, base, count, wanted, histogram, 0, totals, found, 0)
        before = (int32(0), int32(0))
        emit_block(
            scores, base, 0, count, threshold, equal, before, totals, indices, out, first_index
        )

    return select_by_block


@cache
def topk_rows_kernel(dtype: str) -> Kernel:
    """Return the kernel for all rows that no more than a block selects.

    Work      first the blocks whose warps take a row each, then one block per row
    Block     512 threads
    Writes    indices[row, :] of rows of up to `block_length` elements, or up to K
    Bytes     reads 2 or 4 per score; a row comes from the first-level cache after its first pass
    """
    select_by_warp, select_by_block = _make_select_by_warp(dtype), _make_select_by_block(dtype)

    def topk_rows(
        scores, lengths, indices, rows, rows_per_length, row_stride, width, k, num_first, num_last,
        warp_length, block_length, warp_blocks,
    ):  # fmt: skip
        histogram = cuda.shared.array(NUM_BINS, int32)
        totals = cuda.shared.array(NUM_TOTALS, int32)
        found = cuda.shared.array(NUM_FOUND, int32)
        by_warp = cuda.blockIdx.x < warp_blocks
        if by_warp:
            row = cuda.blockIdx.x + cuda.threadIdx.x // 32 * warp_blocks
        else:
            row = cuda.blockIdx.x - warp_blocks
        if row < rows:
            length = clamped(lengths[quotient(row, rows_per_length)], width)
            base, out = int64(row) * row_stride + num_first, int64(row) * k
            forced = num_first + num_last
            count, wanted = int32(length - forced), int32(k - forced)
            if by_warp and length <= k:
                for i in range(cuda.threadIdx.x % 32, k, 32):
                    indices[out + i] = i if i < length else -1
            elif by_warp and length <= warp_length:
                emit_forced(length, k, num_first, num_last, indices, out, 32)
                if wanted > 0:
                    select_by_warp(
                        scores, base, count, wanted, histogram, totals, found, indices,
                        out + num_first, num_first,
                    )  # fmt: skip
            elif not by_warp and length > max(k, warp_length) and length <= block_length:
                emit_forced(length, k, num_first, num_last, indices, out, NUM_THREADS)
                if wanted > 0:
                    select_by_block(
                        scores, base, count, wanted, histogram, totals, found, indices,
                        out + num_first, num_first,
                    )  # fmt: skip

    return Kernel(
        name=f"topk_rows_{dtype}",
        function=topk_rows,
        parameters=(SCORE_PARAMETERS[dtype], "i32[]", "i32[]", "i32", "i32", "i64") + ("i32",) * 7,
        num_threads=NUM_THREADS,
        max_registers=64,
        load_bytes=4,
    )


def topk_rows(
    scores: DeviceArray,  # [n] f32, f16 or bf16: row r starts at r * row_stride
    row_stride: int,
    width: int,
    lengths: DeviceArray,  # [L] i32: of row r, lengths[r // (R // L)]
    num_first: int,
    num_last: int,
    order: str,
    indices: DeviceArray,  # [R, K] i32 out
    *,
    stream,
    workspace: DeviceArray | None = None,  # [topk_workspace_size] i32
    launch: TopkTuning | None = None,
) -> None:
    """Write each row's K best indices, then -1.

    Parameters
    ----------
    row_stride, width : int
        Elements from one row to the next, and the most that a row has.
    lengths : DeviceArray
        Taken as at least 0 and at most `width`.
    num_first, num_last : int
        Elements at both ends of a row that are always in and count towards K.
    order : {"position", "score"}
        Ascending indices, or descending scores (of equal ones the lower index first).
    workspace : DeviceArray, optional
        Needed where `topk_workspace_size` is not 0; aligned to 16 bytes.
    launch : TopkTuning, optional
        Other numbers than the architecture's.
    """
    check_array("scores", scores, (None,))
    check_array("lengths", lengths, (None,), np.int32)
    check_array("indices", indices, (None, None), np.int32)
    if indices.shape[1] > MAX_K:
        raise ValueError(f"indices: got k = {indices.shape[1]}, want at most {MAX_K}")
    if workspace is not None and workspace.address % _ALIGN_BYTES:
        got, want = f"{workspace.address:#x}", f"one divisible by {_ALIGN_BYTES}"
        raise ValueError(f"workspace: got address {got}, want {want}")
    check_topk(
        str(scores.dtype), scores.size, row_stride, width, lengths.size, num_first, num_last, order,
        indices.shape,
    )  # fmt: skip
    if indices.size == 0:
        return
    rows, k = indices.shape
    driver, dtype = get_driver(), str(scores.dtype)
    tuning = launch or tuning_of(driver.compute_capability)
    shape = (rows, rows // lengths.size, row_stride, width, k, num_first, num_last)
    parts = tuning.num_parts(rows, width, driver.num_multiprocessors)
    block_length = width if parts == 1 else tuning.block_length
    warp_blocks = max(-(-rows // NUM_WARPS), min(rows, driver.num_multiprocessors))
    stream.launch(
        topk_rows_kernel(dtype), warp_blocks + rows, scores, lengths, indices, *shape,
        tuning.warp_length, block_length, warp_blocks,
    )  # fmt: skip
    if parts > 1:
        memory = _split_workspace(workspace, rows, parts)
        shape += (block_length, parts)
        for step in range(len(DIGITS)):
            kernel = count_digit_kernel(dtype, step)
            stream.launch(kernel, rows * parts, scores, lengths, *memory, *shape)
        kernel = emit_parts_kernel(dtype)
        stream.launch(kernel, rows * parts, scores, lengths, *memory, indices, *shape)
    if order == "score":
        padded = max(2, 1 << (k - 1).bit_length())
        kernel = sort_selected_kernel(dtype)
        stream.launch(kernel, rows, scores, indices, row_stride, k, padded)


def topk_workspace_size(rows: int, width: int, launch: TopkTuning | None = None) -> int:
    """Return the int32 elements that `topk_rows` needs beside its arguments; mostly 0."""
    driver = get_driver()
    tuning = launch or tuning_of(driver.compute_capability)
    parts = tuning.num_parts(rows, width, driver.num_multiprocessors)
    return 0 if parts == 1 else sum(_workspace_sizes(rows, parts))


def _workspace_sizes(rows: int, parts: int) -> tuple[int, int, int]:
    """Return the elements of counts, state and above."""
    return rows * parts * COUNTS_SIZE, rows * STATE_SIZE, rows * parts * ABOVE_SIZE


def _split_workspace(workspace: DeviceArray | None, rows: int, parts: int) -> list[DeviceArray]:
    sizes = _workspace_sizes(rows, parts)
    if workspace is None or workspace.size < sum(sizes):
        got = "none" if workspace is None else workspace.size
        raise ValueError(f"workspace: got {got}, want at least {sum(sizes)} int32 elements")
    check_array("workspace", workspace, (None,), np.int32)
    ends = np.cumsum([0, *sizes])
    return [workspace[begin:end] for begin, end in zip(ends, ends[1:], strict=False)]
