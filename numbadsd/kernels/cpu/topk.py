"""Select the k best elements of every row: exact, deterministic, linear in the elements.

    row r:  scores[r * row_stride :][: length]     length = lengths[r // (R / L)], within [0, width]

            [ num_first | ... the middle: its k - num_first - num_last best ... | num_last ]

Higher score first, ties to the lower index, NaN as -inf, -0.0 as 0.0. That is a total order, so the
result does not depend on how the work is cut. One thread finds the best of a run of scores (see
`topk_row`); a run is the middle of a row, or, where there are fewer rows than threads, a piece of
it: the k best of a row are among the k best of its pieces.
"""

import numpy as np
from numba import get_num_threads, prange

from numbadsd.kernels.cpu.jit import device, kernel
from numbadsd.kernels.cpu.keys import KEY_LANES
from numbadsd.kernels.cpu.topk_row import best_of_run, keep_best, scratch_size, sort_by_score
from numbadsd.kernels.topk_shape import check_topk
from numbadsd.kernels.words import as_words, check_array

# A row is cut where that pays for the second round of tasks: measured, us, one thread | two pieces:
# 65,536 elements k 16 11 | 8, k 128 14 | 13, k 2048 36 | 43; 131,072 k 128 25 | 18; 2^20 171 | 92.
MIN_PIECE = 32_768


@device
def _num_pieces(rows, width, num_threads):
    """Return the pieces that each row is cut into: 1 where the rows alone occupy the threads."""
    return max(1, min((num_threads + rows - 1) // rows, width // MIN_PIECE))


@device
def _row_span(lengths, row, rows, width, forced, k):
    """Return a row's length, and how many of its first and last elements are forced."""
    length = min(max(np.int64(lengths[row // (rows // lengths.size)]), 0), width)
    return (length, forced[0], forced[1]) if length > k else (length, 0, 0)


@device
def _write_row(keys, positions, count, length, num_first, num_last, by_score, indices, row):
    """Write all K slots of a row from the best of its middle."""
    if by_score:
        sort_by_score(keys, positions, count)
    for i in range(num_first):
        indices[row, i] = i
    for i in range(count):
        indices[row, num_first + i] = num_first + positions[i]
    for i in range(num_last):
        indices[row, num_first + count + i] = length - num_last + i
    for i in range(num_first + count + num_last, indices.shape[1]):
        indices[row, i] = -1


@device
def _join_runs(first, end, run_counts, run_keys, run_positions, k, keys, positions):
    """Put the k best of the runs of a row in the scratch, ascending; returns their number."""
    count = 0
    for run in range(first, end):
        for i in range(run_counts[run]):
            keys[count], positions[count] = run_keys[run, i], run_positions[run, i]
            count += 1
    if count > k:
        keep_best(keys, positions, count, k)
    return min(count, k)


@kernel
def topk_rows_kernel(scores, row_stride, width, lengths, forced, by_score, num_threads, indices):
    """Write indices[row, :]; `num_threads` sizes the tasks, the result never depends on it.

    Work      one task per thread, each every so-many-th run; then one per row of several runs
    Writes    indices, every element once
    Bytes     reads each score once, of rows over 1024 a sixteenth twice; a wrong guess reads twice
    """
    rows, k = indices.shape
    words = scores.reshape((1, scores.size))
    pieces = _num_pieces(rows, width, num_threads)
    runs = rows * pieces
    kept = runs if pieces > 1 else 0
    run_counts = np.empty(kept, np.int64)
    run_keys, run_positions = np.empty((kept, k), np.uint32), np.empty((kept, k), np.int32)

    tasks = min(num_threads, runs)
    for task in prange(tasks):
        keys = np.empty(scratch_size(k), np.uint32)
        positions = np.empty(scratch_size(k), np.int32)
        for run in range(task, runs, tasks):
            row, piece = run // pieces, run % pieces
            length, first, last = _row_span(lengths, row, rows, width, forced, k)
            middle, begin = length - first - last, row * row_stride + first
            low, high = middle * piece // pieces, middle * (piece + 1) // pieces
            count = best_of_run(
                words, begin + low, begin + high, k - first - last, keys, positions
            )  # fmt: skip
            if pieces == 1:
                _write_row(keys, positions, count, length, first, last, by_score, indices, row)
            else:
                run_counts[run] = count
                for i in range(count):
                    run_keys[run, i], run_positions[run, i] = keys[i], low + positions[i]

    if pieces > 1:
        for row in prange(rows):
            keys = np.empty(pieces * k + KEY_LANES, np.uint32)
            positions = np.empty(pieces * k + KEY_LANES, np.int32)
            length, first, last = _row_span(lengths, row, rows, width, forced, k)
            count = _join_runs(
                row * pieces, (row + 1) * pieces, run_counts, run_keys, run_positions,
                k - first - last, keys, positions,
            )  # fmt: skip
            _write_row(keys, positions, count, length, first, last, by_score, indices, row)


def topk_rows(
    scores: np.ndarray,  # flat [n], f32, f16 or bf16
    row_stride: int,
    width: int,
    lengths: np.ndarray,  # [L] i32
    num_first: int,
    num_last: int,
    order: str,
    indices: np.ndarray,  # [R, K] i32 out
) -> None:
    """Write the indices of each row's K best elements.

    Higher score first, ties to the lower index; NaN counts as -inf, -0.0 equals 0.0.

    Parameters
    ----------
    scores : ndarray [n], float32, float16 or bfloat16
        Row r starts at element r * row_stride.
    row_stride : int
        Elements from one row to the next, >= 0.
    width : int
        The most elements of a row, up to MAX_WIDTH.
    lengths : ndarray [L] int32
        R is a multiple of L; row r has lengths[r // (R / L)] elements, clamped to [0, width].
    num_first, num_last : int
        The first and last elements of a row that are always in, and count towards K. With order
        "score" both are 0.
    order : {"position", "score"}
        Ascending indices, or descending scores with equal ones by ascending index.
    indices : ndarray [R, K] int32, K <= MAX_K
        Every slot is written; -1 after the last element.

    Raises
    ------
    ValueError
        What does not fit, what it is, what is wanted.

    Notes
    -----
    A threshold guessed from a sample, one pass that collects what reaches it, selection among those
    few: after R. W. Floyd and R. L. Rivest, "Expected time bounds for selection", CACM 18(3), 1975.
    The guess decides the time alone; the result is exact.
    """
    check_array("scores", scores, (None,))
    check_array("lengths", lengths, (None,), np.int32)
    check_array("indices", indices, (None, None), np.int32)
    check_topk(
        scores.dtype.name, scores.size, row_stride, width, lengths.size, num_first, num_last,
        order, indices.shape,
    )  # fmt: skip
    if indices.size:
        topk_rows_kernel(
            as_words(scores), int(row_stride), int(width), lengths,
            (int(num_first), int(num_last)), order == "score", get_num_threads(), indices,
        )  # fmt: skip
