"""torch's attention as a contender: missing, or with the outputs of our dense path."""

import builtins
import subprocess
import sys
from dataclasses import replace
from time import perf_counter
from types import SimpleNamespace

import numba
import numpy as np
import pytest

from numbadsd.bench.decode import run_decode_bench
from numbadsd.config import DecodeBenchConfig
from numbadsd.decode.path import make_path
from numbadsd.integration import sdpa
from numbadsd.integration.sdpa import (
    CHUNK_BYTES,
    MOST_PADDING,
    TORCH_BYTES,
    TorchSdpa,
    find_attention,
)
from numbadsd.pages.device import device_pool_of
from tests.builders import make_cache, random_queries, small_config

TOLERANCE = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 2e-2}
GPU_TOLERANCE = TOLERANCE | {"float32": 1e-5}  # torch may multiply float32 there as parts in TF32
EQUAL, RAGGED, LONE = (21, 21, 21), (9, 30, 9, 16, 1), (7,)
GROUPED, PADDED = "groups of equal length", "padded, with a mask"


@pytest.fixture
def torch():
    """Return torch, where it is installed."""
    return pytest.importorskip("torch")


@pytest.fixture
def sdpa_work(torch):
    """Return the module that needs torch."""
    from numbadsd.integration import sdpa_work

    return sdpa_work


def batch(context_tokens, **changes):
    """Return a cache with these contexts in scattered pages, queries, and requests out of order."""
    config = small_config(**changes)
    cache, _, _ = make_cache(config, context_tokens, shuffle=3)
    request_ids = [*range(1, len(context_tokens)), 0]
    return cache, random_queries(config, len(context_tokens), 1), request_ids


def assert_is_dense(result, arguments, tolerance=TOLERANCE):
    """Fail unless outputs are those of our dense path, for the storage type."""
    cache, queries, request_ids = arguments
    want = make_path("dense_cpu", cache).decode(queries, request_ids).outputs
    assert result.outputs.dtype == np.float32
    assert np.abs(result.outputs - want).max() <= tolerance[cache.config.kv_dtype]


@pytest.mark.parametrize("on_gpu", [False, True])
def test_without_torch_it_says_so_and_needs_no_memory(monkeypatch, on_gpu):
    monkeypatch.setattr(sdpa, "find_spec", lambda name: None)
    contender = find_attention(on_gpu)
    assert contender.reason == "torch is not installed"
    assert contender.name == ("torch_sdpa_gpu" if on_gpu else "torch_sdpa")
    assert contender.host_bytes(small_config(), np.array([1000])) == 0


def test_a_torch_that_cannot_be_imported_is_a_reason_too(monkeypatch):
    def fail(name, *arguments):
        if name == "torch":
            raise OSError("libtorch.so: no such file\nand more")
        return real(name, *arguments)

    real = builtins.__import__
    monkeypatch.setattr(sdpa, "find_spec", lambda name: object())
    monkeypatch.setattr(builtins, "__import__", fail)
    assert TorchSdpa(False).reason == "torch cannot be imported: libtorch.so: no such file"


