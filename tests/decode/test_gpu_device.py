"""GPU paths and the device pool on a device, at the sizes they are made for (pytest -m gpu)."""

from types import SimpleNamespace

import numpy as np
import pytest

from numbadsd.config import ModelConfig
from numbadsd.decode.gpu import OUTPUT_MODES
from numbadsd.decode.path import make_path
from numbadsd.errors import IntegrityError
from numbadsd.kernels.cuda.runtime import get_driver, why_unavailable
from numbadsd.kernels.cuda.switch import SIMULATED
from numbadsd.pages import device
from numbadsd.pages.cache import PagedKvCache
from numbadsd.pages.device import DevicePagePool, device_pool_of
from numbadsd.workload.synthetic import UniformWorkload
from tests.builders import DTYPES, make_cache, random_queries, random_tokens
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
    rows_of,
    write_page_id,
)
from tests.pages.checks import assert_device_equals, assert_tables_equal, count_allocations

pytestmark = pytest.mark.gpu

SHAPE = dict(num_heads=32, num_kv_heads=8, head_dim=128, page_size=16, top_k_pages=64)
SELECTION = dict(summary="minmax", share="kv_head", num_sink_pages=1, num_recent_pages=2)
# Pages of T - 1, T and T + 1 tokens; rows around 64 pages, around the lengths at which splits get
# longer (1024 and 4096 tokens), and the longest.
CONTEXTS = [0, 1, 15, 16, 17, 1023, 1024, 1025, 2048, 3000, 4095, 4096, 4097, 5555, 8191, 8192]
SHORTER = [8000, 0, 1025, 17]  # with room for twenty more in 512 pages: one graph serves them
ATOL = 2e-5
RUNS = 100
NAMES = ["dense_gpu", "sparse_gpu"]
EVERY_PATH = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module", autouse=True)
def a_device():
    """Skip, with the reason, where no device can be used."""
    problem = why_unavailable()
    if problem is not None:
        pytest.skip("; ".join(problem))
    if SIMULATED:
        pytest.skip("these sizes are not for the simulator: choose them by -m gpu alone")


