"""What a split kernel is compiled for, and how its warps can multiply.

FMA    multiply-add instructions, float32 numbers: any stored type
MMA    tensor cores, pairs of halves: float16 and bfloat16, with the accuracy of float32

A *way* is what the split kernel takes from either; both read K and V once for all heads of a warp.
"""

from collections.abc import Callable
from dataclasses import dataclass

from numbadsd.kernels import shared
from numbadsd.kernels.cuda.ops import device
from numbadsd.kernels.cuda.tiles import heads_of_warp

FMA, MMA = "fma", "mma"

TOKENS = 16  # of a warp's step
MAX_WARPS = 4
MMA_HEADS = 8  # that a warp takes: the columns of a product
_MMA_MIN_GROUP = 2
_MMA_MAX_HEAD_DIM = 128  # beyond it, K, V and sums of a warp do not fit in its registers


softmax_shift = device(shared.softmax_shift)


def can_use_mma(head_dim: int, kv_dtype: str) -> bool:
    """Tell whether tensor cores can do the products."""
    return kv_dtype != "float32" and head_dim <= _MMA_MAX_HEAD_DIM


def default_way(head_dim: int, kv_dtype: str, group: int) -> str:
    """Return the way for a model; it is the same for all its tiles, so that they agree in bits."""
    return MMA if group >= _MMA_MIN_GROUP and can_use_mma(head_dim, kv_dtype) else FMA


@dataclass(frozen=True)
class AttendSpec:
    """Compile-time constants of the split kernel."""

    head_dim: int
    kv_dtype: str
    page_size: int
    tile_heads: int
    group: int  # query heads of a kv head
    way: str  # FMA or MMA

    @property
    def warp_heads(self) -> int:
        """Heads of a warp."""
        return _warp_heads(self.tile_heads, self.way)

    @property
    def head_warps(self) -> int:
        """Warps that take different heads of the same tokens: 1, 2 or 4."""
        return _head_warps(self.tile_heads, self.way)

    @property
    def token_warps(self) -> int:
        """Warps that take different tokens: those of a tile of the whole group.

        So that a head's sums have the same order in a tile of its own.
        """
        return MAX_WARPS // _head_warps(self.group, self.way)


def _warp_heads(heads: int, way: str) -> int:
    return MMA_HEADS if way == MMA and heads > 4 else heads_of_warp(heads)


def _head_warps(heads: int, way: str) -> int:
    needed = -(-heads // _warp_heads(heads, way))
    return 4 if needed > 2 else needed


@dataclass(frozen=True)
class Way:
    """How the warps of a block attend; functions of the device, sizes in elements.

    Attributes
    ----------
    query_type, query_size
        Of the block's shared array for queries, as `load_queries` leaves them.
    scratch_size : int
        Of the block's shared float32 array for what the functions below keep there.
    sums_shape : tuple of int
        Of a lane's float32 sums.
    row_stride : int
        From a head's sums to the next one's, in the shared sums of a block.
    load_queries : callable
        (queries, first, scale, query, scratch, thread): by all threads of the block.
    whole_step, last_step : callable
        (keys, values, tile_rows, query, scratch, sums, maximum, denominator, token, left, warp,
        lane): add 16 tokens to a warp's sums, or those before `left`; return maximum, denominator.
    finish : callable
        (sums, maximum, denominator, warp_sums, maxima, denominators, warp, lane): write a warp's
        results.
    max_registers, load_bytes : int
        As of a `Kernel`.
    """

    query_type: object
    query_size: int
    scratch_size: int
    sums_shape: tuple[int, int]
    row_stride: int
    load_queries: Callable
    whole_step: Callable
    last_step: Callable
    finish: Callable
    max_registers: int
    load_bytes: int
