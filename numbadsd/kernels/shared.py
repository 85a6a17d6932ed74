"""Scalar maths written once and compiled for every target.

Plain functions with no decorator: a backend wraps them with its own compiler, and a test calls them
with NumPy scalars. Nothing here reassociates or contracts, so that the result is the same on every
machine.
"""

import numpy as np

NEG_INF = np.float32(-np.inf)

# exp(x) = 2^n * exp(r), n = round(x / ln 2), r = x - n ln 2 in two steps (Cody & Waite 1980), so
# that r keeps float32 accuracy. Polynomial of exp on |r| <= ln(2)/2: Cephes expf (Moshier).
LOG2_E = np.float32(1.4426950408889634)
_MINUS_LN2_HIGH = np.float32(-0.693359375)
_MINUS_LN2_LOW = np.float32(2.12194440e-4)
_ROUND = np.float32(12582912.0)  # 1.5 * 2^23: adding it leaves round(x) in the low bits
_MINUS_ROUND = np.float32(-12582912.0)
_EXP_LOWEST = np.float32(-87.0)  # below, exp would be subnormal: flushed to 0
_ONE = np.float32(1.0)
_C0 = np.float32(1.9875691500e-4)
_C1 = np.float32(1.3981999507e-3)
_C2 = np.float32(8.3334519073e-3)
_C3 = np.float32(4.1665795894e-2)
_C4 = np.float32(1.6666665459e-1)
_C5 = np.float32(5.0000001201e-1)
_ONE_BITS = np.int32(0x3F800000)
_MANTISSA_BITS = np.int32(23)


def two_to(shifted):
    """Return 2^n in float32, where n stands in the low bits of `shifted`."""
    exponent = np.int32(np.float32(shifted).view(np.int32) << _MANTISSA_BITS)
    return np.int32(exponent + _ONE_BITS).view(np.float32)


def at_least(x, low):
    """Return the larger of x and low; NaN stays NaN."""
    return low if x < low else x


def zero_below(x, low, result):
    """Return 0 where x is below low, else the result."""
    return np.float32(0.0) if x < low else result


def make_exp_nonpositive(lift, fma, two_to, at_least, zero_below):
    """Return ``exp_nonpositive`` for scalars or vectors, given a backend's five instructions.

    `lift` makes a number a scalar or vector of the kind that x is; `fma(a, b, c)` is a * b + c
    rounded once; the others are as the functions of these names.
    """

    def exp_nonpositive(x):
        """Return exp(x) for x <= 0: 0 below -87 and at -inf, NaN at NaN, exactly 1 at 0."""
        low = lift(_EXP_LOWEST)
        clamped = at_least(x, low)
        shifted = fma(clamped, lift(LOG2_E), lift(_ROUND))
        n = shifted + lift(_MINUS_ROUND)
        r = fma(n, lift(_MINUS_LN2_HIGH), clamped)
        r = fma(n, lift(_MINUS_LN2_LOW), r)
        p = fma(lift(_C0), r, lift(_C1))
        p = fma(p, r, lift(_C2))
        p = fma(p, r, lift(_C3))
        p = fma(p, r, lift(_C4))
        p = fma(p, r, lift(_C5))
        p = fma(p * r, r, r) + lift(_ONE)
        return zero_below(x, low, p * two_to(shifted))

    return exp_nonpositive


def softmax_shift(maximum):
    """Return what is subtracted before exp: the maximum, or 0 where every score is -inf."""
    return np.float32(0.0) if maximum == NEG_INF else maximum


MEAN_BOUND, MINMAX_BOUND, RADIUS_BOUND = 0, 1, 2


def first_factor(bound, q):
    """Return what multiplies a summary's first vector (mean, low, centre) in a page's score.

    Every bound is linear in the summary: ``q . mean``; ``sum_d max(q_d low_d, q_d high_d)`` (Quest,
    Tang et al. 2024), which is ``min(q, 0) . low + max(q, 0) . high`` for finite keys; and
    ``q . centre + |q| . radius``.
    """
    if bound == MINMAX_BOUND:
        return min(q, np.float32(0.0))
    return q


