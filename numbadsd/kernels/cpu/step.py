"""A whole sparse decode step in one compiled call: score, top-k, row table, attend.

The stages are the kernels of their own files. One call saves what the host pays between them, which
with cold caches is a fifth of a step that reads 64 pages: the counterpart of one graph on the GPU.
"""

from typing import NamedTuple

import numpy as np
from numba import get_num_threads

from numbadsd.kernels.cpu.attend import Geometry, attend_kernel, make_geometry
from numbadsd.kernels.cpu.busy import timed
from numbadsd.kernels.cpu.clock import monotonic_ns
from numbadsd.kernels.cpu.gather import select_rows_kernel
from numbadsd.kernels.cpu.jit import kernel
from numbadsd.kernels.cpu.score import score_kernel
from numbadsd.kernels.cpu.topk import topk_rows_kernel
from numbadsd.kernels.score_shape import ScoreShape, score_shape
from numbadsd.kernels.words import as_rows, check_array

STAGE_SLOTS = ("score", "topk", "sparse_layout", "attend")


class StepPlan(NamedTuple):
    """What stays the same from step to step, in the form that starts a compiled call fastest.

    Plain tuples: Numba looks up the type of a named one in Python, at every call.
    """

    rows: tuple  # keys, values, summaries as rows of D
    shape: tuple  # the fields of ScoreShape
    forced: tuple  # sink pages, recent pages
    geometry: tuple  # the fields of Geometry
    sm_scale: np.float32
    num_threads: int  # sizes the tasks; the result never depends on it


@kernel(parallel=False)
def sparse_step_kernel(
    queries,
    rows,
    pages,
    shape,
    forced,
    geometry,
    num_threads,
    sm_scale,
    selected,
    outputs,
    lse,
    times,
):
    """Run the stages; times[i] = nanoseconds of STAGE_SLOTS[i]."""
    keys, values, summaries = rows
    shape = ScoreShape(*shape)
    page_size = Geometry(*geometry).page_size
    page_indptr, page_ids, last_page_tokens = pages
    batch, units, k = selected.shape
    counts = np.empty(batch, np.int32)
    stride = 0
    for request in range(batch):
        counts[request] = page_indptr[request + 1] - page_indptr[request]
        stride = max(stride, counts[request])

    start = monotonic_ns()
    scores = np.empty((batch, units, stride), np.float32)
    score_kernel(
        queries, shape.bound, (shape.arrays, shape.factor_rows, shape.num_kv_heads), summaries,
        page_indptr, page_ids, shape.share, sm_scale, scores,
    )  # fmt: skip
    scored = monotonic_ns()
    width = scores.shape[2]  # not `stride`, which is a literal 0 at first: compiled for it too
    topk_rows_kernel(
        scores.reshape(scores.size), width, width, counts, forced, False, num_threads,
        selected.reshape((batch * units, k)),
    )  # fmt: skip
    chosen = monotonic_ns()
    row_indptr = np.empty(batch * units + 1, np.int32)
    row_ids = np.empty(selected.size, np.int32)
    row_last = np.empty(batch * units, np.int32)
    select_rows_kernel(
        selected, page_indptr, page_ids, last_page_tokens, page_size,
        row_indptr, row_ids, row_last,
    )  # fmt: skip
    listed = monotonic_ns()
    attend_kernel(
        queries.reshape((batch * queries.shape[1], queries.shape[2])), keys, values,
        (row_indptr, row_ids, row_last), geometry, num_threads, sm_scale,
        outputs.reshape((batch * queries.shape[1], queries.shape[2])), lse.reshape(lse.size),
    )  # fmt: skip
    times[0], times[1] = scored - start, chosen - scored
    times[2], times[3] = listed - chosen, monotonic_ns() - listed


_sparse_step = timed(sparse_step_kernel)


def plan_sparse_step(
    keys: np.ndarray,  # [N, G, T, D]
    values: np.ndarray,  # [N, G, T, D]
    summaries: np.ndarray,  # [N, G, D] for mean, else [N, 2, G, D]
    num_heads: int,
    summary: str,
    share: str,
    num_sink_pages: int,
    num_recent_pages: int,
    sm_scale: float,
) -> StepPlan:
    """Return the plan of every step over these pools."""
    check_array("values", values, keys.shape, keys.dtype)
    shape = score_shape(summary, share, summaries.shape, num_heads)
    page_shape = (keys.shape[1], keys.shape[3])
    check_array("summaries", summaries, (keys.shape[0], *summaries.shape[1:-2], *page_shape))
    geometry = make_geometry(keys, num_heads, shape.num_kv_heads, shape.num_units)
    return StepPlan(
        (as_rows(keys), as_rows(values), as_rows(summaries)), tuple(shape),
        (num_sink_pages, num_recent_pages), tuple(geometry), np.float32(sm_scale),
        get_num_threads(),
    )  # fmt: skip


def sparse_step(
    plan: StepPlan,
    queries: np.ndarray,  # [B, H, D] f32
    page_indptr: np.ndarray,  # [B + 1] i32
    page_ids: np.ndarray,  # [n] i32
    last_page_tokens: np.ndarray,  # [B] i32
    selected: np.ndarray,  # [B, S, K] i32 out
    outputs: np.ndarray,  # [B, H, D] f32 out
    lse: np.ndarray,  # [B, H] f32 out
    stage_ns: np.ndarray,  # [4] i64 out, in the order of STAGE_SLOTS
) -> None:
    """Select each unit's K best pages and attend to them in place."""
    # our own arrays, and with cold caches a step cannot pay for more than this
    batch, heads, _ = queries.shape
    assert outputs.shape == queries.shape and lse.shape == (batch, heads)
    assert selected.shape[0] == batch and selected.dtype == np.int32
    if batch > 0:
        _sparse_step(
            queries, plan.rows, (page_indptr, page_ids, last_page_tokens), plan.shape, plan.forced,
            plan.geometry, plan.num_threads, plan.sm_scale, selected, outputs, lse, stage_ns,
        )  # fmt: skip