def test_the_command_does_not_import_torch_unasked():
    code = "import sys, numbadsd.cli.dsd_bench; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_its_copy_of_k_and_v_is_counted(monkeypatch):
    monkeypatch.setattr(sdpa.TorchSdpa, "_why_not", lambda self: None)
    contender, model = TorchSdpa(False), small_config()
    fixed = 4 * CHUNK_BYTES + TORCH_BYTES
    count = lambda *tokens: contender.host_bytes(model, np.array(tokens)) - fixed  # noqa: E731
    assert count(100, 100) == 200 * model.token_bytes
    assert count(100, 50) == (150 + 2 * 112) * model.token_bytes  # and padded to 112 tokens
    longest = 16 * (MOST_PADDING + 2)
    assert count(longest, *[1] * 9) == (longest + 9) * model.token_bytes  # too much padding
    assert TorchSdpa(True).host_bytes(model, np.array([100])) == 0


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("kv_dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("context_tokens", [EQUAL, RAGGED, LONE])
def test_its_outputs_are_ours(torch, context_tokens, kv_dtype, heads):
    shape = dict(num_heads=heads[0], num_kv_heads=heads[1], kv_dtype=kv_dtype)
    arguments = batch(context_tokens, **shape)
    work = find_attention(False).prepare(*arguments)
    result = work.decode(*arguments[1:])
    assert_is_dense(result, arguments)
    assert result.stages.total_ms == result.stages.attend_ms > 0
    assert work.form in work.forms_ms and min(work.forms_ms.values()) > 0
    layouts = {name.rpartition(", ")[0] for name in work.forms_ms if name.endswith("folded")}
    assert len(work.forms_ms) == 2 * len(layouts) if heads[0] != heads[1] else not layouts


@pytest.mark.parametrize("chunk_bytes", [1, 3 * 1024, CHUNK_BYTES])
@pytest.mark.parametrize("layout", [GROUPED, PADDED])
@pytest.mark.parametrize("heads", ["folded", "enable_gqa"])
def test_every_form_has_the_same_outputs(torch, sdpa_work, monkeypatch, heads, layout, chunk_bytes):
    monkeypatch.setattr(sdpa_work, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(sdpa_work, "GQA_FORMS", (heads,))
    kept = lambda self, cache: {k: v for k, v in layouts(self, cache).items() if layout in k}  # noqa: E731
    layouts = sdpa_work.CpuWork._layouts
    monkeypatch.setattr(sdpa_work.CpuWork, "_layouts", kept)
    arguments = batch(RAGGED, num_heads=4, num_kv_heads=2)
    work = find_attention(False).prepare(*arguments)
    assert layout in work.form and work.form.endswith(heads)
    assert_is_dense(work.decode(*arguments[1:]), arguments)


def test_requests_of_one_length_are_one_batch(torch):
    work = find_attention(False).prepare(*batch(EQUAL, num_kv_heads=4))
    assert work.form == "one batch"
    assert work._calls[0].keys.shape[0] == 3 and work._calls[0].mask is None
    assert work._calls[0].keys.is_contiguous()


@pytest.mark.parametrize("favourite", [GROUPED, PADDED])
def test_the_fastest_form_is_the_one_that_is_measured(torch, sdpa_work, monkeypatch, favourite):
    def time(self, calls, heads, queries):
        result = real(self, calls, heads, queries)
        is_favourite = (calls[0].mask is None) is (favourite == GROUPED)
        stages = replace(result.stages, total_ms=1.0 if is_favourite else 2.0)
        return replace(result, stages=stages)

    real = sdpa_work.CpuWork._time
    monkeypatch.setattr(sdpa_work.CpuWork, "_time", time)
    assert favourite in find_attention(False).prepare(*batch(RAGGED)).form


def test_a_form_that_torch_refuses_is_left_out_and_the_last_ones_error_is_told(
    torch, sdpa_work, monkeypatch
):
    def attend(self, calls, heads, queries):
        if calls[0].mask is None or len(refused) == 2:
            raise RuntimeError("not that one")
        return real(self, calls, heads, queries)

    real, refused = sdpa_work.CpuWork._attend, [1]
    monkeypatch.setattr(sdpa_work.CpuWork, "_attend", attend)
    assert find_attention(False).prepare(*batch(RAGGED)).form.startswith(PADDED)
    refused.append(2)
    with pytest.raises(RuntimeError, match="not that one"):
        find_attention(False).prepare(*batch(RAGGED))


def test_too_much_padding_is_not_tried(torch):
    context_tokens = (16 * (MOST_PADDING + 2), *[1] * 9)
    assert find_attention(False).prepare(*batch(context_tokens)).form.startswith(f"2 {GROUPED}")


def test_it_has_as_many_threads_as_we_have(torch, num_threads):
    for threads in (1, numba.config.NUMBA_NUM_THREADS):
        num_threads(threads)
        find_attention(False).prepare(*batch(LONE))
        assert torch.get_num_threads() == threads


def test_without_a_gpu_it_says_so(torch):
    if torch.cuda.is_available():
        pytest.skip("torch has a GPU")
    reason = find_attention(True).reason
    assert reason.startswith("torch ") and reason.endswith(" finds no GPU")


@pytest.mark.parametrize("kv_dtype", ["float32", "float16", "bfloat16"])
def test_the_benchmark_measures_it(torch, kv_dtype):
    config = DecodeBenchConfig(
        top_k_pages=2, batch_size=3, min_context_tokens=9, max_context_tokens=30, iterations=2,
        num_heads=4, page_size=4, num_kv_heads=2, kv_dtype=kv_dtype, paths=("dense_cpu",),
        versus="torch",
    )  # fmt: skip
    entry = run_decode_bench(config, find_contender=find_attention)["paths"]["torch_sdpa"]
    assert entry["available"], entry["reason"]
    assert entry["version"] == torch.__version__
    assert entry["max_abs_difference"] <= TOLERANCE[kv_dtype]
    assert len(entry["total_ms"]["samples"]) == 2


class HostEvent:
    """An event of a GPU that is the host."""

    def record(self):
        """Take the time."""
        self.seconds = perf_counter()

    def synchronize(self):
        """Have nothing to wait for."""

    def elapsed_time(self, end):
        """Return the milliseconds until another event."""
        return (end.seconds - self.seconds) * 1e3


@pytest.fixture
def host_as_gpu(torch, sdpa_work, monkeypatch):
    """Let the code for a GPU run on the host; returns a setter of its free bytes."""
    stored, empty = sdpa_work.CpuWork._stored, torch.empty
    stream = SimpleNamespace(synchronize=lambda: None)
    monkeypatch.setattr(sdpa_work, "FLUSH_BYTES", 16)
    monkeypatch.setattr(sdpa_work.GpuWork, "device", "cpu")
    monkeypatch.setattr(sdpa_work.GpuWork, "_stored", stored)
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **k: empty(*a, **k))
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: HostEvent())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)

    def set_free_bytes(num_bytes):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (num_bytes, 1 << 40))

    set_free_bytes(1 << 30)
    return set_free_bytes


