"""The k best scores of one row, by a warp or by a block: device code.

Radix selection on an order-preserving uint32 key: the histogram of its highest bits tells in which
digit the key of the k-th best lies, then that digit's elements are counted by the next bits. So
nothing is stashed that could overflow, whatever the scores are; a row is read again for each digit,
mostly from the first-level cache. It ends early when all elements of a digit are wanted. Then every
warp takes a run of elements: sums over the runs before it tell where its own go, so that indices
come out ascending, and of equal scores the first ones.

Numbers are cast to int32 throughout: Numba adds two of them up to an int64, of which every loop
would hold two registers.
"""

from functools import cache

from numbadsd.kernels import shared
from numbadsd.kernels.cuda.ops import (
    ballot,
    bf16_low,
    cuda,
    device,
    f16_low,
    int32,
    load1,
    popc,
    quotient,
    store1,
    uint32,
)
from numbadsd.kernels.cuda.scan import make_block_sum_before, warp_sum_before

NUM_THREADS = 512
NUM_WARPS = NUM_THREADS // 32
BLOCK_BITS, WARP_BITS = 11, 7  # of a digit
NUM_BINS = 1 << BLOCK_BITS  # of a block, or of its warps together
NUM_TOTALS = 2 * NUM_WARPS  # numbers that warps of a block tell each other
NUM_FOUND = 3 * NUM_WARPS  # what `locate` finds: of a block, or of each of its warps
_BINS_A_THREAD = NUM_BINS // NUM_THREADS
assert 1 << WARP_BITS == NUM_BINS // NUM_WARPS == 32 * _BINS_A_THREAD
assert _BINS_A_THREAD == 4

SCORE_PARAMETERS = {"float32": "f32[]", "float16": "u16[]", "bfloat16": "u16[]"}

_ordered_key = device(shared.ordered_key)
block_sum_before = make_block_sum_before(NUM_WARPS)


@device
def clamped(length, width):
    """Return a row's length, whatever stands in the array: at least 0, at most `width`."""
    return max(int32(0), min(length, width))


@cache
def make_key_at(dtype: str):
    """Return ``key_at`` for scores of a type: the ordered key of one score."""
    if dtype == "float32":
        widen = device(lambda word: word)
    else:
        half = {"float16": f16_low, "bfloat16": bf16_low}[dtype]
        widen = device(lambda word: half(uint32(word)))

    @device
    def key_at(scores, at):
        return _ordered_key(widen(load1(scores, at)))

    return key_at


@device
def emit_forced(length, k, num_first, num_last, indices, out, threads):
    """Write the elements of a row that are always in; called by a group of so many threads."""
    thread = cuda.threadIdx.x % threads
    for i in range(thread, num_first, threads):
        indices[out + i] = i
    for i in range(thread, num_last, threads):
        indices[out + k - num_last + i] = length - num_last + i


@device
def _block_barrier():
    cuda.syncthreads()


@device
def _warp_barrier():
    cuda.syncwarp()


@device
def _warp_sum(number, totals):
    return warp_sum_before(number)


@cache
def make_locate(by_block: bool):
    """Return ``locate_counted`` and ``locate``, by a block or by a warp."""
    threads = NUM_THREADS if by_block else 32
    sum_before = block_sum_before if by_block else _warp_sum
    barrier = _block_barrier if by_block else _warp_barrier

    @device
    def locate_counted(counts, wanted, totals, found, place):
        """Return the digit of the `wanted`-th best, how many are above it, how many have it.

        `counts` are those of the thread's four digits, from 4 (threads - thread - 1) on.
        """
        thread = cuda.threadIdx.x % threads
        digit = int32(4 * (threads - thread) - 1)
        n_3, n_2, n_1, n_0 = counts
        above, _ = sum_before(n_0 + n_1 + n_2 + n_3, totals)
        if above < wanted and wanted <= above + n_0 + n_1 + n_2 + n_3:
            here = n_0
            if wanted > above + here:
                above, here, digit = above + here, n_1, digit - 1
                if wanted > above + here:
                    above, here, digit = above + here, n_2, digit - 1
                    if wanted > above + here:
                        above, here, digit = above + here, n_3, digit - 1
            found[place], found[place + 1], found[place + 2] = digit, above, here
        barrier()
        return found[place], found[place + 1], found[place + 2]

    @device
    def locate(histogram, first_bin, wanted, totals, found, place):
        """Return what `locate_counted` does, of a histogram that all threads have filled."""
        best = int32(first_bin + 4 * (threads - cuda.threadIdx.x % threads) - 1)
        counts = (
            load1(histogram, best - 3), load1(histogram, best - 2),
            load1(histogram, best - 1), load1(histogram, best),
        )  # fmt: skip
        return locate_counted(counts, wanted, totals, found, place)

    return locate_counted, locate


