"""What results of decode paths are held against, whatever backend and size."""

import dataclasses

import numpy as np

from numbadsd.config import KV_DTYPES
from numbadsd.decode.path import make_path
from numbadsd.pages.cache import PagedKvCache
from numbadsd.pages.device import device_pool_of
from tests import oracle
from tests.builders import DTYPES, SHARES, SUMMARIES, random_queries, random_tokens

SCORINGS = [  # every summary with every share, and each of them with every dtype
    (summary, share, DTYPES[(i + j) % 3])
    for i, summary in enumerate(SUMMARIES)
    for j, share in enumerate(SHARES)
]


def decode(name, cache, queries, request_ids=None, **options):
    """Return the result of a new path over some requests, or over all."""
    request_ids = cache.request_ids if request_ids is None else request_ids
    return make_path(name, cache, **options).decode(queries, request_ids)


def assert_same_bits(a, b):
    """Fail unless outputs, lse and selection of two results are bit-identical."""
    np.testing.assert_array_equal(a.outputs.view(np.uint32), b.outputs.view(np.uint32))
    np.testing.assert_array_equal(a.lse.view(np.uint32), b.lse.view(np.uint32))
    assert (a.selected_pages is None) == (b.selected_pages is None)
    if a.selected_pages is not None:
        np.testing.assert_array_equal(a.selected_pages, b.selected_pages)


def rows_of(result, rows):
    """Return the result of some requests of a batch."""
    selected = None if result.selected_pages is None else result.selected_pages[rows]
    scores = None if result.scores is None else result.scores[rows]
    return dataclasses.replace(
        result, outputs=result.outputs[rows], lse=result.lse[rows],
        selected_pages=selected, scores=scores,
    )  # fmt: skip


