"""Every kernel that one decode configuration launches: to compile, inspect or test them all."""

from dataclasses import dataclass

from numbadsd.kernels.cuda.append import (
    AppendSpec,
    append_runs_kernel,
    summarise_pages_kernel,
)
from numbadsd.kernels.cuda.attend import MAX_TILE_HEADS
from numbadsd.kernels.cuda.attend_spec import AttendSpec, default_way
from numbadsd.kernels.cuda.attend_splits import attend_splits_kernel
from numbadsd.kernels.cuda.launch import Kernel
from numbadsd.kernels.cuda.merge_splits import MergeSpec, merge_splits_kernel
from numbadsd.kernels.cuda.prefill import fill_uniform_kernel
from numbadsd.kernels.cuda.prompt_rows import attend_prompts_kernel
from numbadsd.kernels.cuda.prompt_tiles import PromptSpec
from numbadsd.kernels.cuda.score import make_score_kernels
from numbadsd.kernels.cuda.score_tiles import ScoreSpec
from numbadsd.kernels.cuda.tables import (
    count_outside_kernel,
    pack_tables_kernel,
    scatter_numbers_kernel,
)
from numbadsd.kernels.cuda.topk import topk_rows_kernel
from numbadsd.kernels.cuda.topk_parts import DIGITS, count_digit_kernel, emit_parts_kernel
from numbadsd.kernels.cuda.topk_sort import sort_selected_kernel
from numbadsd.kernels.score_shape import score_shape


@dataclass(frozen=True)
class Shape:
    """What kernels are specialised for."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    kv_dtype: str
    summary: str
    share: str


def kernels_of(shape: Shape) -> list[Kernel]:
    """Return the kernels of dense and sparse decode, append, prefill and prompts for a shape."""
    return [
        pack_tables_kernel(),
        *_score_kernels(shape),
        *topk_kernels("float32"),
        *_attend_kernels(shape),
        *_page_kernels(shape),
        scatter_numbers_kernel(),
        count_outside_kernel(),
        fill_uniform_kernel(),
        attend_prompts_kernel(
            PromptSpec(
                shape.head_dim,
                shape.kv_dtype,
                shape.page_size,
                shape.num_heads // shape.num_kv_heads,
            )
        ),
    ]


def _score_kernels(shape: Shape) -> list[Kernel]:
    group, row = shape.num_heads // shape.num_kv_heads, (shape.num_kv_heads, shape.head_dim)
    summaries = (1, *row) if shape.summary == "mean" else (1, 2, *row)
    scoring = score_shape(shape.summary, shape.share, summaries, shape.num_heads)
    spec = ScoreSpec(
        shape.head_dim, shape.kv_dtype, scoring.arrays, shape.num_kv_heads, group, scoring.share
    )
    return list(make_score_kernels(spec, scoring.bound))


def topk_kernels(dtype: str) -> list[Kernel]:
    """Return all kernels that `topk_rows` may launch for scores of a type."""
    return [
        topk_rows_kernel(dtype),
        *(count_digit_kernel(dtype, step) for step in range(len(DIGITS))),
        emit_parts_kernel(dtype),
        sort_selected_kernel(dtype),
    ]


def _attend_kernels(shape: Shape) -> list[Kernel]:
    group = shape.num_heads // shape.num_kv_heads
    tiles = {group, 1 if shape.share == "query_head" else group}
    assert max(tiles) <= MAX_TILE_HEADS
    way = default_way(shape.head_dim, shape.kv_dtype, group)
    kernels = []
    for heads in sorted(tiles):
        spec = AttendSpec(shape.head_dim, shape.kv_dtype, shape.page_size, heads, group, way)
        kernels.append(attend_splits_kernel(spec))
        kernels.append(merge_splits_kernel(MergeSpec(shape.head_dim, shape.page_size, heads)))
    return kernels


def _page_kernels(shape: Shape) -> list[Kernel]:
    dtypes = sorted({shape.kv_dtype, "float32"})
    specs = [
        AppendSpec(shape.head_dim, shape.kv_dtype, shape.kv_dtype, shape.summary, token_dtype)
        for token_dtype in dtypes
    ]
    return [*map(append_runs_kernel, specs), summarise_pages_kernel(specs[-1])]
