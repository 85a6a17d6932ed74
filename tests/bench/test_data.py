"""From a configuration to a filled cache: what fits, what is stored, what a capture changes."""

import re
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from numbadsd.bench import data as data_module
from numbadsd.bench.data import (
    capture_shape,
    check_memory,
    fill_cache,
    lives_on_device,
    make_workload,
    pool_pages,
    unfilled,
)
from numbadsd.bench.decode import run_decode_bench
from numbadsd.config import DecodeBenchConfig
from numbadsd.workload.captures import Capture
from tests.builders import random_tokens, small_config


class FixedWorkload:
    """Three requests of known tokens, in chunks as asked for."""

    def __init__(self, config, context_tokens=(9, 1, 4)):
        self.context_tokens = np.array(context_tokens)
        self.queries = np.zeros((len(context_tokens), config.num_heads, config.head_dim))
        self.tokens = [random_tokens(config, n, i) for i, n in enumerate(context_tokens)]
        self.largest_chunk = 0

    def chunks(self, request_index, max_tokens):
        keys, values = self.tokens[request_index]
        for first in range(0, len(keys), max_tokens):
            part = slice(first, first + max_tokens)
            self.largest_chunk = max(self.largest_chunk, len(keys[part]))
            yield keys[part], values[part]


def bench_config(**changes):
    """Return a decode benchmark of one small request."""
    fields = dict(top_k_pages=2, batch_size=1, min_context_tokens=24, max_context_tokens=24)
    fields |= dict(iterations=1, warmup=0, num_heads=4, num_kv_heads=2, page_size=8)
    return DecodeBenchConfig(**(fields | changes))


def needed_bytes(model, context_tokens, monkeypatch, fused=True, on_device=False):
    """Return the bytes that the complaint about a machine without memory asks for."""
    monkeypatch.setattr(
        data_module.psutil, "virtual_memory", lambda: SimpleNamespace(available=0, total=0)
    )
    with pytest.raises(ValueError) as caught:
        check_memory(model, np.asarray(context_tokens), fused, on_device)
    monkeypatch.undo()
    return int(re.search(r"needs ([\d,]+) bytes", str(caught.value))[1].replace(",", ""))


