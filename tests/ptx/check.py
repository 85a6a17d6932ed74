"""GPU paths over translated PTX, held against CPU paths and the oracle.

A script that `test_ptx.py` runs in a process of its own, where numba-cuda compiles:
`check.py run SHAPE FOLDER` runs every check of a shape, `check.py topk DTYPE FOLDER` those of
top-k for scores of a type, `check.py attend DTYPE FOLDER` those of attention to K and V of a type
in every way, `check.py translate SHAPES FOLDER` only translates kernels. A shape in
JSON has the fields of `Shape`; the folder keeps PTX meanwhile.
"""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np

from numbadsd.config import KV_DTYPES
from numbadsd.decode.path import make_path
from numbadsd.kernels.cuda import driver, runtime
from numbadsd.kernels.cuda.attend_spec import FMA, MMA, can_use_mma
from numbadsd.kernels.cuda.catalog import Shape, kernels_of
from numbadsd.kernels.cuda.topk_tuning import TopkTuning
from numbadsd.pages.cache import PagedKvCache
from numbadsd.pages.device import DevicePagePool, device_pool_of
from numbadsd.selection import topk
from numbadsd.workload.synthetic import UniformWorkload
from tests import device
from tests.builders import make_cache, random_queries, random_tokens, small_config
from tests.decode.checks import (
    assert_same_bits,
    check_all_pages_like_dense,
    check_alone_like_batch,
    check_attention,
    check_gpu_like_cpu,
    check_scores_and_selection,
)
from tests.kernels.cuda.cases import attend_case, select
from tests.pages.checks import assert_device_equals
from tests.ptx.machine import PtxDriver

ATOL = 2e-6
EAGER = dict(use_graph=False)
SEED = 9


def install(folder: Path) -> None:
    """Make translated PTX the device of this process."""
    runtime._why_no_device = lambda: None
    driver.CudaDriver = partial(PtxDriver, folder)
    assert isinstance(runtime.get_driver(), PtxDriver)


def context_tokens(page_size: int) -> list[int]:
    """Return contexts of no page, of a part of one, of whole ones and of a tail of one token."""
    return [3 * page_size + 1, 0, page_size - 1, 2 * page_size]


def check_decode(config) -> None:
    """Check both paths, the device's pages, and a request alone, before and after appends."""
    contexts = context_tokens(config.page_size)
    cache, keys, values = make_cache(config, contexts, capacity_pages=40, shuffle=2)
    ids = list(range(len(contexts)))
    queries = random_queries(config, len(ids), 1)
    for step in range(2):
        for name in (("dense", "sparse"), ("sparse",))[step]:
            result = check_gpu_like_cpu(name, cache, queries, ids, ATOL, **EAGER)
            check_attention(config, result, queries, keys, values)
        check_scores_and_selection(cache, result, queries, ids)
        assert_device_equals(device_pool_of(cache))
        if step == 0:
            new = random_tokens(config, len(ids), SEED)
            cache.append_step(ids, *new)
            keys, values = (
                [np.concatenate([olds[i], news[i : i + 1]]) for i in ids]
                for olds, news in zip((keys, values), new, strict=True)
            )
    check_alone_like_batch("sparse_gpu", cache, queries, ids, [[0]], **EAGER)


def check_all_pages(config) -> None:
    """Check that a sparse step over every page has the bits of the dense one."""
    cache, _, _ = make_cache(config, [2 * config.page_size + 1, 1], capacity_pages=9, shuffle=3)
    check_all_pages_like_dense(cache, random_queries(config, 2, 5), [0, 1], **EAGER)


def check_synthetic(config) -> None:
    """Check tokens that are made on the device against those of the workload, and a decode."""
    lengths = np.array([config.page_size + 2, 3])
    bare = DevicePagePool(PagedKvCache(config, 9, allocate_storage=False))
    twin, workload = PagedKvCache(config, 9), UniformWorkload(config, lengths, seed=SEED)
    for request_id in (0, 1):
        bare.prefill_synthetic(request_id, int(lengths[request_id]) - 1, seed=SEED)
        keys, values = next(workload.chunks(request_id, 1000))
        twin.append_tokens(request_id, keys[:-1], values[:-1])
    bare.append_synthetic([0, 1], seed=SEED)
    last = [[a[-1] for a in next(workload.chunks(r, 1000))] for r in (0, 1)]
    twin.append_step([0, 1], *np.stack(last, axis=1))
    assert_device_equals(bare, twin)
    results = [
        make_path("sparse_gpu", cache, **EAGER).decode(workload.queries, [0, 1])
        for cache in (bare.cache, twin)
    ]
    assert_same_bits(*results)


def run(shape: dict) -> None:
    """Run every check of one shape."""
    config = small_config(**shape, num_sink_pages=1, num_recent_pages=1)
    check_decode(config)
    check_all_pages(config)
    check_synthetic(config)
    print("checked")


def check_topk(dtype: str) -> None:
    """Check every way that a row can go, against the CPU kernel, for scores of one type."""
    rng = np.random.default_rng(SEED)
    scores = (rng.integers(-40, 40, (6, 1, 90)) / 8).astype(np.float32)
    scores[0] = rng.standard_normal(90)
    scores[1, 0, ::3] = np.nan
    scores = scores.astype(KV_DTYPES[dtype])
    lengths = np.array([90, 89, 17, 5, 0, -1], np.int32)
    for tuning in (TopkTuning(16, 32, 32, 64), TopkTuning(100, 100), TopkTuning(0, 100)):
        for order in ("position", "score"):
            expected = topk(scores[:, 0], lengths, 7, sorted=order)
            got = select(scores, 7, lengths, order=order, launch=tuning)
            np.testing.assert_array_equal(got[:, 0], expected)
    print("checked")


def check_attend(dtype: str) -> None:
    """Check attention by all instructions that can do it, against the oracle and bit for bit."""
    for way in (FMA, MMA) if can_use_mma(16, dtype) else (FMA,):
        for group, head_dim in ((1, 48), (3, 80), (8, 112), (12, 16)):
            shape = dict(heads=group, kv_heads=1, head_dim=head_dim, page_size=8, dtype=dtype)
            case = attend_case([70, 0, 17], way, **shape)
            case.check()
            every_page = case.first_pages(group, 9)
            device.assert_same_bits(case.run([0], every_page, k=9), case.run([0]))
    print("checked")


def translate_all(shapes: list[dict]) -> None:
    """Translate every kernel of some shapes."""
    loader = runtime.get_driver()
    kernels = {kernel.name: kernel for shape in shapes for kernel in kernels_of(Shape(**shape))}
    for kernel in kernels.values():
        loader.load(kernel)
    print(len(kernels), "kernels translated")


if __name__ == "__main__":
    install(Path(sys.argv[3]))
    checks = {"run": run, "topk": check_topk, "attend": check_attend, "translate": translate_all}
    checks[sys.argv[1]](json.loads(sys.argv[2]))
