"""Causal attention of prompt chunks over their own pages on a device, several prompts in one pass.

    out[i] = sum_{t <= p(i)} softmax_t(sm_scale q_i . k_t) v_t         p(i) position of token i

Chunk c owns queries [cu_seqlens[c], cu_seqlens[c + 1]), at positions first_positions[c], + 1, ...
A *row* is a token's query head; the rows of a chunk and kv head, token after token and the heads of
the group side by side, are cut into blocks. A block walks tiles from position 0 on with one running
softmax for each row. Where tiles lie depends on positions alone and rows do not mix, so that an
output has the same bits whether a prompt is done at once or in chunks of any size, alone or packed.
(Decode cuts and adds in another order: the last token's bits are not those of decode.)

The launch depends on the numbers of tokens and chunks only, so that a graph can hold it.
"""

import numpy as np

from numbadsd.kernels import shared
from numbadsd.kernels.cuda.launch import DeviceArray, check_array, check_stored
from numbadsd.kernels.cuda.prompt_rows import attend_prompts_kernel
from numbadsd.kernels.cuda.prompt_tiles import PromptSpec, first_block

_POSITIONS = {np.dtype(np.int32): "i32", np.dtype(np.int64): "i64"}


def attend_prompts(
    queries: DeviceArray,  # [n, H, D] f32, chunk after chunk
    cu_seqlens: DeviceArray,  # [C + 1] i32
    first_positions: DeviceArray,  # [C] i32 or i64
    keys: DeviceArray,  # [N, G, T, D]
    values: DeviceArray,  # as keys
    page_indptr: DeviceArray,  # [C + 1] i32
    page_ids: DeviceArray,  # [m] i32; a request's pages hold the chunk's own tokens too
    num_kv_heads: int,  # G
    sm_scale: float,
    outputs: DeviceArray,  # [n, H, D] f32
    lse: DeviceArray,  # [n, H] f32
    *,
    stream,
) -> None:
    """Attend each token's heads to the tokens of its request up to its own position."""
    check_array("queries", queries, (None, None, None), np.float32)
    num_tokens, num_heads, head_dim = queries.shape
    if num_heads % num_kv_heads:
        raise ValueError(f"queries: got {num_heads} heads, want a multiple of {num_kv_heads}")
    check_stored("keys", keys, (None, num_kv_heads, None, head_dim))
    check_array("values", values, keys.shape, keys.dtype)
    check_array("outputs", outputs, queries.shape, np.float32)
    check_array("lse", lse, (num_tokens, num_heads), np.float32)
    check_array("cu_seqlens", cu_seqlens, (None,), np.int32)
    num_chunks = len(cu_seqlens) - 1
    check_array("first_positions", first_positions, (num_chunks,))
    if first_positions.dtype not in _POSITIONS:
        raise ValueError(f"first_positions: got dtype {first_positions.dtype}, want int32 or int64")
    check_array("page_indptr", page_indptr, (num_chunks + 1,), np.int32)
    check_array("page_ids", page_ids, (None,), np.int32)
    if num_tokens == 0:
        return
    group = num_heads // num_kv_heads
    position = _POSITIONS[first_positions.dtype]
    spec = PromptSpec(head_dim, str(keys.dtype), keys.shape[2], group, position)
    num_blocks = first_block(num_tokens * group, num_chunks)
    stream.launch(
        attend_prompts_kernel(spec), num_blocks * num_kv_heads, queries, cu_seqlens,
        first_positions, keys, values, page_indptr, page_ids, outputs, lse, num_chunks,
        num_kv_heads, num_blocks, np.float32(np.float32(sm_scale) * shared.LOG2_E),
    )  # fmt: skip
