"""Partial attention on tensor cores: what `attend_splits` takes of it (see `Way`).

Queries lie in shared memory as the instruction reads them: for 16 d, a lane's four words. A product
has 16 rows and a warp eight heads, so the rows g and g + 8 are two parts of head g:

    float16     first product: parts 1, 2
    bfloat16    first product: parts 1, 2     second product: part 3, 0
"""

from numbadsd.kernels.cuda.attend_spec import MMA_HEADS, AttendSpec, Way
from numbadsd.kernels.cuda.mma_parts import (
    HALVES,
    STEP,
    WEIGHT_UNSCALE,
    Halves,
    make_key_word,
    make_scale,
)
from numbadsd.kernels.cuda.mma_step import make_mma_step, value_pieces
from numbadsd.kernels.cuda.ops import (
    bits_to_f32,
    cuda,
    device,
    f32_to_bits,
    float32,
    int32,
    load1,
    store1,
    uint32,
)
from numbadsd.kernels.cuda.tiles import Row, quad_sum, unroll

_LOADS = 16  # of 16 bytes that a lane of 128 elements starts before it uses the first
_REGISTERS = 128  # four blocks fit
_FRAGMENT_WORDS = 4  # of a lane
_TOP_EXPONENT = 14  # of scaled queries: their parts are normal float16 numbers
_ZERO, _ONE = float32(0), float32(1)


