"""GPU paths as an engine uses them, in the simulator: nothing travels, nobody waits."""

import numpy as np
import pytest

from numbadsd.decode.inputs import UniformQueries
from numbadsd.decode.path import make_path
from numbadsd.kernels.cuda.launch import DeviceError
from numbadsd.kernels.cuda.sim_driver import SimEvent, SimStream
from numbadsd.pages.cache import PagedKvCache
from numbadsd.workload.payload import UniformTokens
from tests.builders import random_tokens, small_config
from tests.decode.checks import assert_same_bits, check_times, decode
from tests.decode.test_gpu_paths import EAGER, EVERY_PATH, made
from tests.device import down, up
from tests.pages.checks import transfers_of
from tests.pages.late import use_late_streams


@EVERY_PATH
def test_queries_on_the_device_give_the_same_bits_and_nothing_of_them_travels(name):
    cache, _, _, queries, ids = made()
    expected = make_path(name, cache).decode(queries, ids)
    path = make_path(name, cache, output_mode="none")
    for _ in range(2):
        path.decode(up(queries), ids)  # the first one records
    assert transfers_of(path.pool, lambda: path.decode(up(queries), ids)) == (0, 0, 0)
    other_batch = transfers_of(path.pool, lambda: path.decode(up(queries), ids[::-1]))
    assert other_batch == (1, 16 + 32, 0)  # rows and ids of three requests, padded
    on_device = path.decode(up(queries), ids).on_device
    np.testing.assert_array_equal(down(on_device["outputs"]), expected.outputs)
    np.testing.assert_array_equal(down(on_device["lse"]), expected.lse)
    assert ("selected" in on_device) == (name == "sparse_gpu")


@pytest.mark.parametrize("use_graph", [True, False])
@EVERY_PATH
def test_queries_made_in_the_step_are_those_of_the_next_tokens(name, use_graph):
    cache, _, _, queries, ids = made([9, 0, 30])
    path = make_path(name, cache, use_graph=use_graph)
    for step in range(3):
        batch, none = np.array(ids[::-1]), np.empty((0, 1, 16), np.float32)
        positions = cache.context_tokens(batch)
        UniformTokens(5).make(batch, positions, queries, none, none)
        result = path.decode(UniformQueries(5), batch)
        check_times(result.stages)
        assert_same_bits(result, decode(name, cache, queries, batch, **EAGER))
        cache.append_step(ids, *random_tokens(cache.config, 3, step))
    other = path.decode(UniformQueries(6), batch)
    assert not np.array_equal(other.outputs, path.decode(UniformQueries(5), batch).outputs)
    with pytest.raises(ValueError, match="seed: got -1"):
        UniformQueries(-1)


@EVERY_PATH
def test_a_step_that_brings_nothing_back_is_not_waited_for(name, monkeypatch):
    cache, _, _, queries, ids = made([9, 30])
    batches = [ids, ids[::-1], ids[:1], ids[1:], ids[::-1]]
    expected = [decode(name, cache, queries[: len(b)], b).outputs for b in batches]
    use_late_streams(monkeypatch)
    cache = made([9, 30])[0]
    path = make_path(name, cache, output_mode="none", timing=False)
    for batch in (ids, ids[:1]):  # which make the graphs
        path.decode(queries[: len(batch)], batch)
    path.synchronize()
    copies, stream = [], path.pool.stream
    for batch in batches:
        given = queries[: len(batch)].copy()
        result = path.decode(given, batch)
        given[:] = np.nan  # the caller may reuse his memory
        check_times(result.stages)
        copies.append(np.empty(given.shape, np.float32))
        stream.download(copies[-1], result.on_device["outputs"])
        assert stream.pending  # the device has not begun with it, or not ended
    path.synchronize()
    for copy, outputs in zip(copies, expected, strict=True):
        np.testing.assert_array_equal(copy, outputs)


@EVERY_PATH
def test_the_host_is_at_most_one_step_ahead(name, monkeypatch):
    use_late_streams(monkeypatch)
    cache, _, _, queries, ids = made([9, 30])
    path = make_path(name, cache, output_mode="none", timing=False)
    pending = path.pool.stream.pending
    given, counts = up(queries), []
    for _ in range(6):
        path.decode(given, ids)
        counts.append(len(pending))
    assert counts[1] > 0 and counts[2:] == counts[2:3] * 4  # the step that was begun, and this


def served(steps=6):
    """Return the outputs of steps that make queries and append tokens, nobody waiting for one."""
    config = small_config(num_heads=2, num_kv_heads=1, summary="minmax", num_recent_pages=1)
    cache, outputs = PagedKvCache(config, 40, allocate_storage=False), []
    path = make_path("sparse_gpu", cache, output_mode="none", timing=False)
    for request_id, num_tokens in enumerate((9, 3, 14)):
        path.pool.prefill_synthetic(request_id, num_tokens, 7)
    for step in range(steps):
        batch = (0, 1, 2) if step < 4 else (2, 1)
        result = path.decode(UniformQueries(7), batch)
        outputs.append(np.empty((len(batch), 2, 16), np.float32))
        path.pool.stream.download(outputs[-1], result.on_device["outputs"])
        path.pool.append_synthetic(batch, 7)
        if step == 4:
            cache.release_request(0)
    path.synchronize()
    return outputs, path.pool


def test_steps_and_appends_of_a_late_device_are_those_of_one_that_is_not(monkeypatch):
    expected, _ = served()
    use_late_streams(monkeypatch)
    outputs, pool = served()
    assert pool.stream.waits
    for ours, theirs in zip(outputs, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@EVERY_PATH
def test_what_went_wrong_in_a_step_is_raised_by_whoever_waits(name, monkeypatch):
    cache, _, _, queries, ids = made()
    path = make_path(name, cache, output_mode="none", timing=False)
    path.decode(queries, ids)

    def fail(stream):
        raise DeviceError("CUDA_ERROR_ILLEGAL_ADDRESS")

    monkeypatch.setattr(SimStream, "synchronize", fail)
    monkeypatch.setattr(SimEvent, "synchronize", fail)
    with pytest.raises(DeviceError, match="ILLEGAL_ADDRESS"):
        path.synchronize()
    with pytest.raises(DeviceError, match="ILLEGAL_ADDRESS"):
        path.decode(queries, ids)


@pytest.mark.parametrize(
    ("queries", "match"),
    [
        (np.zeros((2, 2, 16), np.float32), r"queries: got .shape \(2, 2, 16\)"),
        (np.zeros((3, 2, 16), np.float16), "queries: got .*<f2|queries: got .*u2"),
    ],
)
def test_wrong_queries_on_the_device_are_refused(queries, match):
    cache, _, _, _, ids = made()
    with pytest.raises(ValueError, match=match):
        make_path("dense_gpu", cache).decode(up(queries), ids)


def test_device_queries_with_gaps_are_refused():
    cache, _, _, queries, ids = made()
    array = up(queries)

    class Strided:
        __cuda_array_interface__ = array.__cuda_array_interface__ | {"strides": (256, 128, 4)}

    with pytest.raises(ValueError, match="queries: got .strides"):
        make_path("dense_gpu", cache).decode(Strided(), ids)
