"""Page scores by multiply-add instructions: any type (see `ScoreWay`)."""

from numbadsd.kernels.cuda.ops import (
    cuda,
    device,
    float32,
    int32,
    int64,
    load4,
    shfl_xor,
    store1,
    uint32,
)
from numbadsd.kernels.cuda.score_tiles import (
    NO_PAGE,
    ScoreSpec,
    ScoreWay,
    larger,
    make_row_scores,
    row_loads,
)
from numbadsd.kernels.cuda.tiles import QUAD_ROWS, QUAD_SUMS

_ROWS = 2  # of a quad: factors come from shared memory once for both
_ZERO = float32(0)


def make_fma_way(spec: ScoreSpec) -> ScoreWay:
    """Return the way that keeps a warp's factors [arrays, heads, D] in shared memory."""
    heads = max(n for n in QUAD_SUMS if n <= spec.group)
    array_words = spec.num_kv_heads * spec.group * spec.head_dim
    return ScoreWay(
        heads=heads,
        lane_scores=2,
        head_words=spec.head_dim,
        request_words=spec.arrays * array_words,
        kept_size=spec.arrays * heads * spec.head_dim,
        keep=_make_keep(spec, heads, array_words),
        score_rows=_make_score_rows(spec, heads),
        place=_place,
        largest=_largest,
        kept_type=float32,
        factors="f32[]",
        max_registers=128,
        load_bytes=16 * row_loads(spec, _ROWS),
    )


def _make_keep(spec: ScoreSpec, heads: int, array_words: int):
    """Return ``keep``: a warp copies the factors of `heads` neighbours."""
    arrays, size = spec.arrays, heads * spec.head_dim
    turns = -(-size // 128)

    @device
    def keep(factors, first, kept, first_kept, lane):
        for a in range(arrays):
            for turn in range(turns):
                i = int32(4 * lane + 128 * turn)
                if i < size:
                    numbers = load4(factors, first + int32(a * array_words + i))
                    place = first_kept + a * size + i
                    for j in range(4):
                        store1(kept, place + j, numbers[j])

    return keep


def _make_score_rows(spec: ScoreSpec, heads: int):
    """Return ``score_rows``: lane t ends with head t % heads."""
    row_scores = make_row_scores(spec, heads, _ROWS, spec.group <= heads)
    quad_sums, arrays, size = QUAD_SUMS[heads], spec.arrays, heads * spec.head_dim
    array_stride, sums_shape, num_rows = spec.num_kv_heads * spec.row.words, (_ROWS, heads), _ROWS

    @device
    def score_rows(kept, first_kept, summaries, low, high, scores, lane):
        t = lane & int32(3)
        sums = cuda.local.array(sums_shape, float32)
        for r in range(_ROWS):
            for h in range(heads):
                sums[r, h] = _ZERO
        bases = cuda.local.array(num_rows, int64)
        for a in range(arrays):
            bases[0], bases[1] = low + a * array_stride, high + a * array_stride
            row_scores(summaries, bases, kept, int32(first_kept + a * size), sums, t)
        scores[0], scores[1] = quad_sums(sums[0], t), quad_sums(sums[1], t)

    return score_rows


@device
def _place(i, lane):
    return lane & int32(3), int32((lane >> int32(2)) + i * QUAD_ROWS)


@device
def _largest(scores, lane):
    """Odd lanes go on with the high page."""
    t = lane & int32(3)
    is_odd = t & int32(1) != 0
    keep = scores[1] if is_odd else scores[0]
    give = scores[0] if is_odd else scores[1]
    keep = larger(keep, shfl_xor(give, uint32(1)))
    keep = larger(keep, shfl_xor(keep, uint32(2)))
    page = int32((lane >> int32(2)) + t * QUAD_ROWS)
    return keep, page if t < 2 else int32(NO_PAGE)
