"""Attention of prompts on the GPU (in the simulator), held against the CPU's."""

import numpy as np
import pytest

from numbadsd.decode.gpu_prefill import GpuPromptAttention
from numbadsd.decode.prefill import CpuPromptAttention
from numbadsd.pages.device import device_pool_of
from tests.builders import make_cache, small_config

LENGTHS = [9, 1, 14]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def both(request):
    """Return the attention of both sides over the same prompts, and queries of all their tokens."""
    config = small_config(page_size=4, kv_dtype=request.param)
    cache, _, _ = make_cache(config, LENGTHS, capacity_pages=20, shuffle=1)
    shape = (sum(LENGTHS), config.num_heads, config.head_dim)
    queries = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return CpuPromptAttention(cache), GpuPromptAttention(device_pool_of(cache)), queries


def test_the_gpu_attends_as_the_cpu_does(both):
    cpu, gpu, queries = both
    arguments = queries, np.cumsum([0, *LENGTHS]), [0, 0, 0], [0, 1, 2]
    np.testing.assert_allclose(gpu.attend(*arguments), cpu.attend(*arguments), atol=2e-6)


def test_chunks_have_the_bits_of_the_whole(both):
    _, gpu, queries = both
    whole = gpu.attend(queries, np.cumsum([0, *LENGTHS]), [0, 0, 0], [0, 1, 2])
    last = gpu.attend(queries[-5:], [0, 5], [9], [2])
    np.testing.assert_array_equal(last, whole[-5:])
    parts = np.concatenate([queries[4:9], queries[10:13]])
    packed = gpu.attend(parts, [0, 5, 8], [4, 0], [0, 2])
    np.testing.assert_array_equal(packed, np.concatenate([whole[4:9], whole[10:13]]))


def test_outputs_may_stay_on_the_device(both):
    _, gpu, queries = both
    before = gpu.pool.stats.d2h_bytes
    stays = GpuPromptAttention(gpu.pool, brings_outputs=False)
    assert stays.attend(queries[:9], [0, 9], [0], [0]) is None
    assert gpu.pool.stats.d2h_bytes == before