def page_count(config, keys):
    """Return the pages of a request with these keys, [tokens, G, D]."""
    return -(-len(keys) // config.page_size)


def check_attention(config, result, queries, keys, values):
    """Compare outputs and lse with the oracle's over the pages that the path itself selected."""
    for b in range(len(queries)):
        selected = [range(page_count(config, keys[b]))]
        if result.selected_pages is not None:
            selected = result.selected_pages[b]
        common = (queries[b], keys[b], values[b], selected, config.page_size, config.sm_scale)
        exact = oracle.attention_over_pages(*common)
        naive = oracle.attention_over_pages(*common, np.float32)
        oracle.assert_as_exact_as_float32(result.outputs[b], exact[0], naive[0])
        oracle.assert_as_exact_as_float32(result.lse[b], exact[1], naive[1])


def oracle_selection(config, queries, keys):
    """Return the oracle's selection [S, K] and whether each unit's score gap is clear, [S]."""
    summaries = oracle.summarise_pages(
        keys, config.page_size, config.summary, KV_DTYPES[config.summary_dtype]
    )
    k, pages = config.top_k_pages, len(summaries)
    forced = (config.num_sink_pages, config.num_recent_pages)
    if pages == 0:
        return np.full((config.num_units, k), -1), np.full(config.num_units, True)
    scores = oracle.page_scores(queries, summaries, config.summary, config.share, config.sm_scale)
    selected = np.array([oracle.select(row, k, *forced) for row in scores], np.int32)
    clear = []
    for row, chosen in zip(scores, selected.reshape(len(scores), k), strict=True):
        free = [p for p in range(pages) if forced[0] <= p < pages - forced[1]]
        kept = [row[p] for p in free if p in chosen]
        left = [row[p] for p in free if p not in chosen]
        # a summary's element may be rounded to its neighbour: 2^-8 is bfloat16's unit
        unit = {"float32": 1e-5, "float16": 2.0**-9, "bfloat16": 2.0**-6}[config.summary_dtype]
        clear.append(not kept or not left or min(kept) - max(left) > unit * np.abs(row).max())
    return selected.reshape(-1, k), np.array(clear)


def check_scores_and_selection(cache, result, queries, request_ids):
    """Compare scores with the oracle's, and the selection with the oracle's from these scores."""
    config = cache.config
    forced = (config.num_sink_pages, config.num_recent_pages)
    for b, request_id in enumerate(request_ids):
        summaries = cache.summaries[cache.request_pages(request_id)]
        scores = result.scores[b, :, : len(summaries)]
        if len(summaries):
            common = (queries[b], summaries, config.summary, config.share, config.sm_scale)
            exact = oracle.page_scores(*common)
            naive = oracle.page_scores(*common, np.float32)
            oracle.assert_as_exact_as_float32(scores, exact, naive)
        expected = [oracle.select(row, config.top_k_pages, *forced) for row in scores]
        np.testing.assert_array_equal(result.selected_pages[b], np.array(expected, np.int32))


def check_gpu_like_cpu(name, cache, queries, request_ids, atol, **options):
    """Compare a GPU path with its CPU twin wherever both selected the same pages; return it."""
    gpu = decode(f"{name}_gpu", cache, queries, request_ids, output_mode="debug", **options)
    cpu = decode(f"{name}_cpu", cache, queries, request_ids)
    same = np.full(gpu.lse.shape, True)
    if name == "sparse":
        agreed = (gpu.selected_pages == cpu.selected_pages).all(axis=-1)  # [B, S]
        assert agreed.mean() > 0.95
        same = np.repeat(agreed, gpu.lse.shape[1] // agreed.shape[1], axis=1)
    np.testing.assert_allclose(gpu.outputs[same], cpu.outputs[same], rtol=0, atol=atol)
    np.testing.assert_allclose(gpu.lse[same], cpu.lse[same], rtol=0, atol=atol)
    return gpu


def check_eager_like_graph(name, cache, queries, request_ids, runs=2):
    """Fail unless launches one by one, the first run of a graph and its replays are one result."""
    eager = decode(name, cache, queries, request_ids, use_graph=False, output_mode="debug")
    path = make_path(name, cache, output_mode="debug")
    for _ in range(runs):
        assert_same_bits(path.decode(queries, request_ids), eager)


def check_alone_like_batch(name, cache, queries, request_ids, batches, **options):
    """Fail unless requests have the same bits in every batch, given as rows of the whole one."""
    path = make_path(name, cache, output_mode="debug", **options)
    together = path.decode(queries, request_ids)
    for rows in batches:
        some = path.decode(queries[rows], [request_ids[row] for row in rows])
        assert_same_bits(some, rows_of(together, rows))


def check_all_pages_like_dense(cache, queries, request_ids, **options):
    """Fail unless a sparse GPU path that selects every page gives the bits of the dense one."""
    config = cache.config
    dense = decode("dense_gpu", cache, queries, request_ids, **options)
    sparse = decode("sparse_gpu", cache, queries, request_ids, output_mode="debug", **options)
    for b, request_id in enumerate(request_ids):
        pages = len(cache.request_pages(request_id))
        expected = np.r_[np.arange(pages), np.full(config.top_k_pages - pages, -1)]
        assert np.all(sparse.selected_pages[b] == expected)
    assert_same_bits(dense, dataclasses.replace(sparse, selected_pages=None))


def check_like_a_new_path(cache, name, result, queries, request_ids):
    """Fail unless a result has the bits of a path made now over a copy of the cache."""
    copy = PagedKvCache(cache.config, cache.pool.capacity_pages)
    for request_id in request_ids:
        copy.append_tokens(request_id, cache.copy_keys(request_id), cache.copy_values(request_id))
    assert_same_bits(result, decode(name, copy, queries, request_ids, use_graph=False))


def check_stale_memory_is_never_read(name, cache, contexts, atol, **options):
    """Fail unless tokens that are put into memory full of NaN are all that is attended to."""
    pool = device_pool_of(cache)
    for array in (pool.keys, pool.values, pool.summaries):
        pool.stream.fill(array, 0xFF)  # NaN in every dtype
    for request_id, tokens in enumerate(contexts):
        cache.append_tokens(request_id, *random_tokens(cache.config, tokens, request_id))
    queries, request_ids = random_queries(cache.config, len(contexts), 1), cache.request_ids
    result = check_gpu_like_cpu(name, cache, queries, request_ids, atol, **options)
    assert np.isfinite(result.outputs).all()


def check_times(stages):
    """Fail unless no time is negative, and stages and overheads add up to the total."""
    parts = [stages.score_ms, stages.topk_ms, stages.gather_ms, stages.attend_ms]
    parts += stages.overheads_ms.values()
    assert min(parts) >= 0 and 0 <= stages.kernel_ms <= stages.total_ms
    assert abs(sum(parts) - stages.total_ms) <= 1e-6 * stages.total_ms


def write_page_id(pool, request_id, index, page_id):
    """Put a page id into a request's row on the device, as a fault of memory would."""
    rows, _ = pool.tables.sync([request_id])
    row_pages = pool.tables.row_pages
    place = int(rows[0]) * row_pages.shape[1] + index
    target = row_pages.reshape(row_pages.size)[place : place + 1]
    pool.stream.upload(target, np.array([page_id], np.int32))
    pool.stream.synchronize()