def made(contexts, seed=1, *, spare_pages=64, **changes):
    """Return a cache of scattered pages, its keys and values, queries for all requests, ids."""
    config = ModelConfig(**(SHAPE | SELECTION | dict(kv_dtype="float16") | changes))
    pages = sum(-(-tokens // config.page_size) for tokens in contexts)
    cache, keys, values = make_cache(
        config, contexts, seed, capacity_pages=pages + spare_pages, shuffle=seed
    )
    return SimpleNamespace(
        config=config, cache=cache, keys=keys, values=values, ids=list(range(len(contexts))),
        queries=random_queries(config, len(contexts), seed),
    )  # fmt: skip


@pytest.fixture(scope="module", params=DTYPES)
def batch(a_device, request):
    """Return a batch that no test changes."""
    return made(CONTEXTS, kv_dtype=request.param)


@pytest.fixture
def small():
    """Return a batch of its own for a test that changes it."""
    return made(SHORTER)


@pytest.mark.parametrize("name", ["dense", "sparse"])
def test_decode_equals_the_oracle_and_the_cpu(name, batch):
    result = check_gpu_like_cpu(name, batch.cache, batch.queries, batch.ids, ATOL)
    for row in (4, len(CONTEXTS) // 2, len(CONTEXTS) - 1):
        one = rows_of(result, [row])
        queries = batch.queries[[row]]
        check_attention(batch.config, one, queries, [batch.keys[row]], [batch.values[row]])
        if name == "sparse":
            check_scores_and_selection(batch.cache, one, queries, [row])


@pytest.mark.parametrize("summary, share, dtype", SCORINGS)
def test_every_scoring(summary, share, dtype):
    case = made(SHORTER, summary=summary, share=share, kv_dtype=dtype)
    result = check_gpu_like_cpu("sparse", case.cache, case.queries, case.ids, ATOL)
    check_scores_and_selection(case.cache, result, case.queries, case.ids)
    assert_device_equals(device_pool_of(case.cache))


@pytest.mark.parametrize(
    "heads, kv_heads, head_dim, page_size",
    [(8, 8, 16, 16), (16, 1, 64, 32), (6, 2, 80, 8), (8, 2, 256, 16), (4, 4, 96, 1)],
)
@pytest.mark.parametrize("name", ["dense", "sparse"])
def test_other_shapes(name, heads, kv_heads, head_dim, page_size):
    shape = dict(num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, page_size=page_size)
    case = made([1500, 3, 0, 700], **shape)
    result = check_gpu_like_cpu(name, case.cache, case.queries, case.ids, ATOL)
    check_attention(case.config, result, case.queries, case.keys, case.values)


@EVERY_PATH
def test_launches_and_every_replay_give_the_same_bits(name, batch):
    check_eager_like_graph(name, batch.cache, batch.queries, batch.ids, runs=RUNS)


@EVERY_PATH
def test_a_request_has_the_same_bits_alone_and_in_any_batch(name, batch):
    rng, size = np.random.default_rng(3), len(batch.ids)
    batches = [[row] for row in batch.ids] + [rng.permutation(size)[:n] for n in (2, 7, size)]
    batches.append(rng.integers(0, size, 24))  # some more than once
    check_alone_like_batch(name, batch.cache, batch.queries, batch.ids, batches)


@pytest.mark.parametrize("share, dtype", [(s, d) for _, s, d in SCORINGS[:3]])
def test_all_pages_selected_give_the_bits_of_dense(share, dtype):
    case = made(SHORTER, top_k_pages=600, share=share, kv_dtype=dtype)
    check_all_pages_like_dense(case.cache, case.queries, case.ids)


def test_k_of_zero_attends_to_nothing():
    case = made(SHORTER, top_k_pages=0, num_sink_pages=0, num_recent_pages=0)
    result = make_path("sparse_gpu", case.cache).decode(case.queries, case.ids)
    assert np.all(result.outputs == 0) and np.all(result.lse == -np.inf)


@pytest.mark.parametrize("name", ["dense", "sparse"])
def test_what_lies_in_slots_without_tokens_is_never_attended_to(name):
    cache = PagedKvCache(ModelConfig(**SHAPE, **SELECTION, kv_dtype="bfloat16"), 700)
    check_stale_memory_is_never_read(name, cache, SHORTER, ATOL)


@EVERY_PATH
def test_a_replay_sees_every_change_of_the_cache(name, small):
    cache, queries, ids = small.cache, small.queries, small.ids
    path = make_path(name, cache)
    for step in range(20):  # over the end of a page
        cache.append_step(ids[::-1], *random_tokens(small.config, len(ids), step))
        result = path.decode(queries, ids)
    check_like_a_new_path(cache, name, result, queries, ids)
    cache.release_request(2)
    cache.append_tokens(2, *random_tokens(small.config, 100, 30))
    check_like_a_new_path(cache, name, path.decode(queries, ids), queries, ids)
    generation = path.pool.tables.generation
    for request_id in range(10, 40):
        cache.append_tokens(request_id, *random_tokens(small.config, 3, request_id))
    some = [12, 39, 0, 10]
    path.decode(np.concatenate([queries] * 8), [*range(10, 40), 0, 1])
    assert path.pool.tables.generation > generation
    check_like_a_new_path(cache, name, path.decode(queries, some), queries, some)
    assert_tables_equal(path.pool, cache.request_ids)
    assert_device_equals(path.pool)


def test_the_device_holds_what_the_cache_holds(batch):
    assert_device_equals(device_pool_of(batch.cache))


@pytest.mark.parametrize("chunk_bytes", [device.CHUNK_BYTES, 100_000])
def test_tokens_for_the_device_alone(chunk_bytes, monkeypatch):
    monkeypatch.setattr(device, "CHUNK_BYTES", chunk_bytes)
    config = ModelConfig(**SHAPE, **SELECTION, kv_dtype="float16")
    lengths = np.array([4000, 17])
    twin, workload = PagedKvCache(config, 400), UniformWorkload(config, lengths, seed=9)
    bare = DevicePagePool(PagedKvCache(config, 400, allocate_storage=False))
    for request_id in (0, 1):
        bare.prefill_synthetic(request_id, int(lengths[request_id]) - 1, seed=9)
        keys, values = next(workload.chunks(request_id, 10_000))
        twin.append_tokens(request_id, keys[:-1], values[:-1])
    bare.append_synthetic([0, 1], seed=9)
    last = [[a[-1] for a in next(workload.chunks(r, 10_000))] for r in (0, 1)]
    twin.append_step([0, 1], *np.stack(last, axis=1))
    keys, values = random_tokens(config, 1000, 4)
    bare.upload_prompt(5, keys, values)
    twin.append_tokens(5, keys, values)
    bare.append_step([5, 0], keys[:2], values[:2])
    twin.append_step([5, 0], keys[:2], values[:2])
    assert_device_equals(bare, twin)
    queries = random_queries(config, 3, 1)
    ours, theirs = (
        make_path("sparse_gpu", cache).decode(queries, [0, 1, 5]) for cache in (bare.cache, twin)
    )
    assert_same_bits(ours, theirs)


@pytest.mark.parametrize("mode", OUTPUT_MODES)
@EVERY_PATH
def test_times_of_the_stages_add_up(name, mode, small):
    path = make_path(name, small.cache, output_mode=mode)
    for _ in range(10):
        result = path.decode(small.queries, small.ids)
        check_times(result.stages)
        assert result.stages.attend_ms > 0 and (result.outputs is None) == (mode == "none")
    quick = make_path(name, small.cache, output_mode=mode, timing=False)
    check_times(quick.decode(small.queries, small.ids).stages)


@EVERY_PATH
def test_a_replay_takes_no_memory(name, small, monkeypatch):
    path = make_path(name, small.cache)
    path.decode(small.queries, small.ids)
    allocated = count_allocations(monkeypatch)
    for step in range(20):
        small.cache.append_step(small.ids, *random_tokens(small.config, len(small.ids), step))
        path.decode(small.queries, small.ids[::-1])
    assert not allocated


@EVERY_PATH
def test_debug_finds_a_table_outside_the_pool_before_a_page_is_read(name, small):
    path = make_path(name, small.cache, debug=True)
    before = path.decode(small.queries, small.ids)
    for bad in (-1, small.cache.pool.capacity_pages, (1 << 31) - 1):
        write_page_id(path.pool, 0, 1, bad)
        with pytest.raises(IntegrityError, match="outside the pool 1 times"):
            path.decode(small.queries, small.ids)
    write_page_id(path.pool, 0, 1, int(small.cache.request_pages(0)[1]))
    assert_same_bits(path.decode(small.queries, small.ids), before)


def test_a_cache_larger_than_the_device_is_refused():
    config = ModelConfig(**SHAPE)
    pages = get_driver().memory_bytes()[1] // config.page_bytes + 1
    cache = PagedKvCache(config, pages, allocate_storage=False)
    with pytest.raises(ValueError, match=f"capacity_pages: got {pages}.*bytes of .* free"):
        make_path("sparse_gpu", cache)
    assert not cache.mirrors
