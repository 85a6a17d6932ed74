"""GPU paths in the simulator: right by the oracle, like their CPU twins, always the same bits."""

import numpy as np
import pytest

from numbadsd.decode import gpu
from numbadsd.decode.path import make_path
from numbadsd.errors import IntegrityError
from numbadsd.kernels.cuda.sim_driver import SimDriver
from numbadsd.pages import device_tables
from numbadsd.pages.cache import PagedKvCache
from tests.builders import (
    DTYPES,
    SHARES,
    make_cache,
    random_queries,
    random_tokens,
    small_config,
)
from tests.decode.checks import (
    SCORINGS,
    assert_same_bits,
    check_all_pages_like_dense,
    check_alone_like_batch,
    check_attention,
    check_eager_like_graph,
    check_gpu_like_cpu,
    check_like_a_new_path,
    check_scores_and_selection,
    check_stale_memory_is_never_read,
    check_times,
    decode,
    rows_of,
    write_page_id,
)
from tests.pages.checks import count_allocations, download
from tests.pages.late import use_late_streams

T = 4  # page_size of small_config
# P = 0, 1, k, k+1 and more pages of T = 4 for k = 3; tails of 1, of some and of T tokens; two
# splits at the end.
CONTEXTS = [0, 1, 3 * T, 3 * T + 1, 9 * T + 2, 70]
ATOL = 4e-6
EAGER = dict(use_graph=False)  # half the work where a graph is not the point
SMALL = dict(num_heads=2, num_kv_heads=1)
NAMES = ["dense_gpu", "sparse_gpu"]
EVERY_PATH = pytest.mark.parametrize("name", NAMES)


def made(contexts=(9, 0, 30), seed=1, *, capacity_pages=60, shuffle=2, **changes):
    """Return a cache, its keys and values, queries for all requests, and their ids."""
    config = small_config(**(SMALL | changes))
    cache, keys, values = make_cache(
        config, contexts, seed, capacity_pages=capacity_pages, shuffle=shuffle
    )
    queries = random_queries(config, len(contexts), seed)
    return cache, keys, values, queries, list(range(len(contexts)))


# ---- right


@pytest.mark.parametrize("summary, share, dtype", SCORINGS)
def test_sparse_decode_equals_the_oracle_and_the_cpu(summary, share, dtype):
    cache, keys, values, queries, ids = made(
        CONTEXTS, summary=summary, share=share, kv_dtype=dtype, num_heads=4, num_kv_heads=2,
        num_sink_pages=1, num_recent_pages=1,
    )  # fmt: skip
    result = check_gpu_like_cpu("sparse", cache, queries, ids, ATOL, **EAGER)
    assert result.selected_pages.dtype == np.int32
    check_scores_and_selection(cache, result, queries, ids)
    check_attention(cache.config, result, queries, keys, values)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dense_decode_equals_the_oracle_and_the_cpu(dtype):
    cache, keys, values, queries, ids = made(CONTEXTS, kv_dtype=dtype, num_heads=4, num_kv_heads=2)
    result = check_gpu_like_cpu("dense", cache, queries, ids, ATOL, **EAGER)
    assert result.outputs.shape == queries.shape and result.outputs.dtype == np.float32
    assert result.lse.shape == queries.shape[:2] and result.lse.dtype == np.float32
    check_attention(cache.config, result, queries, keys, values)


@pytest.mark.parametrize(
    "heads, kv_heads, page_size, head_dim, dtype",
    [(6, 2, 1, 16, "float16"), (4, 4, 8, 80, "float32"), (16, 1, 16, 32, "bfloat16")],
)
@pytest.mark.parametrize("name", ["dense", "sparse"])
def test_other_shapes(name, heads, kv_heads, page_size, head_dim, dtype):
    cache, keys, values, queries, ids = made(
        [17, 5], num_heads=heads, num_kv_heads=kv_heads, page_size=page_size, head_dim=head_dim,
        kv_dtype=dtype, top_k_pages=2, share="kv_head", summary="cuboid_mean",
    )  # fmt: skip
    result = check_gpu_like_cpu(name, cache, queries, ids, ATOL, **EAGER)
    check_attention(cache.config, result, queries, keys, values)


