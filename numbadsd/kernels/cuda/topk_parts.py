"""The k best scores of long rows, each by several blocks: four launches, no block waits.

A launch counts the next digit of the keys, every block those of its part, into memory of its own;
the launch after it adds the counts up and knows the digit. Every launch writes all that the next
ones read, so that nothing has to be reset, and the same launches do for rows of any lengths.
"""

from functools import cache

from numbadsd.kernels.cuda.launch import Kernel
from numbadsd.kernels.cuda.ops import cuda, device, int32, int64, load1, load4, quotient, uint32
from numbadsd.kernels.cuda.topk_row import (
    NUM_BINS,
    NUM_FOUND,
    NUM_THREADS,
    NUM_TOTALS,
    SCORE_PARAMETERS,
    block_sum_before,
    clamped,
    emit_forced,
    make_emit_block,
    make_key_at,
    make_locate,
)

DIGITS = ((21, 11), (10, 11), (0, 10))  # lowest bit, bits
COUNTS_SIZE = len(DIGITS) * NUM_BINS  # of a part
STATE_SIZE = 2 * (len(DIGITS) - 1)  # of a row: prefix and wanted, when a digit is known
ABOVE_SIZE = len(DIGITS) - 1  # of a part: its elements above each digit, once that is known

_MEMORY = ("i32[]", "i32[]", "u32[]", "i32[]")  # lengths, counts, state, above
_SHAPE = ("i32",) * 2 + ("i64",) + ("i32",) * 6
_locate, _ = make_locate(by_block=True)


@device
def _part_of(count, part, parts):
    """Return the elements [begin, end) of a part of a row."""
    size = int32((quotient(count - 1, parts * 32) + 1) * 32)
    begin = min(int32(part * size), int32(count))
    return begin, min(int32(begin + size), int32(count))


@device
def _first_digit():
    """Return the first of the four digits whose counts a thread has, as `_locate` wants them."""
    return int32(4 * (NUM_THREADS - 1 - cuda.threadIdx.x))


@device
def _plus(a, b):
    """Return the sums of two times four numbers."""
    return int32(a[0] + b[0]), int32(a[1] + b[1]), int32(a[2] + b[2]), int32(a[3] + b[3])


@device
def _load_part(counts, first, part, end):
    """Return the thread's four counts in a part of the row at `first`; zeros from part `end` on."""
    zero = int32(0)
    four = (zero, zero, zero, zero)
    if part < end:
        four = load4(counts, first + part * NUM_BINS + _first_digit())
    return four


@device
def _sum_counts(counts, first, begin, end):
    """Return the thread's four counts over parts [begin, end), with four loads on their way."""
    zero = int32(0)
    total = (zero, zero, zero, zero)
    for part in range(int32(begin), int32(end), int32(4)):
        a, b = _load_part(counts, first, part, end), _load_part(counts, first, part + 1, end)
        c, d = _load_part(counts, first, part + 2, end), _load_part(counts, first, part + 3, end)
        total = _plus(total, _plus(_plus(a, b), _plus(c, d)))
    return total


@device
def _know_digit(row_counts, prefix, wanted, shift, totals, found):
    """Return prefix and wanted with one digit more, and the digit."""
    digit, num_above, _ = _locate(row_counts, wanted, totals, found, 0)
    prefix = uint32(prefix | uint32(uint32(digit) << shift))
    return prefix, int32(wanted - num_above), digit


@device
def _if(condition, number):
    return number if condition else int32(0)


@device
def _compare(four, digit):
    """Return how many elements of the thread's four counts are above a digit, and have it."""
    place = int32(digit - _first_digit())
    above = _if(place < 0, four[0]) + _if(place < 1, four[1])
    above += _if(place < 2, four[2]) + _if(place < 3, four[3])
    equal = _if(place == 0, four[0]) + _if(place == 1, four[1])
    equal += _if(place == 2, four[2]) + _if(place == 3, four[3])
    return int32(above), int32(equal)


