"""What every kernel is measured against: float64 NumPy, straight from the formulas.

Slow and obvious on purpose, and independent of the library: nothing of numbadsd is imported here.
`naive_float32_attention` is the yardstick of tolerances, see `assert_as_exact_as_float32`.
"""

import numpy as np

FLOAT32_EPS = float(np.finfo(np.float32).eps)


def summarise(keys, kind, dtype=np.float64):
    """Return the summary of one page: [G, D] for mean, else [2, G, D]; keys [tokens, G, D]."""
    keys = np.asarray(keys).astype(dtype)
    if kind == "mean":
        return keys.mean(axis=0)
    if kind == "mean_std":
        return np.stack([keys.mean(axis=0), keys.std(axis=0)])
    low, high = keys.min(axis=0), keys.max(axis=0)
    if kind == "minmax":
        return np.stack([low, high])
    centre = (low + high) / 2
    return np.stack([centre, np.abs(keys - centre).mean(axis=0)])


def summarise_pages(keys, page_size, kind, summary_dtype=np.float64):
    """Return the summaries of a request's pages, [P, ...] float64, as stored in summary_dtype."""
    starts = range(0, len(keys), page_size)
    pages = [summarise(keys[start : start + page_size], kind) for start in starts]
    return [page.astype(summary_dtype).astype(np.float64) for page in pages]


def head_score(query, summary, kind, sm_scale, dtype=np.float64):
    """Return the score of one page for one query [D]; summary [D] for mean, else [2, D]."""
    query, summary = np.asarray(query).astype(dtype), np.asarray(summary).astype(dtype)
    if kind == "mean":
        score = np.sum(query * summary)
    elif kind == "minmax":
        score = np.sum(np.maximum(query * summary[0], query * summary[1]))
    else:  # cuboid_mean: centre and radius; mean_std: mean and deviation
        score = np.sum(query * summary[0]) + np.sum(np.abs(query) * summary[1])
    return score * dtype(sm_scale)


