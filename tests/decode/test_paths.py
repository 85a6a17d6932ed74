"""Decode paths: right by the oracle, and the same bits however a request is stored or batched."""

import dataclasses

import numba
import numpy as np
import pytest

from numbadsd.decode.path import PATHS, make_path
from numbadsd.errors import CudaUnavailable, StorageUnavailable
from numbadsd.pages.cache import PagedKvCache
from tests import oracle
from tests.builders import (
    DTYPES,
    SHARES,
    SUMMARIES,
    make_cache,
    random_queries,
    random_tokens,
    small_config,
)
from tests.decode.checks import (
    assert_same_bits,
    check_attention,
    decode,
    oracle_selection,
    rows_of,
)

T = 4
# P = 0, 1, k-1, k, k+1 and more pages of T = 4 for k = 3; tails of 1, of some and of T tokens.
CONTEXTS = [0, 1, T, 2 * T, 3 * T - 1, 3 * T, 3 * T + 1, 4 * T, 9 * T + 2, 150]
FUSED = pytest.mark.parametrize("fused", [True, False], ids=["fused", "staged"])
BOTH = [("dense_cpu", True), ("sparse_cpu", True), ("sparse_cpu", False)]
EVERY_PATH = pytest.mark.parametrize("name, fused", BOTH, ids=["dense", "fused", "staged"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("summary", SUMMARIES)
@FUSED
def test_sparse_decode_equals_the_oracle(summary, share, dtype, fused):
    config = small_config(
        summary=summary, share=share, kv_dtype=dtype, num_sink_pages=1, num_recent_pages=1
    )
    cache, keys, values = make_cache(config, CONTEXTS, seed=1, shuffle=2)
    queries = random_queries(config, len(CONTEXTS), seed=3)
    result = decode("sparse_cpu", cache, queries, fused=fused)
    assert result.selected_pages.dtype == np.int32
    assert result.selected_pages.shape == (len(CONTEXTS), config.num_units, 3)
    clear_units = []
    for b in range(len(CONTEXTS)):
        expected, clear = oracle_selection(config, queries[b], keys[b])
        np.testing.assert_array_equal(result.selected_pages[b][clear], expected[clear])
        clear_units.extend(clear)
    assert np.mean(clear_units) > 0.8
    check_attention(config, result, queries, keys, values)


@pytest.mark.parametrize("share", SHARES)
def test_the_whole_step_equals_the_whole_oracle(share):
    config = small_config(summary="minmax", share=share, num_heads=8, head_dim=32)
    cache, keys, values = make_cache(config, [50, 33, 0, 1], seed=5)
    queries = random_queries(config, 4, seed=6)
    result = decode("sparse_cpu", cache, queries)
    for b in range(4):
        outputs, lse, selected, _ = oracle.sparse_decode(
            queries[b], keys[b], values[b], page_size=T, top_k_pages=3, summary="minmax",
            share=share, sm_scale=config.sm_scale,
        )  # fmt: skip
        np.testing.assert_array_equal(result.selected_pages[b], selected)
        np.testing.assert_allclose(result.outputs[b], outputs, rtol=0, atol=2e-6)
        np.testing.assert_allclose(result.lse[b], lse, rtol=0, atol=4e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("page_size, head_dim", [(1, 16), (8, 80), (16, 128), (64, 256)])
def test_dense_decode_equals_the_oracle(page_size, head_dim, dtype):
    config = small_config(page_size=page_size, head_dim=head_dim, kv_dtype=dtype)
    cache, keys, values = make_cache(config, CONTEXTS, seed=7, shuffle=8)
    queries = random_queries(config, len(CONTEXTS), seed=9)
    result = decode("dense_cpu", cache, queries)
    assert result.outputs.shape == queries.shape and result.outputs.dtype == np.float32
    assert result.lse.shape == queries.shape[:2] and result.lse.dtype == np.float32
    assert result.selected_pages is None
    check_attention(config, result, queries, keys, values)


@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (4, 1), (8, 1), (6, 2), (8, 2)])
@pytest.mark.parametrize("share", SHARES)
@FUSED
def test_every_group_size(heads, kv_heads, share, fused):
    config = small_config(num_heads=heads, num_kv_heads=kv_heads, share=share, head_dim=80)
    cache, keys, values = make_cache(config, CONTEXTS, seed=heads)
    queries = random_queries(config, len(CONTEXTS), seed=kv_heads)
    result = decode("sparse_cpu", cache, queries, fused=fused)
    check_attention(config, result, queries, keys, values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", SHARES)
@FUSED
def test_all_pages_selected_give_the_bits_of_dense(share, dtype, fused):
    contexts = [*CONTEXTS, 700]
    for top_k, heads in ((175, 8), (400, 6)):
        config = small_config(share=share, kv_dtype=dtype, top_k_pages=top_k, num_heads=heads)
        cache, _, _ = make_cache(config, contexts, seed=11, shuffle=12)
        queries = random_queries(config, len(contexts), seed=13)
        dense = decode("dense_cpu", cache, queries)
        sparse = decode("sparse_cpu", cache, queries, fused=fused)
        for b, tokens in enumerate(contexts):
            pages = -(-tokens // T)
            expected = np.r_[np.arange(pages), np.full(top_k - pages, -1)]
            assert np.all(sparse.selected_pages[b] == expected)
        assert_same_bits(dense, dataclasses.replace(sparse, selected_pages=None))


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("summary", SUMMARIES)
def test_fused_and_staged_give_the_same_bits(summary, share):
    config = small_config(summary=summary, share=share, num_heads=8, top_k_pages=40)
    cache, _, _ = make_cache(config, [*CONTEXTS, 700], seed=14, shuffle=15)
    queries = random_queries(config, len(CONTEXTS) + 1, seed=16)
    fused = decode("sparse_cpu", cache, queries)
    assert_same_bits(fused, decode("sparse_cpu", cache, queries, fused=False))


@pytest.mark.parametrize("share", SHARES)
@EVERY_PATH
def test_a_request_has_the_same_bits_alone_and_in_any_batch(name, fused, share):
    config = small_config(share=share, summary="mean_std", num_heads=8, head_dim=80)
    cache, _, _ = make_cache(config, [*CONTEXTS, 700], seed=17)
    batch = len(CONTEXTS) + 1
    queries = random_queries(config, batch, seed=18)
    together = decode(name, cache, queries, fused=fused)
    rng = np.random.default_rng(19)
    batches = [[b] for b in range(batch)] + [rng.permutation(batch) for _ in range(3)]
    for rows in [*batches, [8, 8, 8], [10, 0]]:
        some = decode(name, cache, queries[rows], [int(b) for b in rows], fused=fused)
        assert_same_bits(some, rows_of(together, rows))


@pytest.mark.parametrize("dtype", DTYPES)
@EVERY_PATH
def test_physical_pages_and_the_way_of_appending_change_no_bits(name, fused, dtype):
    config = small_config(share="kv_head", summary="cuboid_mean", kv_dtype=dtype)
    cache, keys, values = make_cache(config, CONTEXTS, seed=20, capacity_pages=100)
    queries = random_queries(config, len(CONTEXTS), seed=21)
    expected = decode(name, cache, queries, fused=fused)
    other, _, _ = make_cache(config, CONTEXTS, seed=20, capacity_pages=128, shuffle=22)
    assert not np.array_equal(other.request_pages(9), cache.request_pages(9))
    assert_same_bits(decode(name, other, queries, fused=fused), expected)
    mixed, _, _ = make_cache(config, [30, 30, 30], seed=99, capacity_pages=128, shuffle=23)
    for stale in range(3):
        mixed.release_request(stale)
    for b in range(len(CONTEXTS)):
        mixed.append_tokens(b, keys[b][:0], values[b][:0])
    for t in range(max(CONTEXTS)):  # one token a step, requests interleaved
        active = [b for b in range(len(CONTEXTS)) if t < len(keys[b])]
        step = [np.stack([a[b][t] for b in active]) for a in (keys, values)]
        mixed.append_step(active, *step)
    assert_same_bits(decode(name, mixed, queries, fused=fused), expected)


@EVERY_PATH
def test_twenty_runs_give_the_same_bits(name, fused):
    config = small_config(share="query_head", num_heads=8, top_k_pages=20)
    cache, _, _ = make_cache(config, [700, 33, 150, 1], seed=24, shuffle=25)
    queries = random_queries(config, 4, seed=26)
    path = make_path(name, cache, fused=fused)
    first = path.decode(queries, range(4))
    for _ in range(19):
        assert_same_bits(path.decode(queries, range(4)), first)


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="Numba has one thread here")
@pytest.mark.parametrize("share", SHARES)
@EVERY_PATH
def test_the_thread_count_changes_no_bits(num_threads, name, fused, share):
    config = small_config(share=share, num_heads=16, num_kv_heads=8, top_k_pages=20)
    cache, _, _ = make_cache(config, [700, 33, 150, 1], seed=27)
    queries = random_queries(config, 4, seed=28)
    results = []
    for count in (1, 2):
        num_threads(count)
        results.append(decode(name, cache, queries, fused=fused))
    assert_same_bits(*results)


@pytest.mark.parametrize("share", SHARES)
@FUSED
def test_k_of_zero_attends_to_nothing(share, fused):
    config = small_config(top_k_pages=0, share=share)
    cache, _, _ = make_cache(config, [0, 1, 30])
    result = decode("sparse_cpu", cache, random_queries(config, 3, seed=0), fused=fused)
    assert np.all(result.outputs == 0) and np.all(result.lse == -np.inf)
    assert result.selected_pages.shape == (3, config.num_units, 0)


@EVERY_PATH
def test_an_empty_context_attends_to_nothing(name, fused):
    config = small_config()
    cache, _, _ = make_cache(config, [0, 0], capacity_pages=2)
    result = decode(name, cache, random_queries(config, 2, seed=0), fused=fused)
    assert np.all(result.outputs == 0) and np.all(result.lse == -np.inf)
    if name == "sparse_cpu":
        assert np.all(result.selected_pages == -1)


@EVERY_PATH
def test_an_empty_batch_gives_empty_results(name, fused):
    config = small_config()
    cache, _, _ = make_cache(config, [5])
    result = decode(name, cache, random_queries(config, 0, seed=0), [], fused=fused)
    assert result.outputs.shape == (0, 4, 16) and result.lse.shape == (0, 4)


@FUSED
@pytest.mark.parametrize("share", SHARES)
def test_equal_pages_are_selected_from_the_lowest(share, fused):
    config = small_config(share=share, num_recent_pages=1)
    cache, _, _ = make_cache(config, [], capacity_pages=20)
    row = np.ones((10 * T, 2, 16), np.float32)
    cache.append_tokens(0, row, row)
    result = decode("sparse_cpu", cache, random_queries(config, 1, seed=2), fused=fused)
    assert np.all(result.selected_pages == [0, 1, 9])


@FUSED
@pytest.mark.parametrize("share", SHARES)
def test_a_nan_page_is_selected_last_and_an_infinite_one_first(share, fused):
    config = small_config(share=share)
    cache, _, _ = make_cache(config, [6 * T], seed=4)
    queries = np.abs(random_queries(config, 1, seed=5))
    pages = cache.request_pages(0)
    cache.summaries[pages[1]] = np.nan
    cache.summaries[pages[2]] = -np.inf
    cache.summaries[pages[4]] = np.inf
    result = decode("sparse_cpu", cache, queries, fused=fused)
    for chosen in result.selected_pages.reshape(-1, 3).tolist():
        assert 4 in chosen and 1 not in chosen and 2 not in chosen


@EVERY_PATH
def test_a_released_request_leaves_nothing_behind(name, fused):
    config = small_config(summary="minmax", share="kv_head")
    cache, _, _ = make_cache(config, [60, 60], seed=6)
    queries = random_queries(config, 1, seed=7)
    cache.release_request(0)
    fresh, keys, values = make_cache(config, [41], seed=8)
    cache.append_tokens(0, keys[0], values[0])
    expected = decode(name, fresh, queries, fused=fused)
    assert_same_bits(decode(name, cache, queries, [0], fused=fused), expected)


@EVERY_PATH
def test_a_step_sees_the_tokens_appended_before_it(name, fused):
    config = small_config(summary="minmax", share="kv_head", num_recent_pages=1)
    cache, keys, values = make_cache(config, [7, 0], seed=9, capacity_pages=30)
    path = make_path(name, cache, fused=fused)
    tokens = [list(zip(k, v, strict=True)) for k, v in zip(keys, values, strict=True)]
    for step in range(20):
        new = np.random.default_rng(step).standard_normal((2, 2, 2, 16)).astype(np.float32)
        cache.append_step([1, 0], *new)
        for row, request in enumerate([1, 0]):
            tokens[request].append((new[0, row], new[1, row]))
        queries = random_queries(config, 2, seed=step)
        now = [np.array(list(zip(*t, strict=True))) for t in tokens]
        result = path.decode(queries, [0, 1])
        check_attention(config, result, queries, [n[0] for n in now], [n[1] for n in now])


@EVERY_PATH
def test_a_step_changes_neither_cache_nor_queries(name, fused):
    config = small_config(share="kv_head")
    cache, _, _ = make_cache(config, [30, 3], seed=10)
    queries = random_queries(config, 2, seed=11)
    arrays = (cache.pool.keys, cache.pool.values, cache.summaries, queries)
    before = [array.copy() for array in arrays]
    first = decode(name, cache, queries, fused=fused)
    for array, old in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, old)
    cache.check_integrity()
    kept = first.outputs.copy()
    decode(name, cache, -queries, fused=fused)
    np.testing.assert_array_equal(first.outputs, kept)  # results own their memory


@EVERY_PATH
def test_queries_of_any_layout_are_read_right(name, fused):
    config = small_config()
    cache, _, _ = make_cache(config, [30, 3], seed=12)
    queries = random_queries(config, 2, seed=13)
    expected = decode(name, cache, queries, fused=fused)
    strided = np.repeat(queries, 2, axis=1)[:, ::2]
    assert_same_bits(decode(name, cache, strided, fused=fused), expected)


@EVERY_PATH
def test_times_of_the_stages_add_up(name, fused):
    config = small_config()
    cache, _, _ = make_cache(config, [300, 30], seed=14)
    stages = decode(name, cache, random_queries(config, 2, seed=15), fused=fused).stages
    parts = [stages.score_ms, stages.topk_ms, stages.gather_ms, stages.attend_ms]
    assert all(part >= 0 for part in parts) and stages.attend_ms > 0
    assert sum(parts) + sum(stages.overheads_ms.values()) <= stages.total_ms * (1 + 1e-9)
    assert (stages.gather_ms > 0) == (not fused)
    assert (stages.score_ms > 0) == (stages.topk_ms > 0) == (name == "sparse_cpu")


Q = random_queries(small_config(), 2, seed=16)
WRONG = {
    "a query too few": lambda path: path.decode(Q[:1], [0, 1]),
    "a head too few": lambda path: path.decode(Q[:, :3], [0, 1]),
    "another head_dim": lambda path: path.decode(np.repeat(Q, 2, axis=2), [0, 1]),
    "no batch axis": lambda path: path.decode(Q[0], [0]),
    "an unknown request": lambda path: path.decode(Q, [0, 7]),
    "complex queries": lambda path: path.decode(Q.astype(np.complex64), [0, 1]),
    "no numbers": lambda path: path.decode(np.full(Q.shape, "x"), [0, 1]),
}


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
@EVERY_PATH
def test_a_wrong_argument_is_a_value_error(name, fused, call):
    cache, _, _ = make_cache(small_config(), [9, 5], seed=17)
    path = make_path(name, cache, fused=fused)
    before = path.decode(Q, [0, 1])
    with pytest.raises(ValueError, match="(?s)(queries|request_id).*got .*want"):
        call(path)
    cache.check_integrity()
    assert_same_bits(path.decode(Q, [0, 1]), before)


@EVERY_PATH
def test_a_cache_without_storage_is_refused_before_a_kernel_reads_it(name, fused, monkeypatch):
    def unreachable(*arguments):
        raise AssertionError("a kernel was given storage that does not exist")

    for kernel in ("score_pages", "gather_pages", "attend_pages"):
        monkeypatch.setattr(f"numbadsd.decode.cpu.{kernel}", unreachable)
    cache = PagedKvCache(small_config(), 4, allocate_storage=False)
    cache.append_metadata(0, 5)
    with pytest.raises(StorageUnavailable):
        decode(name, cache, Q[:1], fused=fused)


def test_the_four_paths_have_names():
    assert list(PATHS) == ["dense_cpu", "sparse_cpu", "dense_gpu", "sparse_gpu"]


@pytest.mark.parametrize("name", ["", "sparse", "DENSE_CPU", None])
def test_an_unknown_path_lists_the_known_ones(name):
    cache, _, _ = make_cache(small_config(), [1])
    with pytest.raises(ValueError, match="got .*want.*dense_cpu.*sparse_gpu"):
        make_path(name, cache)


@pytest.mark.parametrize("name", ["dense_gpu", "sparse_gpu"])
def test_a_gpu_path_that_cannot_run_says_why_and_what_to_do(name, monkeypatch):
    problem = ("the driver is from last century", "install one of this century")
    monkeypatch.setattr("numbadsd.decode.path.why_unavailable", lambda: problem)
    cache, _, _ = make_cache(small_config(), [1])
    with pytest.raises(CudaUnavailable) as caught:
        make_path(name, cache)
    assert (caught.value.reason, caught.value.remedy) == problem
    assert str(caught.value) == "; ".join(problem)
    assert not cache.mirrors


@pytest.mark.parametrize("name", ["dense_cpu", "sparse_cpu"])
def test_page_lists_are_kept_only_while_the_cache_is_unchanged(name):
    config = small_config()
    cache, _, _ = make_cache(config, [9, 5], capacity_pages=40)
    queries, path = random_queries(config, 2, 1), make_path(name, cache)

    def check(ids):
        fresh = make_path(name, cache).decode(queries[: len(ids)], ids)
        for _ in range(2):  # the second one by the lists that were kept
            assert_same_bits(path.decode(queries[: len(ids)], ids), fresh)

    check([0, 1])
    check([1, 0])
    cache.append_step([0, 1], *random_tokens(config, 2, 3))
    check([1, 0])
    cache.release_request(1)
    cache.append_tokens(1, *random_tokens(config, 6, 4))
    check([1, 0])
    cache.reset()
    cache.append_tokens(0, *random_tokens(config, 3, 5))
    check([0])