@pytest.mark.parametrize("forced", [(0, 0), (2, 1), (0, 3)], ids=str)
def test_sink_and_recent_pages_are_always_selected(forced):
    sink, recent = forced
    cache, _, _, queries, ids = made(
        [38, 5], num_sink_pages=sink, num_recent_pages=recent, share="query_head"
    )
    result = check_gpu_like_cpu("sparse", cache, queries, ids, ATOL, **EAGER)
    check_scores_and_selection(cache, result, queries, ids)
    for chosen in result.selected_pages[0].tolist():
        assert {*range(sink), *range(10 - recent, 10)} <= set(chosen)


def test_a_nan_page_is_selected_last_and_an_infinite_one_first():
    cache, _, _, queries, ids = made([6 * T], share="query_head")
    queries = np.abs(queries)
    keys, values = random_tokens(cache.config, 6 * T, 3)
    for page, number in ((1, np.nan), (2, -np.inf), (4, np.inf)):
        keys[page * T : (page + 1) * T] = number
    cache.release_request(0)
    cache.append_tokens(0, keys, values)
    result = decode("sparse_gpu", cache, queries, ids, output_mode="debug", **EAGER)
    for chosen in result.selected_pages.reshape(-1, 3).tolist():
        assert 4 in chosen and 1 not in chosen and 2 not in chosen


@pytest.mark.parametrize("name", ["dense", "sparse"])
def test_what_lies_in_slots_without_tokens_is_never_attended_to(name):
    config = small_config(**SMALL, kv_dtype="float16", share="query_head", summary="minmax")
    cache = PagedKvCache(config, 40)
    check_stale_memory_is_never_read(name, cache, (1, 0, 5, 70), ATOL, **EAGER)


def test_k_of_zero_attends_to_nothing():
    cache, _, _, queries, ids = made(top_k_pages=0, share="query_head")
    result = decode("sparse_gpu", cache, queries, ids, output_mode="debug")
    assert np.all(result.outputs == 0) and np.all(result.lse == -np.inf)
    assert result.selected_pages.shape == (3, 2, 0)


@EVERY_PATH
def test_empty_contexts_attend_to_nothing(name):
    cache, _, _, queries, ids = made([0, 0])
    result = decode(name, cache, queries, ids, output_mode="debug")
    assert np.all(result.outputs == 0) and np.all(result.lse == -np.inf)
    assert result.selected_pages is None or np.all(result.selected_pages == -1)


@pytest.mark.parametrize("mode", gpu.OUTPUT_MODES)
@EVERY_PATH
def test_an_empty_batch_gives_an_empty_result(name, mode):
    cache, _, _, queries, _ = made([5])
    empty = decode(name, cache, queries[:0], [], output_mode=mode)
    full = decode(name, cache, queries, [0], output_mode=mode, **EAGER)
    for field in ("outputs", "lse", "selected_pages", "scores"):
        ours, theirs = getattr(empty, field), getattr(full, field)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.dtype == theirs.dtype and ours.ndim == theirs.ndim and len(ours) == 0
    assert empty.outputs is None or empty.outputs.shape == (0, 2, 16)
    check_times(empty.stages)


# ---- the same bits


@EVERY_PATH
def test_launches_and_graphs_give_the_same_bits(name):
    cache, _, _, queries, ids = made([70, 0, 9], share="query_head")
    check_eager_like_graph(name, cache, queries, ids)


@EVERY_PATH
def test_a_device_that_works_late_gives_the_same_bits(name, monkeypatch):
    cache, _, _, queries, ids = made([30, 9])
    expected = decode(name, cache, queries, ids, **EAGER)
    use_late_streams(monkeypatch)
    other = made([30, 9])[0]
    path = make_path(name, other)
    for _ in range(2):
        assert_same_bits(path.decode(queries, ids), expected)
    other.append_step([1, 0], *random_tokens(other.config, 2, 5))
    cache.append_step([1, 0], *random_tokens(other.config, 2, 5))
    expected = decode(name, cache, queries, ids, **EAGER)
    assert_same_bits(path.decode(queries, ids), expected)


@EVERY_PATH
def test_a_request_has_the_same_bits_alone_and_in_any_batch(name):
    cache, _, _, queries, ids = made([70, 0, 9, 1], share="query_head", kv_dtype="float16")
    batches = [[0], [1], [2], [3, 0], [2, 2, 0]]
    check_alone_like_batch(name, cache, queries, ids, batches, **EAGER)


