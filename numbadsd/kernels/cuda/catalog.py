"""Every kernel that one decode configuration launches: to compile, inspect or test them all."""

from dataclasses import dataclass

from numbadsd.kernels.cuda.attend import (
    MAX_TILE_HEADS,
    AttendSpec,
    MergeSpec,
    attend_splits_kernel,
    merge_splits_kernel,
)  # fmt: skip
from numbadsd.kernels.cuda.launch import Kernel


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
    """Return the kernels of dense and sparse decode, append and prefill for a shape."""
    group = shape.num_heads // shape.num_kv_heads
    tiles = {group, 1 if shape.share == "query_head" else group}
    assert max(tiles) <= MAX_TILE_HEADS
    kernels = []
    for tile_heads in sorted(tiles):
        spec = AttendSpec(shape.head_dim, shape.kv_dtype, shape.page_size, tile_heads)
        kernels.append(attend_splits_kernel(spec))
        kernels.append(merge_splits_kernel(MergeSpec(shape.head_dim, shape.page_size, tile_heads)))
    return kernels
