"""The k best of a run of scores, in one thread: exact, linear in the run, and little but comparing.

    sample --> guessed threshold --> candidates (every score that reaches it) --> the k best of them
               (any value is safe)   in a scratch of bounded size                 (bisection)

A scratch is two arrays, `keys` and `positions`: the candidates in ascending position. What a guess
costs when it is wrong is time: too low, the scratch fills and is reduced to its k best, from where
on only scores above the k-th are candidates (an equal one comes later, so it loses); too high,
fewer than k are found and the run is read again without a guess.

The k-th key of a scratch is found by bisecting the 32 bits of a key, counting at each step the keys
that reach the middle. That is at most 32 passes, of one comparison per 16 keys and no branch; a
histogram reads and writes memory for every key, and is cleared and searched besides.
"""

import math

import numpy as np

from numbadsd.kernels import shared
from numbadsd.kernels.cpu.jit import device
from numbadsd.kernels.cpu.keys import (
    KEY_LANES,
    count_at_least,
    keys_at_least,
    load_keys,
    lowest_bit,
    ordered_keys,
    scores_at_least,
    splat_keys,
    store_keys,
    sum_counts,
)
from numbadsd.kernels.cpu.memory import load16, load64, load_word
from numbadsd.kernels.cpu.simd import splat64

# Runs of up to DIRECT elements, or 4 k, are all candidates: measured, one thread, us a run, direct
# | guess: 512 k 64 0.60 | 0.92; 1024 k 64 1.10 | 1.16; 2048 k 64 2.08 | 1.61; 2048 k 512 2.57 |
# 3.41; 8192 k 1024 10.8 | 8.2; 8192 k 2048 12.4 | 12.6.
DIRECT = 1024
DIRECT_TIMES_K = 4
# A scratch holds four times k, so that reducing it, a pass over it, drops three quarters. It also
# holds the sample: one line of 16 scores in 256 (within 10 % of every other step from 128 to 1024),
# fewer in a run of over 65,536.
MIN_CAPACITY = 4096
SAMPLE_LINE = 16
SAMPLE_STEP = 256

_LOWEST_KEY = 0x007FFFFF  # of -inf: no score is below
_ABOVE_KEYS = 0xFF800001  # the key of +inf, plus 1
_SIGN_BIT = np.uint32(0x80000000)
_ALL_BITS = np.uint32(0xFFFFFFFF)
_EVERY_LANE = np.uint64(0xFFFFFFFFFFFFFFFF)
_NO_KEY = np.uint32(0)
_ordered_key = device(shared.ordered_key)


@device
def scratch_size(k):
    """Return the elements of `keys` and of `positions`: the most candidates, and a block."""
    return max(MIN_CAPACITY, DIRECT_TIMES_K * k) + KEY_LANES


@device
def _score_of(key):
    """Return the float32 of an ordered key; NaN, which no score reaches, of one above +inf's."""
    bits = np.uint32(key)
    flips = _SIGN_BIT if bits & _SIGN_BIT else _ALL_BITS
    return np.uint32(bits ^ flips).view(np.float32)


@device
def _count_at_least(keys, count, low_key):
    """Return how many of keys[:count] are at least `low_key`; the block is filled with 0."""
    low, totals = splat_keys(np.uint32(low_key)), splat_keys(_NO_KEY)
    for i in range(0, count, KEY_LANES):
        totals = count_at_least(totals, load_keys(keys, i), low)
    return sum_counts(totals)


@device
def _find_threshold(keys, count, least, most):
    """Return a threshold and how many of keys[:count], at least `least`, reach it.

    At most `most` do, unless keys are equal: then the threshold is the `least`-th largest key.
    """
    store_keys(keys, count, splat_keys(_NO_KEY))
    # always: `reached` keys, at least `least`, reach low; fewer than `least` reach high
    low, high, reached = np.int64(_LOWEST_KEY), np.int64(_ABOVE_KEYS), np.int64(count)
    while reached > most and high - low > 1:
        middle = (low + high) >> 1
        here = _count_at_least(keys, count, middle)
        enough = here >= least
        low, high = (middle if enough else low), (high if enough else middle)
        reached = here if enough else reached
    return low, reached