@cache
def count_digit_kernel(dtype: str, step: int) -> Kernel:
    """Return the kernel that counts a digit of long rows; the digit before it becomes known.

    Work      one block per row and part
    Block     512 threads
    Writes    counts[step, row, part, :], state[row, step - 1], above[step - 1, row, part]
    Bytes     reads 2 or 4 per score, and in each block the row's counts of the digit before
    """
    key_at = make_key_at(dtype)
    shift, low = uint32(DIGITS[step][0]), uint32((1 << DIGITS[step][1]) - 1)
    last_shift = uint32(DIGITS[step - 1][0])
    mask = uint32((0xFFFFFFFF << sum(DIGITS[step])) & 0xFFFFFFFF)  # the digits before

    def count_digit(
        scores, lengths, counts, state, above, rows, rows_per_length, row_stride, width, k,
        num_first, num_last, block_length, parts,
    ):  # fmt: skip
        histogram = cuda.shared.array(NUM_BINS, int32)
        totals = cuda.shared.array(NUM_TOTALS, int32)
        found = cuda.shared.array(NUM_FOUND, int32)
        thread = cuda.threadIdx.x
        row = quotient(cuda.blockIdx.x, parts)
        part = cuda.blockIdx.x - row * parts
        length = clamped(lengths[quotient(row, rows_per_length)], width)
        wanted = k - num_first - num_last
        if length > max(k, block_length) and wanted > 0:
            prefix = uint32(0)
            if step > 0:
                if step > 1:
                    prefix, wanted = state[row * STATE_SIZE], int32(state[row * STATE_SIZE + 1])
                first = (int64(step - 1) * rows + row) * parts
                own = _load_part(counts, first * NUM_BINS, part, parts)
                row_counts = _sum_counts(counts, first * NUM_BINS, 0, parts)
                prefix, wanted, digit = _know_digit(
                    row_counts, prefix, wanted, last_shift, totals, found
                )
                num_above, _ = _compare(own, digit)
                _, num_above = block_sum_before(num_above, totals)
                if thread == 0:
                    above[first + part] = num_above
                    if part == 0:
                        at = row * STATE_SIZE + 2 * (step - 1)
                        state[at], state[at + 1] = prefix, uint32(wanted)
            for bin in range(thread, NUM_BINS, NUM_THREADS):
                histogram[bin] = 0
            cuda.syncthreads()
            begin, end = _part_of(length - num_first - num_last, part, parts)
            base = int64(row) * row_stride + num_first
            for i in range(int32(begin + thread), end, int32(NUM_THREADS)):
                key = key_at(scores, base + i)
                if uint32(key & mask) == prefix:
                    cuda.atomic.add(histogram, int32(uint32(key >> shift) & low), 1)
            cuda.syncthreads()
            first = ((int64(step) * rows + row) * parts + part) * NUM_BINS
            for bin in range(thread, NUM_BINS, NUM_THREADS):
                counts[first + bin] = histogram[bin]

    return Kernel(
        name=f"count_digit_{dtype}_{step}",
        function=count_digit,
        parameters=(SCORE_PARAMETERS[dtype], *_MEMORY, *_SHAPE),
        num_threads=NUM_THREADS,
        max_registers=64,
        load_bytes=4,
    )


@cache
def emit_parts_kernel(dtype: str) -> Kernel:
    """Return the kernel that writes the indices of long rows, all digits but the last known.

    Work      one block per row and part
    Block     512 threads
    Writes    indices[row, :] of long rows
    Bytes     reads 2 or 4 per score twice, and in each block the row's counts of the last digit
    """
    emit_block = make_emit_block(dtype)
    last = len(DIGITS) - 1
    last_shift = uint32(DIGITS[last][0])

    def emit_parts(
        scores, lengths, counts, state, above, indices, rows, rows_per_length, row_stride, width, k,
        num_first, num_last, block_length, parts,
    ):  # fmt: skip
        totals = cuda.shared.array(NUM_TOTALS, int32)
        found = cuda.shared.array(NUM_FOUND, int32)
        thread = cuda.threadIdx.x
        row = quotient(cuda.blockIdx.x, parts)
        part = cuda.blockIdx.x - row * parts
        length = clamped(lengths[quotient(row, rows_per_length)], width)
        if length > max(k, block_length):
            out = int64(row) * k
            if part == 0:
                emit_forced(length, k, num_first, num_last, indices, out, NUM_THREADS)
            if k > num_first + num_last:
                at = row * STATE_SIZE + 2 * (last - 1)
                first = (int64(last) * rows + row) * parts * NUM_BINS
                counts_before = _sum_counts(counts, first, 0, part)
                row_counts = _plus(counts_before, _sum_counts(counts, first, part, parts))
                threshold, wanted, digit = _know_digit(
                    row_counts, state[at], int32(state[at + 1]), last_shift, totals, found
                )
                num_above, num_equal = _compare(counts_before, digit)
                for other in range(int32(thread), int32(part), int32(NUM_THREADS)):
                    for step in range(last):
                        place = (int64(step) * rows + row) * parts + other
                        num_above = int32(num_above + load1(above, place))
                _, num_above = block_sum_before(num_above, totals)
                _, num_equal = block_sum_before(num_equal, totals)
                begin, end = _part_of(length - num_first - num_last, part, parts)
                emit_block(
                    scores, int64(row) * row_stride + num_first, begin, end, threshold, wanted,
                    (num_above, num_equal), totals, indices, out + num_first, num_first,
                )  # fmt: skip

    return Kernel(
        name=f"emit_parts_{dtype}",
        function=emit_parts,
        parameters=(SCORE_PARAMETERS[dtype], *_MEMORY, "i32[]", *_SHAPE),
        num_threads=NUM_THREADS,
        max_registers=64,
        load_bytes=4,
    )