@pytest.mark.parametrize("share", SHARES)
def test_all_pages_selected_give_the_bits_of_dense(share):
    cache, _, _, queries, ids = made(
        [70, 0, 4 * T], share=share, top_k_pages=20, num_heads=4, num_kv_heads=2, kv_dtype="float16"
    )
    check_all_pages_like_dense(cache, queries, ids, **EAGER)


@EVERY_PATH
def test_ten_runs_give_the_same_bits(name):
    cache, _, _, queries, ids = made([38])
    check_eager_like_graph(name, cache, queries, ids, runs=10)


# ---- a graph stays right when the cache changes


@EVERY_PATH
def test_a_replay_sees_the_tokens_appended_before_it(name, monkeypatch):
    cache, _, _, queries, ids = made([3, 0], summary="minmax", num_recent_pages=1)
    path = make_path(name, cache)
    path.decode(queries, ids)
    monkeypatch.setattr(gpu.GpuStep, "record", None)  # no graph is made again
    for step in range(5):
        cache.append_step([1, 0], *random_tokens(cache.config, 2, step))
        result = path.decode(queries, ids)
        check_like_a_new_path(cache, name, result, queries, ids)


@EVERY_PATH
def test_a_graph_is_made_again_when_the_tables_have_moved(name, monkeypatch):
    monkeypatch.setattr(device_tables, "_FIRST_ROWS", 2)
    monkeypatch.setattr(device_tables, "_FIRST_PAGES", 8)
    cache, _, _, queries, ids = made([5, 30])
    path = make_path(name, cache)
    first = path.decode(queries, ids)
    generation = path.pool.tables.generation
    for request_id in (2, 3):
        cache.append_tokens(request_id, *random_tokens(cache.config, 9, request_id))
    more = path.decode(np.concatenate((queries, queries)), [2, 0, 3, 1])  # rows
    assert path.pool.tables.generation == generation + 1
    assert_same_bits(path.decode(queries, ids), first)
    check_like_a_new_path(cache, name, rows_of(more, [0]), queries[:1], [2])
    cache.append_tokens(2, *random_tokens(cache.config, 30, 7))
    longer = path.decode(queries[:1], [2])  # pages
    assert path.pool.tables.generation == generation + 2
    assert_same_bits(path.decode(queries, ids), first)
    check_like_a_new_path(cache, name, longer, queries[:1], [2])


@EVERY_PATH
def test_a_request_that_comes_back_is_another_one(name):
    cache, _, _, queries, ids = made([30, 9], capacity_pages=11)
    path = make_path(name, cache)
    before = path.decode(queries, ids)
    cache.release_request(0)
    with pytest.raises(ValueError, match="request_id"):
        path.decode(queries, ids)
    cache.append_tokens(0, *random_tokens(cache.config, 30, 77))
    after = path.decode(queries, ids)
    assert not np.array_equal(after.outputs[0], before.outputs[0])
    check_like_a_new_path(cache, name, after, queries, ids)
    assert_same_bits(rows_of(after, [1]), rows_of(before, [1]))
    cache.reset()
    cache.append_tokens(1, *random_tokens(cache.config, 5, 78))
    check_like_a_new_path(cache, name, path.decode(queries[:1], [1]), queries[:1], [1])


def test_both_paths_follow_one_pool():
    cache, _, _, queries, ids = made([9, 30])
    dense, sparse = (make_path(name, cache, **EAGER) for name in NAMES)
    assert dense.pool is sparse.pool and len(cache.mirrors) == 1
    dense.decode(queries, ids)
    cache.append_step([0, 1], *random_tokens(cache.config, 2, 5))
    for name, path in zip(NAMES, (dense, sparse), strict=True):
        check_like_a_new_path(cache, name, path.decode(queries, ids), queries, ids)


# ---- what a path gives back, takes and refuses