def second_factor(bound, q):
    """Return what multiplies a summary's second vector (high, radius, std)."""
    if bound == MINMAX_BOUND:
        return max(q, np.float32(0.0))
    return abs(q)


def row_of(indptr, index):
    """Return the row of a CSR table that holds `index`: the last that starts at or before it."""
    low, high = 0, indptr.size - 1
    while high - low > 1:
        middle = (low + high) // 2
        if indptr[middle] <= index:
            low = middle
        else:
            high = middle
    return low


SPLIT_TOKENS = (64, 128, 256)  # of a split on the GPU, by the tokens of its row
_ROW_TOKENS = (1024, 4096)  # rows up to here take the first, the second


def split_pages(row_pages, page_size):
    """Return the pages of a split: more for longer rows, so that short ones fill a device too.

    It depends on the row's own length alone, so that a request is cut alike in any batch.
    """
    tokens = row_pages * page_size
    if tokens <= _ROW_TOKENS[0]:
        return max(1, SPLIT_TOKENS[0] // page_size)
    if tokens <= _ROW_TOKENS[1]:
        return max(1, SPLIT_TOKENS[1] // page_size)
    return max(1, SPLIT_TOKENS[2] // page_size)


def most_splits(max_pages, page_size):
    """Return the most splits of any row of up to `max_pages` pages; at least 1."""
    steps = [min(max_pages, tokens // page_size) for tokens in _ROW_TOKENS]
    lengths = [pages for pages in (*steps, max_pages) if pages]
    return max([1, *(-(-pages // split_pages(pages, page_size)) for pages in lengths)])


_SIGN_BIT = np.uint32(0x80000000)
_ALL_BITS = np.uint32(0xFFFFFFFF)


def ordered_key(score):
    """Return a uint32 that orders as the float32 score does; NaN as -inf, -0.0 as 0.0."""
    number = np.float32(score + np.float32(0.0))  # -0.0 + 0.0 is +0.0
    if number != number:
        number = NEG_INF
    bits = np.uint32(np.float32(number).view(np.uint32))
    return np.uint32(bits ^ (_ALL_BITS if bits & _SIGN_BIT else _SIGN_BIT))


QUERY, KEY, VALUE = 0, 1, 2  # random streams of a request

_GOLDEN = np.uint32(0x9E3779B9)
_MIX_1 = np.uint32(0x21F0AAAD)
_MIX_2 = np.uint32(0x735A2D97)


def mix32(x):
    """Return a well-mixed uint32 of a uint32: a bijective finalizer (Wellons, hash-prospector)."""
    x = np.uint32(x ^ (x >> np.uint32(16)))
    x = np.uint32(x * _MIX_1)
    x = np.uint32(x ^ (x >> np.uint32(15)))
    x = np.uint32(x * _MIX_2)
    return np.uint32(x ^ (x >> np.uint32(15)))


def make_row_key(mix):
    """Return ``row_key``, given a backend's compiled `mix32`: only it can be called."""

    def row_key(seed, request_id, kind, token):
        """Return the uint32 that names one token's row of one request's random stream."""
        key = mix(np.uint32(np.uint32(seed) ^ _GOLDEN))
        key = mix(np.uint32(key ^ np.uint32(request_id)))
        key = mix(np.uint32(key ^ np.uint32(kind)))
        return mix(np.uint32(key ^ mix(np.uint32(token))))

    return row_key


def make_uniform_at(mix):
    """Return ``uniform_at``, given a backend's compiled `mix32`."""

    def uniform_at(row_key, channel):
        """Return a float32 uniform in [-1, 1), a pure function of a row's key and the channel."""
        word = mix(np.uint32(row_key + np.uint32(np.uint32(channel) * _GOLDEN)))
        return np.float32(word >> np.uint32(8)) * np.float32(2.0**-23) - _ONE

    return uniform_at
