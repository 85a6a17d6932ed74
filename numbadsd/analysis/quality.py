"""How much of the exact attention a page selection keeps.

The truth is computed here, in float64, from the keys as the cache stores them (rounded to
kv_dtype): the softmax mass of every page for every (request, query head). Work goes by (request, kv
head) and by blocks of tokens, so that memory stays small beside the cache. NaN logits count as
-inf, as in the selection.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from numbadsd.config import ModelConfig, check
from numbadsd.types import PageTable

_BLOCK_TOKENS = 4096  # keys converted to float64 at a time


@dataclass(frozen=True)
class Quality:
    """Means over (request, query head) of the requests whose context is not empty.

    A mean over nothing is NaN: all of them when every context is empty, `page_recall` when k = 0.

    Attributes
    ----------
    page_recall : float
        ``|chosen & true top-k| / |true top-k|``, by exact attention mass.
    attention_mass : float
        Softmax mass on the selected tokens.
    candidate_mass : float
        The same without the forced sink and recent pages.
    output_relative_error : float
        ``||sparse - dense|| / ||dense||`` of a head's output.
    density : float
        Tokens read / context tokens.
    needle_recall : float or None
        Needle pages selected / needle pages; None without needles.
    """

    page_recall: float
    attention_mass: float
    candidate_mass: float
    output_relative_error: float
    density: float
    needle_recall: float | None


def measure_quality(
    cache,
    queries: np.ndarray,  # [B, H, D] f32
    request_ids: Sequence[int],
    selected_pages: np.ndarray,  # [B, S, K] i32, -1 at the tail
    dense_outputs: np.ndarray,  # [B, H, D] f32
    sparse_outputs: np.ndarray,  # [B, H, D] f32
    needle_pages: Sequence[np.ndarray] | None = None,
    needle_heads: Sequence[int] | None = None,
) -> Quality:
    """Compare a selection and its outputs with exact attention over the whole context.

    `needle_pages` holds the logical pages of each request's needle; `needle_heads` the query heads
    that look for it, all where None. A head's selection is that of its unit (`config.share`).
    """
    config, table = cache.config, cache.page_table(request_ids)
    _check_arguments(config, table, queries, selected_pages, dense_outputs, sparse_outputs)
    selected = np.asarray(selected_pages)
    recalls, masses, candidates, densities, needles = [], [], [], [], []
    for request, page_count in enumerate(table.page_counts):
        if page_count == 0:
            continue
        chosen = _chosen_pages(config, request, selected[request], page_count)  # [H, P]
        mass = _request_mass(cache, table, request, queries[request])  # [H, P]
        recalls.append(_recall(mass, chosen, min(selected.shape[2], page_count)))
        masses.append((mass * chosen).sum(axis=1))
        last = max(page_count - config.num_recent_pages, config.num_sink_pages)
        free = slice(config.num_sink_pages, last)
        candidates.append((mass[:, free] * chosen[:, free]).sum(axis=1))
        page_tokens = np.full(page_count, config.page_size)
        page_tokens[-1] = table.last_page_tokens[request]
        densities.append(chosen @ page_tokens / page_tokens.sum())
        if needle_pages is not None and len(needle_pages[request]):
            needles.append(_needle_recall(chosen, request, needle_pages[request], needle_heads))
    errors = _relative_errors(dense_outputs, sparse_outputs)[table.page_counts > 0]
    return Quality(
        page_recall=_mean(recalls),
        attention_mass=_mean(masses),
        candidate_mass=_mean(candidates),
        output_relative_error=_mean(errors),
        density=_mean(densities),
        needle_recall=_mean(needles) if needles else None,
    )


def _check_arguments(config: ModelConfig, table: PageTable, queries, selected, dense, sparse):
    """Refuse arrays whose shapes do not belong to the batch."""
    batch = (table.num_requests, config.num_heads, config.head_dim)
    for name, array in (("queries", queries), ("dense_outputs", dense), ("sparse_outputs", sparse)):
        check(np.shape(array) == batch, name, np.shape(array), f"shape {batch}")
    units = (table.num_requests, config.num_units)
    valid = np.ndim(selected) == 3 and np.shape(selected)[:2] == units
    check(valid, "selected_pages", np.shape(selected), f"shape ({units[0]}, {units[1]}, K)")


def _chosen_pages(config: ModelConfig, request: int, selected: np.ndarray, page_count: int):
    """Which pages each query head reads, [H, P] bool, from the lists of its units, [S, K]."""
    in_range = selected.size == 0 or (selected.min() >= -1 and selected.max() < page_count)
    what = f"selected_pages[{request}]"
    check(bool(in_range), what, selected, f"-1 or logical pages below {page_count}")
    by_unit = np.zeros((config.num_units, page_count), bool)
    unit, slot = np.nonzero(selected >= 0)
    by_unit[unit, selected[unit, slot]] = True
    return np.repeat(by_unit, config.num_heads // config.num_units, axis=0)


def _request_mass(cache, table: PageTable, request: int, queries: np.ndarray) -> np.ndarray:
    """Exact softmax mass of every page, [H, P] float64; each row sums to 1."""
    config = cache.config
    pages = table.page_ids[table.page_indptr[request] : table.page_indptr[request + 1]]
    last_tokens = table.last_page_tokens[request]
    group = config.group_size
    by_kv_head = [
        _page_mass(
            _logits(cache.pool.keys[:, kv_head], pages, queries[kv_head * group :][:group])
            * config.sm_scale,
            last_tokens,
        )
        for kv_head in range(config.num_kv_heads)
    ]
    return np.concatenate(by_kv_head)


def _logits(head_keys: np.ndarray, pages: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Unscaled logits of a group of query heads, [heads, P, T] float64, from keys [N, T, D]."""
    page_size = head_keys.shape[1]
    queries = np.asarray(queries, np.float64)
    logits = np.empty((len(queries), len(pages), page_size))
    step = max(1, _BLOCK_TOKENS // page_size)
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf: a NaN logit, -inf below
        for first in range(0, len(pages), step):
            block = head_keys[pages[first : first + step]].astype(np.float64)
            # einsum rounds equal keys equally wherever they stand, so that ties stay ties; BLAS
            # promises no such thing.
            np.einsum("hd,ptd->hpt", queries, block, out=logits[:, first : first + step])
    logits[np.isnan(logits)] = -np.inf
    return logits


def _page_mass(logits: np.ndarray, last_tokens: int) -> np.ndarray:  # [heads, P]
    """Softmax over all tokens, summed by page; slots after the last token do not count."""
    logits[:, -1, last_tokens:] = -np.inf
    top = logits.max(axis=(1, 2), keepdims=True)
    with np.errstate(invalid="ignore"):
        below = np.where(logits == top, 0.0, logits - top)  # 0 also where the top is infinite
    weights = np.exp(below)
    weights[:, -1, last_tokens:] = 0.0  # also where every logit is -inf
    by_page = weights.sum(axis=2)
    return by_page / by_page.sum(axis=1, keepdims=True)


def _recall(mass: np.ndarray, chosen: np.ndarray, count: int) -> np.ndarray:
    """Share of the `count` heaviest pages that were chosen, [H]; empty where count is 0."""
    if count == 0:
        return np.empty(0)
    heaviest = np.argsort(-mass, axis=1, kind="stable")[:, :count]  # stable: ties to lower pages
    return np.take_along_axis(chosen, heaviest, axis=1).mean(axis=1)


def _needle_recall(chosen: np.ndarray, request: int, pages: np.ndarray, heads) -> np.ndarray:
    """Share of a request's needle pages that were chosen, for each head that looks for them."""
    pages = np.asarray(pages)
    in_range = pages.min() >= 0 and pages.max() < chosen.shape[1]
    want = f"logical pages below {chosen.shape[1]}"
    check(bool(in_range), f"needle_pages[{request}]", pages, want)
    rows = chosen if heads is None else chosen[np.asarray(heads)]
    return rows[:, pages].mean(axis=1)


def _relative_errors(dense: np.ndarray, sparse: np.ndarray) -> np.ndarray:  # [B, H]
    """Error of each output vector over its norm; two zero vectors agree."""
    dense = np.asarray(dense, np.float64)
    error = np.linalg.norm(np.asarray(sparse, np.float64) - dense, axis=-1)
    norm = np.linalg.norm(dense, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(error == 0, 0.0, error / norm)


def _mean(parts) -> float:
    """Mean over all elements of the arrays; NaN over nothing."""
    values = np.concatenate([np.ravel(part) for part in parts]) if len(parts) else np.empty(0)
    return float(values.mean()) if values.size else float("nan")