@pytest.mark.parametrize("mode", gpu.OUTPUT_MODES)
@EVERY_PATH
def test_the_output_mode_says_what_comes_back(name, mode):
    cache, _, _, queries, ids = made()
    path = make_path(name, cache, output_mode=mode)
    path.decode(queries, ids)
    path.pool.stats.reset()
    result = path.decode(queries, ids)
    is_debug = mode == "debug" and name == "sparse_gpu"
    present = [result.outputs, result.lse, result.selected_pages, result.scores]
    expected = [mode != "none", mode != "none", is_debug, is_debug]
    assert [array is not None for array in present] == expected
    num_bytes = sum(array.nbytes for array in present if array is not None)
    assert path.pool.stats.d2h_calls == (mode != "none")
    num_bytes = num_bytes * 4 // 3  # a step for three is one for four
    assert num_bytes <= path.pool.stats.d2h_bytes <= num_bytes + 4 * 16
    assert path.pool.stats.h2d_calls == 1
    (step,) = path._steps.values()  # without an output the device still has it
    outputs = download(path.pool, step.device_outputs()["outputs"])
    np.testing.assert_array_equal(outputs, decode(name, cache, queries, ids).outputs)


def test_results_own_their_memory():
    cache, _, _, queries, ids = made()
    path = make_path("sparse_gpu", cache, output_mode="debug", **EAGER)
    first = path.decode(queries, ids)
    fields = (first.outputs, first.lse, first.selected_pages, first.scores)
    kept = [array.copy() for array in fields]
    path.decode(-queries, ids)
    for array, old in zip(fields, kept, strict=True):
        np.testing.assert_array_equal(array, old)


@pytest.mark.parametrize("use_graph", [True, False])
@EVERY_PATH
def test_times_of_the_stages_add_up(name, use_graph):
    cache, _, _, queries, ids = made()
    path = make_path(name, cache, use_graph=use_graph)
    for _ in range(2):
        stages = path.decode(queries, ids).stages
        check_times(stages)
        assert stages.attend_ms > 0 and stages.gather_ms == 0 and stages.kernel_ms > 0
        assert (stages.score_ms > 0) == (stages.topk_ms > 0) == (name == "sparse_gpu")


@EVERY_PATH
def test_without_timing_the_bits_are_the_same_and_no_stage_is_measured(name):
    cache, _, _, queries, ids = made()
    result = decode(name, cache, queries, ids, timing=False)
    assert_same_bits(result, decode(name, cache, queries, ids, **EAGER))
    stages = result.stages
    assert stages.score_ms == stages.topk_ms == stages.attend_ms == stages.kernel_ms == 0
    check_times(stages)


@pytest.mark.parametrize("use_graph", [True, False])
@EVERY_PATH
def test_debug_finds_a_table_outside_the_pool_before_a_page_is_read(name, use_graph):
    cache, _, _, queries, ids = made()
    path = make_path(name, cache, debug=True, use_graph=use_graph)
    before = path.decode(queries, ids)
    check_times(before.stages)
    good = int(cache.request_pages(2)[1])
    for bad in (-1, cache.pool.capacity_pages, 1 << 30):
        write_page_id(path.pool, 2, 1, bad)
        with pytest.raises(IntegrityError, match="outside the pool 2 times"):
            path.decode(queries[[2, 0, 2]], [2, 0, 2])
    write_page_id(path.pool, 2, 1, good)
    assert_same_bits(path.decode(queries, ids), before)


@EVERY_PATH
def test_a_replay_takes_no_memory(name, monkeypatch):
    cache, _, _, queries, ids = made([3, 30])
    path = make_path(name, cache)
    path.decode(queries, ids)
    allocated = count_allocations(monkeypatch)
    path.decode(queries, ids)
    cache.append_step(ids, *random_tokens(cache.config, 2, 5))
    path.decode(-queries, ids[::-1])
    assert not allocated
    path.decode(queries[:1], [1])
    assert allocated  # another shape


def test_the_steps_that_are_kept_are_bounded_and_the_one_used_last_stays(monkeypatch):
    monkeypatch.setattr(gpu, "_KEPT_STEPS", 2)
    cache, _, _, queries, _ = made([1, 1, 1])
    path = make_path("dense_gpu", cache)
    for batch in (1, 2, 1, 3):
        path.decode(queries[:batch], list(range(batch)))
    assert [shape.batch for shape in path._steps] == [1, 4]
    allocated = count_allocations(monkeypatch)
    path.decode(queries[:1], [2])
    assert not allocated


