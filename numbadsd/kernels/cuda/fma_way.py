"""Partial attention by multiply-add instructions: what `attend_splits` takes of it (see `Way`)."""

from numbadsd.kernels.cuda.attend_spec import TOKENS, AttendSpec, Way
from numbadsd.kernels.cuda.fma_step import LOADS, make_fma_step
from numbadsd.kernels.cuda.ops import device, float32, int32, load1, shfl_xor, store1, uint32
from numbadsd.kernels.cuda.tiles import Row, rows_sum

_ZERO = float32(0)


def make_fma_way(spec: AttendSpec) -> Way:
    """Return the way whose scratch holds 16 tokens' weights and the corrections of each warp."""
    row = Row(spec.head_dim, spec.kv_dtype)
    num_warps = spec.head_warps * spec.token_warps
    return Way(
        query_type=float32,
        query_size=spec.head_warps * spec.warp_heads * spec.head_dim,
        scratch_size=num_warps * (TOKENS + 1) * spec.warp_heads,
        sums_shape=(spec.warp_heads, row.vectors_per_lane * row.vector),
        row_stride=spec.head_dim,
        load_queries=_make_load_queries(spec),
        whole_step=_make_step(spec, row, False),
        last_step=_make_step(spec, row, True),
        finish=_make_finish(spec, row),
        max_registers=_registers(row, spec),
        load_bytes=16 * LOADS,
    )


def _registers(row: Row, spec: AttendSpec) -> int:
    """Return the budget of a thread: with 96, 128 or 168, five, four or three blocks fit."""
    if row.head_dim > 128 or spec.head_warps > 1:
        return 168
    return 96 if spec.warp_heads == 1 and row.kv_dtype != "float32" else 128


def _make_load_queries(spec: AttendSpec):
    """Return ``load_queries``: scaled queries, zeros for the heads that a warp has too many."""
    size, num_threads = spec.tile_heads * spec.head_dim, 32 * spec.head_warps * spec.token_warps
    padded_size = spec.head_warps * spec.warp_heads * spec.head_dim
    turns = -(-padded_size // num_threads)

    @device
    def load_queries(queries, first, scale, query, scratch, thread):
        for turn in range(turns):
            i = int32(thread + turn * num_threads)
            x = _ZERO
            if i < size:
                x = load1(queries, first + i) * scale
            if i < padded_size:
                store1(query, i, x)

    return load_queries


def _make_step(spec: AttendSpec, row: Row, is_last: bool):
    """Return a step of a warp, in terms of its places in shared memory."""
    head_dim, warp_heads, head_warps = spec.head_dim, spec.warp_heads, spec.head_warps
    fma_step = make_fma_step(row, spec.page_size, warp_heads, head_warps > 1, is_last)
    warp_weights = TOKENS * warp_heads
    first_correction = head_warps * spec.token_warps * warp_weights

    @device
    def step(
        keys, values, tile_rows, query, scratch, acc, maximum, denominator, token, left, warp, lane
    ):
        first_query = warp % head_warps * (warp_heads * head_dim)
        return fma_step(
            keys, values, tile_rows, query, first_query, scratch, warp * warp_weights,
            first_correction + warp * warp_heads, acc, maximum, denominator, token, left, lane,
        )  # fmt: skip

    return step


def _make_finish(spec: AttendSpec, row: Row):
    """Return ``finish``: lanes that took other rows hold parts of the same sums."""
    head_dim, warp_heads = spec.head_dim, spec.warp_heads
    vector, lanes = row.vector, row.lanes
    lane_elements = row.vectors_per_lane * vector

    @device
    def finish(acc, maximum, denominator, warp_sums, maxima, denominators, warp, lane):
        denominator = rows_sum(denominator)
        part = lanes
        while part < 32:
            for h in range(warp_heads):
                for e in range(lane_elements):
                    acc[h, e] += shfl_xor(acc[h, e], uint32(part))
            part *= 2
        if lane < warp_heads:
            maxima[warp * warp_heads + lane] = maximum
            denominators[warp * warp_heads + lane] = denominator
        if lane < lanes:
            for h in range(warp_heads):
                start = (warp * warp_heads + h) * head_dim
                for e in range(lane_elements):
                    d = (e // vector * lanes + lane) * vector + e % vector
                    if d < head_dim:
                        warp_sums[start + d] = acc[h, e]

    return finish
