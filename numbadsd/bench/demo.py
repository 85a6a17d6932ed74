"""`dsd_demo`: one small request, walked through pages, scores, selection and output."""

import numpy as np
from tabulate import tabulate

from numbadsd.bench.data import fill_cache
from numbadsd.config import ModelConfig
from numbadsd.decode.path import make_path
from numbadsd.kernels.cpu.score import score_pages
from numbadsd.workload.synthetic import StructuredWorkload

CONTEXT_TOKENS = 200
CONFIG = ModelConfig(
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    page_size=16,
    top_k_pages=5,
    summary="minmax",
    share="kv_head",
    num_sink_pages=1,
    num_recent_pages=1,
)


def run_demo(seed: int) -> str:
    """Return the walk as text, with every number shown."""
    workload = StructuredWorkload(CONFIG, np.array([CONTEXT_TOKENS]), seed)
    data = fill_cache(CONFIG, workload)
    dense = make_path("dense_cpu", data.cache).decode(data.queries, [0])
    sparse = make_path("sparse_cpu", data.cache).decode(data.queries, [0])
    needles = set(int(page) for page in workload.needle_pages[0])
    return "\n\n".join((_pages(data), _scores(data, sparse, needles), _outputs(dense, sparse)))


def _pages(data) -> str:
    table = data.cache.page_table([0])
    return (
        f"1. Pages. A context of {CONTEXT_TOKENS} tokens takes {table.page_ids.size} pages of "
        f"{CONFIG.page_size} tokens; the last one holds {table.last_page_tokens[0]}.\n"
        f"   Logical page 0, 1, 2, ... lies in physical page {', '.join(map(str, table.page_ids))}."
    )


def _scores(data, sparse, needles: set[int]) -> str:
    """Show every page with its score and whether each kv head selected it."""
    table = data.cache.page_table([0])
    scores = np.empty((1, CONFIG.num_units, table.page_ids.size), np.float32)
    score_pages(
        data.queries, data.cache.summaries, table.page_indptr, table.page_ids,
        CONFIG.summary, CONFIG.share, CONFIG.sm_scale, scores,
    )  # fmt: skip
    rows = []
    for page in range(table.page_ids.size):
        row = [page]
        for unit in range(CONFIG.num_units):
            chosen = page in sparse.selected_pages[0, unit]
            row += [f"{scores[0, unit, page]:.2f}", "*" if chosen else ""]
        rows.append((*row, _role(page, table.page_ids.size, needles)))
    headers = ["page"]
    for unit in range(CONFIG.num_units):
        headers += [f"kv head {unit}", ""]
    return (
        "2. Scores and selection. Each kv head bounds q.k over a page by the minimum and maximum\n"
        f"   of its keys and keeps {CONFIG.top_k_pages} pages (*), the first and the last always.\n"
        + tabulate(rows, [*headers, ""], disable_numparse=True)
    )


def _role(page: int, pages: int, needles: set[int]) -> str:
    if page in needles:
        return "the planted needle"
    return {0: "forced: sink", pages - 1: "forced: recent"}.get(page, "")


def _outputs(dense, sparse) -> str:
    rows = []
    for head in range(CONFIG.num_heads):
        kept = np.exp(sparse.lse[0, head] - dense.lse[0, head])
        error = np.linalg.norm(sparse.outputs[0, head] - dense.outputs[0, head])
        error /= np.linalg.norm(dense.outputs[0, head])
        rows.append((head, dense.lse[0, head], sparse.lse[0, head], kept, error))
    headers = ["head", "lse dense", "lse sparse", "mass kept", "output error"]
    density = (sparse.selected_pages >= 0).mean() * CONFIG.top_k_pages * CONFIG.page_size
    return (
        f"3. Attention over the chosen pages: about {density / CONTEXT_TOKENS:.0%} of the tokens. "
        "exp(lse sparse - lse dense) is the\n   softmax mass that was kept.\n"
        + tabulate(rows, headers, floatfmt=".3f")
    )