def test_a_graph_serves_every_length_up_to_its_power_of_two():
    shapes = [gpu.StepShape.holding(2, pages, True).max_pages for pages in (0, 8, 9, 16, 17, 1000)]
    assert shapes == [8, 8, 16, 16, 32, 1024]


@pytest.mark.parametrize("name", ["dense_gpu", "sparse_gpu"])
def test_a_graph_serves_every_batch_up_to_its_power_of_two(name):
    """The rows that a batch lacks to its step have no tokens, whoever had them before."""
    cache, _, _, queries, ids = made([30, 3, 17, 9])
    path, alone = make_path(name, cache), make_path(name, cache)
    path.decode(queries, ids)
    for batch in ([3, 1, 0], [2, 0, 3, 1], [1, 2, 3]):
        result = path.decode(queries[batch], batch)
        assert len(path._steps) == 1 and result.outputs.shape == (len(batch), *queries.shape[1:])
        for i, request_id in enumerate(batch):
            expected = alone.decode(queries[request_id : request_id + 1], [request_id])
            np.testing.assert_array_equal(result.outputs[i], expected.outputs[0])
            np.testing.assert_array_equal(result.lse[i], expected.lse[0])


LIMITS = {
    "head_dim: got 272, want at most 256 ": dict(head_dim=272),
    "num_heads: got 17, want at most 16 ": dict(num_heads=17),
    "top_k_pages: got 2049, want at most 2048 ": dict(top_k_pages=2049),
}


@pytest.mark.parametrize("message, changes", LIMITS.items(), ids=LIMITS)
@pytest.mark.parametrize("name", ["dense", "sparse"])
def test_what_a_kernel_cannot_do_is_refused_before_anything_is_taken(
    name, message, changes, monkeypatch
):
    cache, keys, values, queries, ids = made([9], **changes)
    allocated = count_allocations(monkeypatch)
    if name == "sparse" or "top_k_pages" not in changes:
        with pytest.raises(ValueError, match=message):
            make_path(f"{name}_gpu", cache)
    assert not allocated and not cache.mirrors
    result = decode(f"{name}_cpu", cache, queries, ids)
    check_attention(cache.config, result, queries, keys, values)


def test_a_device_that_is_too_small_is_refused(monkeypatch):
    cache, _, _, queries, ids = made([9])
    allocated = count_allocations(monkeypatch)
    monkeypatch.setattr(SimDriver, "memory_bytes", lambda self: (1 << 20, 1 << 30))
    with pytest.raises(ValueError, match="capacity_pages: got 60.*bytes"):
        make_path("dense_gpu", cache)
    assert not allocated and not cache.mirrors
    decode("dense_cpu", cache, queries, ids)


def test_an_unknown_output_mode_lists_the_known_ones():
    cache = made([1])[0]
    with pytest.raises(ValueError, match="output_mode: got 'all', want none | outputs | debug"):
        make_path("dense_gpu", cache, output_mode="all")
    assert not cache.mirrors


Q = random_queries(small_config(**SMALL), 2, seed=16)
WRONG = {
    "a query too few": lambda path: path.decode(Q[:1], [0, 1]),
    "another head_dim": lambda path: path.decode(np.repeat(Q, 2, axis=2), [0, 1]),
    "an unknown request": lambda path: path.decode(Q, [0, 7]),
    "complex queries": lambda path: path.decode(Q.astype(np.complex64), [0, 1]),
}


@EVERY_PATH
def test_a_wrong_argument_is_a_value_error_and_changes_nothing(name):
    cache = made([9, 5])[0]
    path = make_path(name, cache)
    before = path.decode(Q, [0, 1])
    for call in WRONG.values():
        with pytest.raises(ValueError, match="(?s)(queries|request_id).*got .*want"):
            call(path)
    assert_same_bits(path.decode(Q, [0, 1]), before)


def test_queries_and_ids_of_other_types_are_read_right():
    cache = made([9, 5])[0]
    path = make_path("dense_gpu", cache)
    expected = path.decode(Q, [1, 0])
    assert_same_bits(path.decode(np.repeat(Q, 2, axis=1)[:, ::2], (1, 0)), expected)
    assert_same_bits(path.decode(Q.astype(np.float64), np.array([1, 0])), expected)
    assert_same_bits(path.decode(Q, range(1, -1, -1)), expected)
