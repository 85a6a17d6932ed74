"""Attention over page lists on a device: softmax within a split, splits merged by log-sum-exp.

    out = sum_t softmax_t(sm_scale q . k_t) v_t      lse = log sum_t exp(sm_scale q . k_t)

Dense and sparse decode are one kernel: a *row* (request, unit) lists all pages of a request, or the
selected ones. A *head tile* is the query heads of a row that share a kv head; a block takes one
split of one head tile. Where a row is cut depends on its own length alone and every sum has a
written order, so that an output has the same bits alone, in any batch, dense or sparse.
Softmax is kept to base 2: queries are scaled by sm_scale log2(e) once.
"""

import numpy as np

from numbadsd.kernels import shared
from numbadsd.kernels.cuda.attend_spec import FMA, MMA, AttendSpec, can_use_mma, default_way
from numbadsd.kernels.cuda.attend_splits import attend_splits_kernel
from numbadsd.kernels.cuda.launch import DeviceArray, check_array, check_stored
from numbadsd.kernels.cuda.merge_splits import MergeSpec, merge_splits_kernel

MAX_TILE_HEADS = 16
_NO_SELECTION = -1


def workspace_sizes(batch: int, num_heads: int, head_dim: int, max_splits: int) -> tuple[int, int]:
    """Return the float32 numbers of `sums` and of `softmax` that a launch needs."""
    slots = batch * num_heads * max_splits
    return slots * head_dim, slots * 2


def attend_pages(
    queries: DeviceArray,  # [B, H, D] f32
    keys: DeviceArray,  # [N, G, T, D]
    values: DeviceArray,  # as keys
    page_indptr: DeviceArray,  # [B + 1] i32
    page_ids: DeviceArray,  # [n] i32
    last_page_tokens: DeviceArray,  # [B] i32
    num_kv_heads: int,  # G
    sm_scale: float,
    outputs: DeviceArray,  # [B, H, D] f32
    lse: DeviceArray,  # [B, H] f32
    *,
    stream,
    workspace: tuple[DeviceArray, DeviceArray],  # sums, softmax: f32, see workspace_sizes
    max_pages: int,  # no request has more
    selected: DeviceArray | None = None,  # [B, S, K] i32
    launch: str | None = None,  # the way to multiply, see attend_spec
) -> None:
    """Attend each head to the tokens of its request's pages, or of the selected ones.

    Rows without pages give 0 and -inf.
    """
    check_array("queries", queries, (None, None, None), np.float32)
    batch, num_heads, head_dim = queries.shape
    check_stored("keys", keys, (None, num_kv_heads, None, head_dim))
    check_array("values", values, keys.shape, keys.dtype)
    check_array("page_indptr", page_indptr, (batch + 1,), np.int32)
    check_array("page_ids", page_ids, (None,), np.int32)
    check_array("last_page_tokens", last_page_tokens, (batch,), np.int32)
    check_array("outputs", outputs, queries.shape, np.float32)
    check_array("lse", lse, (batch, num_heads), np.float32)
    page_size, group = keys.shape[2], num_heads // num_kv_heads
    units, max_selected = 1, _NO_SELECTION
    if selected is not None:
        check_array("selected", selected, (batch, None, None), np.int32)
        units, max_selected = selected.shape[1:]
        max_pages = min(max_pages, max_selected)
    tile_heads = 1 if units == num_heads else group
    if tile_heads > MAX_TILE_HEADS or units not in (1, num_kv_heads, num_heads):
        got = f"{group} query heads on a kv head, {units} lists a request"
        raise ValueError(f"queries: got {got}, want at most {MAX_TILE_HEADS}, 1 or G or H")
    tiles = num_heads // tile_heads
    max_splits = shared.most_splits(max_pages, page_size)
    sums, softmax = workspace
    for name, array, size in zip(
        ("sums", "softmax"), workspace, workspace_sizes(batch, num_heads, head_dim, max_splits),
        strict=True,
    ):  # fmt: skip
        if array.size < size:
            raise ValueError(f"workspace: got {array.size} numbers for {name}, want {size}")
    if batch == 0:
        return
    kv_dtype = str(keys.dtype)
    way = launch or default_way(head_dim, kv_dtype, group)
    if way == MMA and not can_use_mma(head_dim, kv_dtype):
        raise ValueError(
            f"launch: got {way!r} for {kv_dtype} and head_dim {head_dim}, want {FMA!r}"
        )
    spec = AttendSpec(head_dim, kv_dtype, page_size, tile_heads, group, way)
    stream.launch(
        attend_splits_kernel(spec), batch * tiles * max_splits, queries, keys, values, page_indptr,
        page_ids, last_page_tokens, page_ids if selected is None else selected, sums, softmax,
        units, num_kv_heads, max_selected, max_splits,
        np.float32(np.float32(sm_scale) * shared.LOG2_E),
    )  # fmt: skip
    stream.launch(
        merge_splits_kernel(MergeSpec(head_dim, page_size, tile_heads)), batch * num_heads,
        sums, softmax, page_indptr, outputs, lse, num_heads, max_selected, max_splits,
    )  # fmt: skip