def make_mma_way(spec: AttendSpec) -> Way:
    """Return the way whose scratch holds what queries are multiplied by, and the inverse."""
    row, halves = Row(spec.head_dim, spec.kv_dtype), HALVES[spec.kv_dtype]
    return Way(
        query_type=uint32,
        query_size=spec.head_warps * _warp_fragments(row, halves) * _FRAGMENT_WORDS,
        scratch_size=2 * spec.head_warps * MMA_HEADS,
        sums_shape=(row.words // 8, 4),
        row_stride=_row_stride(spec),
        load_queries=_make_load_queries(spec, row, halves),
        whole_step=_make_step(spec, row, halves, False),
        last_step=_make_step(spec, row, halves, True),
        finish=_make_finish(spec, row),
        max_registers=_REGISTERS,
        load_bytes=_LOADS * spec.head_dim // 8,
    )


def _warp_fragments(row: Row, halves: Halves) -> int:
    """Return the fragments of a warp's heads: of each product, each 16 d, each lane."""
    return halves.query_tiles * (row.head_dim // STEP) * 32


def _row_stride(spec: AttendSpec) -> int:
    return spec.head_dim + 1  # the sums that lanes store at once, of heads 2 t, lie in many banks


# ---- queries


def _make_scale_queries(spec: AttendSpec):
    """Return ``scale_queries``: the power of 2 that brings a head's largest |q| below 2^15.

    The inverse comes after all heads' powers.
    """
    head_dim, tile_heads, padded = spec.head_dim, spec.tile_heads, spec.head_warps * MMA_HEADS
    num_warps = spec.head_warps * spec.token_warps
    make_power = make_scale(head_dim, _TOP_EXPONENT)

    @device
    def scale_queries(queries, first, scale, scratch, thread):
        lane, head = thread & int32(31), thread >> int32(5)
        while head < tile_heads:
            power, inverse = make_power(queries, first + int32(head * head_dim), scale, lane)
            if lane == 0:
                store1(scratch, head, power)
                store1(scratch, padded + head, inverse)
            head = int32(head + num_warps)

    return scale_queries


def _make_load_queries(spec: AttendSpec, row: Row, halves: Halves):
    """Return ``load_queries``: fragments in shared memory, zeros for the heads that are missing."""
    head_dim, tile_heads, is_scaled = spec.head_dim, spec.tile_heads, halves.is_scaled
    num_threads = 32 * spec.head_warps * spec.token_warps
    steps, warp_fragments = head_dim // STEP, _warp_fragments(row, halves)
    first_tile = steps * 32  # fragments of a product; those of the parts 1 and 2
    num_fragments, is_tripled = spec.head_warps * first_tile, halves.num_parts == 3
    part, pack = halves.part, halves.pack
    key_word, scale_queries = make_key_word(row.words), _make_scale_queries(spec)

    @device
    def next_part(x):
        bits = f32_to_bits(x)
        p = part(bits_to_f32(uint32(bits & uint32(0x7FFFFFFF))))
        return bits_to_f32(uint32(f32_to_bits(p) | (bits & uint32(0x80000000))))

    @device
    def store_pair(query, place, x, y):
        """Parts of two neighbours: words of the rows g and g + 8."""
        x1, y1 = next_part(x), next_part(y)
        x, y = x - x1, y - y1
        store1(query, place, pack(x1, y1))
        if is_tripled:
            x2, y2 = next_part(x), next_part(y)
            store1(query, place + 1, pack(x2, y2))
            store1(query, place + first_tile * 4, pack(x - x2, y - y2))
            store1(query, place + (first_tile * 4 + 1), uint32(0))
        else:
            store1(query, place + 1, pack(x, y))

    @device
    def load_queries(queries, first, scale, query, scratch, thread):
        if is_scaled:
            scale_queries(queries, first, scale, scratch, thread)
            cuda.syncthreads()
        for turn in range(-(-num_fragments // num_threads)):
            i = uint32(thread + turn * num_threads)
            if i >= num_fragments:
                break
            head_warp, fragment = i // uint32(first_tile), i % uint32(first_tile)
            lane, step = int32(fragment & uint32(31)), int32(fragment >> uint32(5))
            head = int32(head_warp * MMA_HEADS + lane // 4)
            start = first + int32(head * head_dim + 2 * key_word(2 * step, lane % 4))
            for pair in range(2):
                x, y = _ZERO, _ZERO
                if head < tile_heads:
                    x = load1(queries, start + 2 * pair) * scale
                    y = load1(queries, start + (2 * pair + 1)) * scale
                    if is_scaled:
                        x, y = x * load1(scratch, head), y * load1(scratch, head)
                place = int32((head_warp * warp_fragments + fragment) * 4 + 2 * pair)
                store_pair(query, place, x, y)

    return load_queries


# ---- steps


def _make_step(spec: AttendSpec, row: Row, halves: Halves, is_last: bool):
    """Return a step of a warp, in terms of its places in shared memory."""
    head_warps, padded, last_head = (
        spec.head_warps,
        spec.head_warps * MMA_HEADS,
        spec.tile_heads - 1,
    )
    warp_fragments, is_scaled = _warp_fragments(row, halves), halves.is_scaled
    mma_step = make_mma_step(row, halves, spec.page_size, head_warps > 1, is_last)

    @device
    def step(
        keys, values, tile_rows, query, scratch, acc, maximum, denominator, token, left, warp, lane
    ):
        head_warp = warp % head_warps
        scale = _ONE
        if is_scaled:
            head = min(head_warp * MMA_HEADS + lane // 4, last_head)  # those beyond are zeros
            scale = load1(scratch, padded + head)
        return mma_step(
            keys, values, tile_rows, query, head_warp * warp_fragments, scale, acc, maximum,
            denominator, token, left, lane,
        )  # fmt: skip

    return step


def _make_finish(spec: AttendSpec, row: Row):
    """Return ``finish``; a lane has the sums of heads 2 t and 2 t + 1."""
    warp_heads, row_stride = spec.warp_heads, _row_stride(spec)
    parts = value_pieces(row)
    words = tuple(piece.row_word + i for piece in parts for i in range(piece.count))
    counts = tuple(piece.count for piece in parts for _ in range(piece.count))

    @device
    def store(i, acc, warp_sums, warp, g, t):
        d = 2 * (words[i] + counts[i] * g)
        for half in range(2):
            for h in range(2):
                head = 2 * t + h
                if head < warp_heads:
                    place = (warp * warp_heads + head) * row_stride + (d + half)
                    store1(warp_sums, place, acc[i, 2 * half + h] * WEIGHT_UNSCALE)

    store_all = unroll(store, len(words))

    @device
    def finish(acc, maximum, denominator, warp_sums, maxima, denominators, warp, lane):
        g, t = lane // 4, lane % 4
        mass = quad_sum(denominator)
        if t == 0 and g < warp_heads:
            store1(maxima, warp * warp_heads + g, maximum)
            store1(denominators, warp * warp_heads + g, mass * WEIGHT_UNSCALE)
        store_all(acc, warp_sums, warp, g, t)

    return finish
