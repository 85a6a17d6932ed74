"""Page scores on tensor cores: summaries of halves, factors as sums of halves (see `ScoreWay`).

    scores [8 heads, 8 pages] += parts of factors [2 x 8 heads, 16 d] x summaries [16 d, 8 pages]

A sum over d may take d in any order: a lane reads 16 bytes of the rows g and g + 8, and factors lie
in memory as the instruction reads them (see `score_parts`). Lane 4 g + t ends with head g and the
pages 2 t, 2 t + 1 and these + 8.
"""

from numbadsd.kernels.cuda.attend_spec import MMA_HEADS
from numbadsd.kernels.cuda.mma_parts import CHAIN, HALVES, KEY_LANES, STEP
from numbadsd.kernels.cuda.mma_step import key_pieces, make_load_row
from numbadsd.kernels.cuda.ops import (
    bits_to_f32,
    cuda,
    device,
    float32,
    int32,
    load1,
    load4,
    shfl_xor,
    store1,
    uint32,
)
from numbadsd.kernels.cuda.score_parts import LANE_WORDS, PartsLayout
from numbadsd.kernels.cuda.score_tiles import NO_PAGE, NUM_WARPS, ScoreSpec, ScoreWay, larger
from numbadsd.kernels.cuda.tiles import QUAD_ROWS, Row, unroll

_MAX_KEPT_WORDS = (40 << 10) // 4 // NUM_WARPS  # a block has 48 KB of shared memory
_ZERO = float32(0)


def make_mma_way(spec: ScoreSpec) -> ScoreWay:
    """Return the way that keeps a warp's words of factors in shared memory."""
    layout, heads = PartsLayout(spec), min(MMA_HEADS, spec.group)
    if heads * layout.head_words > _MAX_KEPT_WORDS:
        heads //= 2
    loads = 2 * spec.arrays * -(-spec.row.words // (4 * KEY_LANES))
    return ScoreWay(
        heads=heads,
        lane_scores=4,
        head_words=layout.head_words,
        request_words=layout.head_words * spec.num_kv_heads * spec.group,
        kept_size=heads * layout.head_words,
        keep=_make_keep(heads * layout.head_words),
        score_rows=_make_score_rows(spec, layout, heads),
        place=_place,
        largest=_largest,
        kept_type=uint32,
        factors="u32[]",
        max_registers=_registers(loads, layout.products),
        load_bytes=16 * loads,
    )


def _registers(loads: int, products: int) -> int:
    """Return the budget of a thread that holds so many loads of 16 bytes.

    With 96, 128 or 168, five, four or three blocks fit: 64 KB in flight or more.
    """
    if loads <= 8:
        return 96 if products == 1 else 128
    return 128 if loads <= 10 else 168


def _make_keep(size: int):
    """Return ``keep``: a warp copies the words of neighbouring heads."""
    turns = -(-size // 128)

    @device
    def keep(factors, first, kept, first_kept, lane):
        for turn in range(turns):
            i = int32(4 * lane + 128 * turn)
            if i < size:
                words, place = load4(factors, first + i), first_kept + i
                for j in range(4):
                    store1(kept, place + j, words[j])

    return keep


def _make_multiply(row: Row, layout: PartsLayout):
    """Return ``multiply``: add the products of two rows of a quad with the factors at `place`."""
    mma, zeros, sums_shape = HALVES[row.kv_dtype].mma, (_ZERO, _ZERO, _ZERO, _ZERO), (2, 4)
    steps = row.head_dim // STEP

    @device
    def add_chain(i, words, first_row, kept, place, scores, sums):
        s = i % steps
        f = load4(kept, place + i * (LANE_WORDS * KEY_LANES))
        for n in range(2):
            c = zeros
            if s % CHAIN:
                c = sums[n, 0], sums[n, 1], sums[n, 2], sums[n, 3]
            b0, b1 = words[first_row + n, 2 * s], words[first_row + n, 2 * s + 1]
            c = mma(f[0], f[1], f[2], f[3], b0, b1, c[0], c[1], c[2], c[3])
            for j in range(4):
                sums[n, j] = c[j]
            if s % CHAIN == CHAIN - 1 or s == steps - 1:
                for j in range(2):
                    if i < steps:
                        scores[2 * n + j] += c[j] + c[j + 2]
                    else:  # of the second product, rows g + 8 mean nothing
                        scores[2 * n + j] += c[j]

    add_chains = unroll(add_chain, layout.products * steps)

    @device
    def multiply(words, first_row, kept, place, scores):
        sums = cuda.local.array(sums_shape, float32)
        add_chains(words, first_row, kept, place, scores, sums)

    return multiply


def _make_score_rows(spec: ScoreSpec, layout: PartsLayout, heads: int):
    """Return ``score_rows``."""
    row = spec.row
    load_row = make_load_row(key_pieces(row), spec.group > heads)
    multiply, last_head = _make_multiply(row, layout), heads - 1
    array_stride, array_words = spec.num_kv_heads * row.words, layout.array_words
    head_words, inverse_word, arrays = layout.head_words, layout.inverse, spec.arrays
    words_shape = (2 * arrays, row.words // KEY_LANES)

    @device
    def score_rows(kept, first_kept, summaries, low, high, scores, lane):
        t, head = lane & int32(3), min(lane >> int32(2), int32(last_head))  # those beyond: the last
        for i in range(4):
            scores[i] = _ZERO
        place = int32(first_kept + head * head_words)
        words = cuda.local.array(words_shape, uint32)
        for a in range(arrays):
            load_row(summaries, low + a * array_stride, t, words, 2 * a)
            load_row(summaries, high + a * array_stride, t, words, 2 * a + 1)
        cuda.syncwarp()  # all rows are on their way before the first factor is read
        for a in range(arrays):
            multiply(words, 2 * a, kept, int32(place + a * array_words + t * LANE_WORDS), scores)
        inverse = bits_to_f32(load1(kept, int32(place + inverse_word)))
        for i in range(4):
            scores[i] = scores[i] * inverse

    return score_rows


@device
def _place(i, lane):
    return lane >> int32(2), int32((lane & int32(3)) * 2 + (i // 2 * QUAD_ROWS + i % 2))


@device
def _largest(scores, lane):
    """Halves of the lanes go on with half of the pages, and again."""
    is_high, is_odd = lane & int32(4) != 0, lane & int32(8) != 0
    low = scores[2] if is_high else scores[0]
    give = scores[0] if is_high else scores[2]
    low = larger(low, shfl_xor(give, uint32(4)))
    high = scores[3] if is_high else scores[1]
    give = scores[1] if is_high else scores[3]
    high = larger(high, shfl_xor(give, uint32(4)))
    keep = high if is_odd else low
    give = low if is_odd else high
    keep = larger(keep, shfl_xor(give, uint32(8)))
    keep = larger(keep, shfl_xor(keep, uint32(16)))
    page = int32((lane & int32(3)) * 2 + ((lane >> int32(3)) & int32(1)))
    if is_high:
        page = int32(page + QUAD_ROWS)
    return keep, page if lane < 16 else int32(NO_PAGE)