@cache
def make_kth_key(dtype: str, by_block: bool):
    """Return ``kth_key``, by a block or by a warp."""
    threads, most_bits = (NUM_THREADS, BLOCK_BITS) if by_block else (32, WARP_BITS)
    barrier = _block_barrier if by_block else _warp_barrier
    key_at, (_, locate) = make_key_at(dtype), make_locate(by_block)

    @device
    def kth_key(scores, base, count, wanted, histogram, first_bin, totals, found, place):
        """Return a key and a number: wanted are the keys above it, and the first so many like it.

        `count` > `wanted` > 0.
        """
        thread = cuda.threadIdx.x % threads
        prefix, mask = uint32(0), uint32(0)
        shift = int32(32)
        while shift > 0:
            bits = min(int32(most_bits), shift)
            shift = int32(shift - bits)
            low = uint32((1 << bits) - 1)
            for i in range(4):
                store1(histogram, int32(first_bin + thread + i * threads), int32(0))
            barrier()
            for i in range(int32(thread), int32(count), int32(threads)):
                key = key_at(scores, base + i)
                if uint32(key & mask) == prefix:
                    digit = uint32(uint32(key >> uint32(shift)) & low)
                    cuda.atomic.add(histogram, first_bin + int32(digit), 1)
            barrier()
            digit, above, here = locate(histogram, first_bin, wanted, totals, found, place)
            prefix = uint32(prefix | uint32(uint32(digit) << uint32(shift)))
            mask = uint32(mask | uint32(low << uint32(shift)))
            wanted = int32(wanted - above)
            if here == wanted and prefix > uint32(0):
                prefix = uint32(prefix - uint32(1))
                wanted = int32(0)
                shift = int32(0)
        return prefix, wanted

    return kth_key


@cache
def make_emit(dtype: str):
    """Return ``count_run`` and ``emit_run``, which warps call for a run of elements."""
    key_at = make_key_at(dtype)

    @device
    def count_run(scores, base, begin, end, threshold):
        """Return how many keys of a run are above the threshold, and how many equal it."""
        lane = cuda.threadIdx.x % 32
        num_above, num_equal = int32(0), int32(0)
        for tile in range(int32(begin), int32(end), int32(32)):
            i = int32(tile + lane)
            key = key_at(scores, base + min(i, int32(end - 1)))
            above = ballot(uint32(i < end and key > threshold))
            equal = ballot(uint32(i < end and key == threshold))
            num_above = int32(num_above + int32(popc(above)))
            num_equal = int32(num_equal + int32(popc(equal)))
        return num_above, num_equal

    @device
    def emit_run(scores, base, begin, end, threshold, wanted, before, indices, out, first_index):
        """Write the run's chosen indices; before: how many of its row are above, and equal."""
        lane = cuda.threadIdx.x % 32
        lower_lanes = uint32((uint32(1) << uint32(lane)) - uint32(1))
        above_before, equal_before = before
        for tile in range(int32(begin), int32(end), int32(32)):
            i = int32(tile + lane)
            key = key_at(scores, base + min(i, int32(end - 1)))
            is_above, is_equal = i < end and key > threshold, i < end and key == threshold
            above, equal = ballot(uint32(is_above)), ballot(uint32(is_equal))
            rank = int32(equal_before + int32(popc(uint32(equal & lower_lanes))))
            place = int32(above_before + int32(popc(uint32(above & lower_lanes))))
            if is_above or (is_equal and rank < wanted):
                place = int32(place + min(rank, wanted))
                store1(indices, out + place, int32(first_index + i))
            above_before = int32(above_before + int32(popc(above)))
            equal_before = int32(equal_before + int32(popc(equal)))

    return count_run, emit_run


@cache
def make_emit_block(dtype: str):
    """Return ``emit_block``: a block writes what it chose of elements [begin, end)."""
    count_run, emit_run = make_emit(dtype)

    @device
    def emit_block(
        scores, base, begin, end, threshold, wanted, before, totals, indices, out, first_index
    ):
        thread = cuda.threadIdx.x
        lane, warp = thread % 32, thread // 32
        size = int32(quotient(end - begin + NUM_THREADS - 1, NUM_THREADS) * 32)
        own = min(int32(begin + warp * size), end)
        own_end = min(int32(own + size), end)
        num_above, num_equal = count_run(scores, base, own, own_end, threshold)
        if lane == 0:
            totals[warp], totals[NUM_WARPS + warp] = num_above, num_equal
        cuda.syncthreads()
        above_before, equal_before = before
        for other in range(NUM_WARPS):
            if other < warp:
                above_before = int32(above_before + totals[other])
                equal_before = int32(equal_before + totals[NUM_WARPS + other])
        before = (above_before, equal_before)
        emit_run(scores, base, own, own_end, threshold, wanted, before, indices, out, first_index)

    return emit_block