@pytest.mark.parametrize("kv_dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("context_tokens", [EQUAL, RAGGED])
def test_the_code_for_a_gpu_runs_where_the_host_is_one(host_as_gpu, context_tokens, kv_dtype):
    arguments = batch(context_tokens, kv_dtype=kv_dtype)
    work = find_attention(True).prepare(*arguments)
    result = work.decode(*arguments[1:])
    assert_is_dense(result, arguments)
    assert result.stages.kernel_ms > 0 and result.stages.total_ms > 0
    assert work.form.endswith((", folded", ", enable_gqa"))


def test_a_copy_that_does_not_fit_on_a_gpu_is_refused_with_its_bytes(host_as_gpu, monkeypatch):
    arguments = batch(RAGGED)
    kv_bytes = sum(RAGGED) * arguments[0].config.token_bytes
    host_as_gpu(kv_bytes)
    with pytest.raises(MemoryError, match=f"{kv_bytes:,} bytes"):
        find_attention(True).prepare(*arguments)
    host_as_gpu(1.3 * kv_bytes)  # that of the padded form does not fit as well
    assert GROUPED in find_attention(True).prepare(*arguments).form


@pytest.mark.parametrize("kv_dtype", ["float32", "float16", "bfloat16"])
def test_the_pages_on_a_device_are_described_as_words(sdpa_work, kv_dtype):
    cache, _, _ = batch(LONE, kv_dtype=kv_dtype)
    array = device_pool_of(cache).keys
    described = sdpa_work.Words(array).__cuda_array_interface__
    assert described["shape"] == cache.pool.keys.shape
    assert described["typestr"] == f"<i{cache.pool.keys.itemsize}"
    assert described["data"] == (array.address, False)


@pytest.mark.gpu
@pytest.mark.parametrize("kv_dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("context_tokens", [EQUAL, RAGGED])
def test_on_a_gpu_its_outputs_are_ours(torch, context_tokens, kv_dtype):
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA")
    arguments = batch(context_tokens, num_heads=4, num_kv_heads=2, kv_dtype=kv_dtype)
    result = find_attention(True).prepare(*arguments).decode(*arguments[1:])
    assert_is_dense(result, arguments, GPU_TOLERANCE)
    assert 0 < result.stages.kernel_ms and 0 < result.stages.total_ms
