"""A whole sparse decode step in one compiled call: score, top-k, row table, attend.

The stages are the kernels of their own files. One call saves what the host pays between them, which
with cold caches is a fifth of a step that reads 64 pages: the counterpart of one graph on the GPU.
"""

from typing import NamedTuple

import numpy as np
from numba import get_num_threads

from numbadsd.kernels.cpu.attend import Geometry, attend_kernel, make_geometry
from numbadsd.kernels.cpu.clock import monotonic_ns
from numbadsd.kernels.cpu.gather import select_rows_kernel
from numbadsd.kernels.cpu.jit import kernel
from numbadsd.kernels.cpu.score import BOUNDS, SHARES, score_kernel
from numbadsd.kernels.cpu.topk import select_pages_kernel
from numbadsd.kernels.words import as_rows, check_array

STAGE_SLOTS = ("score", "topk", "sparse_layout", "attend")


class Selection(NamedTuple):
    """How pages are scored and chosen."""

    bound: int
    share: int
    arrays: int  # vectors of a summary
    factor_rows: int  # G where scores are summed over heads, else H
    num_kv_heads: int
    num_sink_pages: int
    num_recent_pages: int


class StepPlan(NamedTuple):
    """What stays the same from step to step, in the form that starts a compiled call fastest.

    Plain tuples: Numba looks up the type of a named one in Python, at every call.
    """

    rows: tuple  # keys, values, summaries as rows of D
    selection: tuple  # the fields of Selection
    geometry: tuple  # the fields of Geometry
    sm_scale: np.float32
    num_units: int
    num_threads: int  # sizes the tasks; the result never depends on it


@kernel(parallel=False)
def sparse_step_kernel(
    queries, rows, pages, selection, geometry, num_threads, sm_scale, selected, outputs, lse, times
):
    """Run the stages; times[i] = nanoseconds of STAGE_SLOTS[i]."""
    keys, values, summaries = rows
    selection, geometry_fields, geometry = Selection(*selection), geometry, Geometry(*geometry)
    page_indptr, page_ids, last_page_tokens = pages
    batch, units, k = selected.shape
    counts = np.empty(batch, np.int32)
    stride = 0
    for request in range(batch):
        counts[request] = page_indptr[request + 1] - page_indptr[request]
        stride = max(stride, counts[request])

    start = monotonic_ns()
    scores = np.empty((batch, units, stride), np.float32)
    shape = (selection.arrays, selection.factor_rows, selection.num_kv_heads)
    score_kernel(
        queries, selection.bound, shape, summaries, page_indptr, page_ids, selection.share,
        sm_scale, scores,
    )  # fmt: skip
    scored = monotonic_ns()
    select_pages_kernel(
        scores.reshape((batch * units, stride)), counts, selection.num_sink_pages,
        selection.num_recent_pages, selected.reshape((batch * units, k)),
    )  # fmt: skip
    chosen = monotonic_ns()
    row_indptr = np.empty(batch * units + 1, np.int32)
    row_ids = np.empty(selected.size, np.int32)
    row_last = np.empty(batch * units, np.int32)
    select_rows_kernel(
        selected, page_indptr, page_ids, last_page_tokens, geometry.page_size,
        row_indptr, row_ids, row_last,
    )  # fmt: skip
    listed = monotonic_ns()
    attend_kernel(
        queries.reshape((batch * queries.shape[1], queries.shape[2])), keys, values,
        (row_indptr, row_ids, row_last), geometry_fields, num_threads, sm_scale,
        outputs.reshape((batch * queries.shape[1], queries.shape[2])), lse.reshape(lse.size),
    )  # fmt: skip
    times[0], times[1] = scored - start, chosen - scored
    times[2], times[3] = listed - chosen, monotonic_ns() - listed


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
    num_pages, num_kv_heads, page_size, head_dim = keys.shape
    check_array("values", values, keys.shape, keys.dtype)
    arrays = () if summary == "mean" else (2,)
    check_array("summaries", summaries, (num_pages, *arrays, num_kv_heads, head_dim))
    num_units = {"request": 1, "kv_head": num_kv_heads, "query_head": num_heads}[share]
    factor_rows = num_kv_heads if share == "request" else num_heads
    selection = Selection(
        BOUNDS[summary], SHARES[share], 1 if summary == "mean" else 2, factor_rows,
        num_kv_heads, num_sink_pages, num_recent_pages,
    )  # fmt: skip
    geometry = make_geometry(keys, num_heads, num_kv_heads, num_units)
    rows = (as_rows(keys), as_rows(values), as_rows(summaries))
    return StepPlan(
        rows, tuple(selection), tuple(geometry), np.float32(sm_scale), num_units, get_num_threads()
    )


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
    shape = queries.shape
    check_array("queries", queries, shape, np.float32)
    check_array("selected", selected, (shape[0], plan.num_units, selected.shape[-1]), np.int32)
    check_array("outputs", outputs, shape, np.float32)
    check_array("lse", lse, shape[:2], np.float32)
    if shape[0] > 0:
        sparse_step_kernel(
            queries, plan.rows, (page_indptr, page_ids, last_page_tokens), plan.selection,
            plan.geometry, plan.num_threads, plan.sm_scale, selected, outputs, lse, stage_ns,
        )  # fmt: skip