def page_scores(queries, summaries, kind, share, sm_scale, dtype=np.float64):
    """Return the scores [S, P] of one request; queries [H, D], summaries [P][(2,) G, D]."""
    heads = len(queries)
    scores = np.empty((heads, len(summaries)), dtype)
    for page, summary in enumerate(summaries):
        summary = np.asarray(summary)
        group = heads // summary.shape[-2]
        for head, query in enumerate(queries):
            rows = summary[..., head // group, :]
            scores[head, page] = head_score(query, rows, kind, sm_scale, dtype)
    if share == "request":
        return scores.sum(axis=0, keepdims=True)
    if share == "kv_head":
        group = heads // np.asarray(summaries[0]).shape[-2] if len(summaries) else heads
        return scores.reshape(-1, group, len(summaries)).max(axis=1)
    return scores


def select(scores, k, num_sink_pages=0, num_recent_pages=0):
    """Return the k selected positions of one unit, ascending, -1 at the tail; scores [P]."""
    value = np.where(np.isnan(scores), -np.inf, scores).astype(np.float64)
    is_free = np.full(len(value), True)
    is_free[:num_sink_pages] = is_free[max(0, len(value) - num_recent_pages) :] = False
    by_rank = np.lexsort((np.arange(len(value)), -value, is_free))  # what counts most is last
    chosen = np.sort(by_rank[:k])
    return np.concatenate([chosen, np.full(k - len(chosen), -1)]).astype(np.int32)


def attention(queries, keys, values, sm_scale, dtype=np.float64):
    """Return outputs [H, D] and lse [H] of queries [H, D] over keys and values [tokens, G, D]."""
    queries, keys, values = (np.asarray(a).astype(dtype) for a in (queries, keys, values))
    outputs = np.zeros(queries.shape, dtype)
    lse = np.full(len(queries), -np.inf, dtype)
    if len(keys) == 0:
        return outputs, lse
    group = len(queries) // keys.shape[1]
    for head, query in enumerate(queries):
        logits = (keys[:, head // group] * query).sum(axis=1) * dtype(sm_scale)
        largest = logits.max()
        if largest == -np.inf:
            continue
        weights = np.exp(logits - largest)
        outputs[head] = (weights[:, None] * values[:, head // group]).sum(axis=0) / weights.sum()
        lse[head] = largest + np.log(weights.sum())
    return outputs, lse


def naive_float32_attention(queries, keys, values, sm_scale):
    """Return what plain float32 NumPy makes of `attention`; its error sets the tolerance."""
    return attention(queries, keys, values, sm_scale, np.float32)


def causal_attention(queries, keys, values, first_position, sm_scale, dtype=np.float64):
    """Return outputs [n, H, D] and lse [n, H] of a chunk: token i sees first_position + i + 1."""
    outputs, lse = np.zeros(np.shape(queries), dtype), np.zeros(np.shape(queries)[:2], dtype)
    for i, query in enumerate(queries):
        seen = slice(first_position + i + 1)
        outputs[i], lse[i] = attention(query, keys[seen], values[seen], sm_scale, dtype)
    return outputs, lse


def page_tokens(pages, page_size, context_tokens):
    """Return the token positions of the selected logical pages; negative pages are no pages."""
    tokens = [np.arange(p * page_size, (p + 1) * page_size) for p in pages if p >= 0]
    tokens = np.concatenate(tokens) if tokens else np.empty(0, np.int64)
    return tokens[tokens < context_tokens].astype(np.int64)


def attention_over_pages(queries, keys, values, selected, page_size, sm_scale, dtype=np.float64):
    """Return outputs [H, D] and lse [H] of one request over its selected pages [S, K]."""
    heads = len(queries)
    heads_per_unit = heads // len(selected)
    outputs, lse = np.zeros(np.shape(queries), dtype), np.full(heads, -np.inf, dtype)
    for head in range(heads):
        tokens = page_tokens(selected[head // heads_per_unit], page_size, len(keys))
        kv_head = head // (heads // keys.shape[1])
        rows = np.s_[tokens, kv_head : kv_head + 1]
        one = attention(queries[head : head + 1], keys[rows], values[rows], sm_scale, dtype)
        outputs[head], lse[head] = one[0][0], one[1][0]
    return outputs, lse


def sparse_decode(
    queries, keys, values, *, page_size, top_k_pages, summary, share, sm_scale,
    num_sink_pages=0, num_recent_pages=0, summary_dtype=np.float64,
):  # fmt: skip
    """Return outputs [H, D], lse [H], selected [S, K] and scores [S, P] of one request."""
    summaries = summarise_pages(keys, page_size, summary, summary_dtype)
    if not summaries:
        units = {"request": 1, "kv_head": keys.shape[1], "query_head": len(queries)}[share]
        scores = np.empty((units, 0))
    else:
        scores = page_scores(queries, summaries, summary, share, sm_scale)
    selected = [select(row, top_k_pages, num_sink_pages, num_recent_pages) for row in scores]
    selected = np.array(selected, np.int32).reshape(len(scores), top_k_pages)
    outputs, lse = attention_over_pages(queries, keys, values, selected, page_size, sm_scale)
    return outputs, lse, selected, scores


def tolerance(exact, naive, eps=8 * FLOAT32_EPS):
    """Return twice the worst error of the naive result, plus eps of the largest magnitude."""
    exact, naive = np.asarray(exact, np.float64), np.asarray(naive, np.float64)
    finite = np.isfinite(exact)
    if not finite.any():
        return eps
    worst = np.abs(naive[finite] - exact[finite]).max()
    return 2 * worst + eps * max(1.0, np.abs(exact[finite]).max())


def assert_as_exact_as_float32(actual, exact, naive, eps=8 * FLOAT32_EPS):
    """Fail unless |actual - exact| <= 2 x the worst |naive - exact|, + eps; infinities agree."""
    actual, exact = np.asarray(actual, np.float64), np.asarray(exact, np.float64)
    assert actual.shape == exact.shape
    finite = np.isfinite(exact)
    np.testing.assert_array_equal(actual[~finite], exact[~finite])
    if finite.any():
        error = np.abs(actual[finite] - exact[finite]).max()
        allowed = tolerance(exact, naive, eps)
        assert error <= allowed, f"error {error:.3e} is over {allowed:.3e}"