@pytest.mark.parametrize("fill_bytes", [1, 3 * 256, 1 << 20])
def test_a_cache_holds_the_workload_whatever_the_chunks(monkeypatch, fill_bytes):
    config = small_config()  # a token of K and V takes 256 bytes of float32
    monkeypatch.setattr(data_module, "FILL_BYTES", fill_bytes)
    workload = FixedWorkload(config)
    data = fill_cache(config, workload)
    assert workload.largest_chunk == min(9, max(1, fill_bytes // 256))
    assert data.request_ids == [0, 1, 2] and data.context_tokens.tolist() == [9, 1, 4]
    for request_id, (keys, values) in enumerate(workload.tokens):
        assert np.array_equal(data.cache.copy_keys(request_id), keys)
        assert np.array_equal(data.cache.copy_values(request_id), values)
    data.cache.check_integrity()


def test_a_cache_has_exactly_the_pages_that_it_needs():
    config = small_config()  # pages of 4 tokens
    data = fill_cache(config, FixedWorkload(config))
    assert pool_pages(config, [9, 1, 4]) == data.cache.pool.capacity_pages == 3 + 1 + 1
    assert data.cache.pool.num_free_pages == 0


def test_memory_that_is_missing_is_told_with_the_bytes(monkeypatch):
    config = small_config()
    needed = needed_bytes(config, [4000, 4000], monkeypatch)
    pool_bytes = 8000 * 256
    assert pool_bytes < needed < pool_bytes + (512 << 20)


def test_more_context_needs_its_pages_more(monkeypatch):
    config = small_config()
    more = needed_bytes(config, [8004], monkeypatch) - needed_bytes(config, [4000], monkeypatch)
    cache_bytes = 1001 * (4 * 256 + 128)  # K and V of 4 tokens, and a mean of 2 heads of 16
    assert cache_bytes < more < 3 * cache_bytes  # scores and masses of the pages besides


def test_what_fits_is_let_through():
    check_memory(small_config(), np.array([100]))


def test_a_workload_that_cannot_fit_is_refused_before_it_is_made(monkeypatch):
    def fail(*arguments):
        raise AssertionError("data was made")

    monkeypatch.setattr(data_module, "UniformWorkload", fail)
    tokens = 2_000_000_000
    with pytest.raises(ValueError, match="bytes"):
        make_workload(
            bench_config(batch_size=1000, min_context_tokens=tokens, max_context_tokens=tokens)
        )


GPU_ALONE = bench_config(paths=("dense_gpu", "sparse_gpu"))
SOME_CAPTURE = Capture(*(np.zeros((3, 4, 16), np.float32) for _ in range(3)))


@pytest.mark.parametrize(
    ("config", "capture", "expected"),
    [
        (GPU_ALONE, None, True),
        (bench_config(paths=("sparse_gpu",)), None, True),
        (bench_config(paths=("dense_cpu", "sparse_gpu")), None, False),
        (bench_config(), None, False),  # the CPU paths run as well
        (replace(GPU_ALONE, data="structured"), None, False),
        (GPU_ALONE, SOME_CAPTURE, False),
    ],
    ids=["both", "one", "with a CPU path", "all", "structured", "captured"],
)
def test_only_random_data_for_gpu_paths_alone_lives_on_the_device(config, capture, expected):
    assert lives_on_device(config, capture) is expected


def test_tokens_on_the_device_are_the_tokens_on_the_host():
    config = bench_config(batch_size=2, min_context_tokens=5, max_context_tokens=9)
    workload = make_workload(config)
    host, device = (fill_cache(config.model, workload, on_device) for on_device in (False, True))
    assert host.cache.pool.has_storage and not device.cache.pool.has_storage
    assert host.context_tokens.tolist() == device.context_tokens.tolist()
    assert host.request_ids == device.request_ids
    (pool,) = device.cache.mirrors
    for request_id in host.request_ids:
        pages = zip(*(d.cache.request_pages(request_id) for d in (host, device)), strict=True)
        tokens = host.cache.num_tokens(request_id)
        for place, (host_page, device_page) in enumerate(pages):
            filled = slice(0, tokens - place * config.page_size)
            keys, values, _ = pool.download_page(int(device_page))
            for stored, made in ((host.cache.pool.keys, keys), (host.cache.pool.values, values)):
                assert np.array_equal(stored[host_page][:, filled], made[:, filled])


def test_an_unfilled_batch_counts_its_pages_and_holds_no_tokens():
    config = small_config()
    data = unfilled(config, FixedWorkload(config))
    assert data.cache.pool.capacity_pages == data.cache.pool.num_free_pages == 5
    assert not data.cache.pool.has_storage and data.context_tokens.tolist() == [9, 1, 4]


def test_a_cache_on_the_device_may_outgrow_the_host(monkeypatch):
    model = bench_config(num_heads=32, num_kv_heads=32, head_dim=128).model
    tokens = [1 << 20]
    on_host = needed_bytes(model, tokens, monkeypatch)
    assert on_host > tokens[0] * model.token_bytes == 32 << 30
    assert needed_bytes(model, tokens, monkeypatch, on_device=True) < 400 << 20


def test_what_a_device_takes_and_gives_must_fit_on_the_host(monkeypatch):
    model = bench_config(num_heads=4096, num_kv_heads=4096).model
    needed = needed_bytes(model, [1] * 1000, monkeypatch, on_device=True)
    assert needed > 2 * 4 * 1000 * 4096 * 16  # queries and outputs
    make_workload(GPU_ALONE)
    monkeypatch.setattr(
        data_module.psutil, "virtual_memory", lambda: SimpleNamespace(available=0, total=0)
    )
    with pytest.raises(ValueError, match="bytes of 0 available"):
        make_workload(GPU_ALONE)


def peak_bytes(config):
    """Return the most memory that a benchmark allocates at once."""
    tracemalloc.start()
    try:
        run_decode_bench(config)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_compiling_takes_no_more_memory_than_the_run():
    # One short request on pages of 65536 tokens: a second, tiny cache would have pages as large.
    config = bench_config(page_size=1 << 16, num_heads=16, num_kv_heads=16)
    page_bytes = config.model.page_bytes
    run_decode_bench(bench_config(num_heads=16, num_kv_heads=16))  # compiles, or loads
    assert page_bytes == 128 << 20
    assert peak_bytes(config) < 1.3 * page_bytes + (64 << 20)


@pytest.mark.parametrize(
    "changes",
    [
        # copies of the selected pages, one for each of 16 query heads on one kv head
        dict(num_heads=16, share="query_head", fused=False, top_k_pages=8192),
        # scores and softmax masses of every page for each of 256 query heads on one kv head
        dict(num_heads=256, share="query_head", page_size=1),
    ],
    ids=["staged copies", "many query heads"],
)
def test_what_was_let_through_stays_within_the_memory_it_was_checked_for(monkeypatch, changes):
    fields = dict(num_kv_heads=1, head_dim=64) | changes
    tokens = 1 << 16
    config = bench_config(min_context_tokens=tokens, max_context_tokens=tokens, **fields)
    run_decode_bench(bench_config(**fields))  # compiles, or loads
    assert peak_bytes(config) <= needed_bytes(config.model, [tokens], monkeypatch, config.fused)


def test_a_capture_gives_its_shape_and_leaves_the_rest():
    rng = np.random.default_rng(3)
    queries = rng.standard_normal((5, 6, 32), np.float32)
    keys, values = rng.standard_normal((2, 40, 3, 32), np.float32)
    capture = Capture(queries, keys, values)
    config = bench_config(share="kv_head", **capture_shape(capture))
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (6, 3, 32)
    assert (config.page_size, config.top_k_pages, config.share) == (8, 2, "kv_head")
    workload = make_workload(config, capture)
    assert len(workload.queries) == config.batch_size == 1
    assert workload.context_tokens.tolist() == [40]


@pytest.mark.parametrize("kind", ["uniform", "structured"])
def test_contexts_are_drawn_within_their_bounds(kind):
    config = bench_config(batch_size=64, min_context_tokens=5, max_context_tokens=9, data=kind)
    tokens = make_workload(config).context_tokens
    assert set(tokens.tolist()) == {5, 6, 7, 8, 9}
    assert np.array_equal(tokens, make_workload(config).context_tokens)