@device
def keep_best(keys, positions, count, k):
    """Reduce count > k candidates to the k best, still ascending; returns their threshold.

    An element behind them belongs to the k best of all only if its key is above the threshold.
    """
    threshold, reached = _find_threshold(keys, count, k, k)
    equals = np.int64(k)  # how many keys equal to the threshold to keep
    if reached > k:
        equals -= _count_at_least(keys, count, threshold + 1)
    low, kept = splat_keys(np.uint32(threshold)), 0
    for block in range(0, count, KEY_LANES):
        bits = keys_at_least(load_keys(keys, block), low)
        while bits != 0:
            i = block + lowest_bit(bits)
            bits &= bits - np.uint64(1)
            if keys[i] == threshold:
                if equals == 0:
                    continue
                equals -= 1
            keys[kept], positions[kept] = keys[i], positions[i]  # kept <= i
            kept += 1
    return threshold


@device
def _take_all(scores, begin, end, keys, positions):
    """Make every element a candidate; returns their number."""
    count = end - begin
    if count < KEY_LANES:
        for i in range(count):
            keys[i] = _ordered_key(load_word(scores, 0, begin + i))
    else:
        for i in range(0, count - KEY_LANES, KEY_LANES):
            store_keys(keys, i, ordered_keys(load64(scores, 0, begin + i)))
        last = count - KEY_LANES  # the last block overlaps the one before
        store_keys(keys, last, ordered_keys(load64(scores, 0, begin + last)))
    for i in range(count):
        positions[i] = i
    return count


@device
def _guess_threshold(scores, begin, end, k, keys):
    """Return a threshold that a few more than k elements are likely to reach.

    Of a sample about `share` are among the k best, give or take its square root: the rank aimed at
    is four of those above, and 4 for the shares where the root says little.
    """
    step = max(SAMPLE_STEP, SAMPLE_LINE * ((end - begin - 1) // MIN_CAPACITY + 1))
    count = 0
    for i in range(begin, end - SAMPLE_LINE + 1, step):
        store_keys(keys, count, ordered_keys(load16(scores, 0, i)))
        count += SAMPLE_LINE
    share = k * count / (end - begin)
    rank = int(share + 4 * math.sqrt(share) + 4)
    return _find_threshold(keys, count, rank, rank + rank // 4)[0]


@device
def _collect(scores, begin, i, end, low, keys, positions, count):
    """Make each element from i on that reaches `low` a candidate, while there is room.

    Returns the number of candidates, and the element to go on with.
    """
    limit = keys.size - 2 * KEY_LANES  # room for the candidates of one more block
    while i < end and count <= limit:
        block = min(i, end - KEY_LANES)  # the last block overlaps the one before
        bits = scores_at_least(load64(scores, 0, block), low)
        bits &= _EVERY_LANE << np.uint64(i - block)
        while bits != 0:
            at = block + lowest_bit(bits)
            bits &= bits - np.uint64(1)
            keys[count] = _ordered_key(load_word(scores, 0, at))
            positions[count] = at - begin
            count += 1
        i = block + KEY_LANES
    return count, i


@device
def best_of_run(scores, begin, end, k, keys, positions):
    """Put the k best of scores[0, begin:end] in the scratch, ascending; returns their number.

    `positions` count from `begin`. The number is k, or end - begin where that is less. A scratch
    is reduced when it holds at least 3 k new candidates, so the whole is linear for any scores.
    """
    if k == 0:
        return 0
    length = end - begin
    threshold, count, i = np.int64(_LOWEST_KEY), 0, begin
    if length <= max(DIRECT, DIRECT_TIMES_K * k):
        count, i = _take_all(scores, begin, end, keys, positions), end
    else:
        threshold = _guess_threshold(scores, begin, end, k, keys)
    while True:
        low = splat64(_score_of(threshold))
        count, i = _collect(scores, begin, i, end, low, keys, positions, count)
        if count > k:
            threshold, count = keep_best(keys, positions, count, k) + 1, k
        if i >= end:
            if count == min(k, length):
                return count
            threshold, count, i = np.int64(_LOWEST_KEY), 0, begin  # the guess was too high


@device
def sort_by_score(keys, positions, count):
    """Order candidates by descending key, equal ones by ascending position."""
    ranks = np.empty(count, np.uint64)  # smaller is better, and no two are equal
    for i in range(count):
        ranks[i] = np.uint64(~keys[i]) << np.uint64(32) | np.uint64(positions[i])
    gap = 1
    while gap < count // 3:
        gap = 3 * gap + 1
    while gap > 0:  # Shell's sort, with Knuth's gaps: short, and k is at most a few thousand
        for i in range(gap, count):
            rank, j = ranks[i], i
            while j >= gap and ranks[j - gap] > rank:
                ranks[j] = ranks[j - gap]
                j -= gap
            ranks[j] = rank
        gap //= 3
    for i in range(count):
        positions[i] = np.int32(ranks[i] & np.uint64(0xFFFFFFFF))
