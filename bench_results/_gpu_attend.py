"""The attention step of `gpu_check.py`: multiply-add instructions beside tensor cores.

`attend_spec.default_way` takes one of them by the group; what it should take is what this finds.
"""

from dataclasses import dataclass

import ml_dtypes  # noqa: F401 (names bfloat16)
import numpy as np
from _gpu_cases import SEED, Run
from tabulate import tabulate

from numbadsd.kernels import shared
from numbadsd.kernels.cuda.attend import attend_pages, workspace_sizes
from numbadsd.kernels.cuda.attend_spec import FMA, MMA, default_way
from numbadsd.kernels.cuda.runtime import get_driver

WARM_MS, SAMPLES, REPLAYS = 100.0, 5, 10
_RANDOM_BYTES = 1 << 26  # of storage, over and over
_PAGE_SIZE = 16


@dataclass(frozen=True)
class Shape:
    """A batch that reads one GB or so: `k` selected pages a request, 0: all."""

    group: int
    kv_dtype: str = "float16"
    k: int = 0
    batch: int = 32
    context: int = 8192
    kv_heads: int = 8
    head_dim: int = 128

    @property
    def kv_bytes(self) -> int:
        """Bytes of K and V that a call reads."""
        tokens = min(self.context, self.k * _PAGE_SIZE) if self.k else self.context
        return self.batch * tokens * self.kv_heads * self.head_dim * 4

    def tiny(self) -> "Shape":
        """Return a shape that the simulator runs in a second."""
        return Shape(self.group, self.kv_dtype, min(self.k, 1), 1, 20, 1, 16)


SHAPES = (
    *(Shape(group) for group in (4, 1, 2, 8, 16)),
    *(Shape(group, "bfloat16") for group in (4, 8)),
    Shape(8, head_dim=64),
    Shape(4, k=128, context=32768),
)


def ways(run: Run) -> None:
    """Time both ways of each shape; the first one is the key figure."""
    rows, wrong = [], []
    for shape in SHAPES[: 2 if run.tiny else None]:
        if run.left_s < 8 and rows:
            break
        row = _compare(shape.tiny() if run.tiny else shape, run.tiny)
        rows.append(row)
        if row["fma_us"] > row["mma_us"] and row["default"] == FMA:
            wrong.append(f"tensor cores for groups of {shape.group}")
        if row["fma_us"] < 0.98 * row["mma_us"] and row["default"] == MMA:
            wrong.append(f"multiply-adds for groups of {shape.group}")
        first = rows[0]
        figure = f"fma {first['fma_us']:.0f} us, mma {first['mma_us']:.0f} us (group of 4)"
        figure += f"; faster than the default: {', '.join(wrong)}" if wrong else ""
        is_bad = any(row["most_difference"] > 1e-4 for row in rows)
        run.tell(figure, "failed" if is_bad else "ok", shapes=rows)
    print(tabulate(rows, headers="keys", floatfmt=".4g"), flush=True)


def _compare(shape: Shape, is_tiny: bool) -> dict:
    """Return microseconds, bandwidth and the difference of the outputs of both ways."""
    stream, arguments, options = _arguments(shape)
    row = {
        "group": shape.group, "dtype": shape.kv_dtype, "head_dim": shape.head_dim, "k": shape.k,
        "default": default_way(shape.head_dim, shape.kv_dtype, shape.group),
    }  # fmt: skip
    outputs = []
    for way in (FMA, MMA):

        def call(way=way) -> None:
            attend_pages(*arguments, stream=stream, launch=way, **options)

        call()
        found = np.empty(arguments[8].shape, np.float32)
        stream.download(found, arguments[8])
        stream.synchronize()
        outputs.append(found)
        us = time_us(stream, call, 1 if is_tiny else REPLAYS, not is_tiny)
        row |= {f"{way}_us": us, f"{way}_gbps": shape.kv_bytes / us / 1e3}
    row["most_difference"] = float(np.abs(outputs[0] - outputs[1]).max())
    return row


def time_us(stream, call, replays: int, warm: bool = True) -> float:
    """Return the median microseconds of a call in a graph, over several of many in a row.

    Before, the device is kept busy for a while: an idle one has a low clock.
    """
    graph, samples, busy_ms = stream.capture(call), [], 0.0
    while not samples or warm and (busy_ms < WARM_MS or len(samples) < SAMPLES):
        before = stream.record()
        for _ in range(replays):
            stream.replay(graph)
        after = stream.record()
        stream.synchronize()
        ms = after.elapsed_ms(before)
        busy_ms += ms
        samples.append(ms * 1e3 / replays)
    return float(np.median(samples[-SAMPLES:]))


def _arguments(shape: Shape):
    """Return a stream and the arguments of `attend_pages`: random numbers in scattered pages."""
    driver, rng = get_driver(), np.random.default_rng(SEED)
    stream, dtype = driver.stream(), np.dtype(shape.kv_dtype)
    pages = -(-shape.context // _PAGE_SIZE)
    total, heads = shape.batch * pages, shape.kv_heads * shape.group

    def up(array):
        copy = driver.empty(array.shape, array.dtype)
        stream.upload(copy, array)
        stream.synchronize()
        return copy

    pools = []
    for _ in range(2):
        pool = driver.empty((total, shape.kv_heads, _PAGE_SIZE, shape.head_dim), dtype)
        block = up(rng.uniform(-1, 1, min(_RANDOM_BYTES, pool.nbytes) // 2).astype(dtype))
        flat = pool.reshape(pool.size)
        for start in range(0, pool.size, block.size):
            part = flat[start : start + block.size]
            stream.copy(part, block[: part.size])
        pools.append(pool)
    queries = up(rng.standard_normal((shape.batch, heads, shape.head_dim), np.float32))
    indptr = up(np.arange(0, total + 1, pages, dtype=np.int32))
    ids, last = up(rng.permutation(total).astype(np.int32)), up(np.full(shape.batch, 5, np.int32))
    outputs, lse = (
        driver.empty(queries.shape, np.float32),
        driver.empty(queries.shape[:2], np.float32),
    )
    listed = min(pages, shape.k) if shape.k else pages
    sizes = workspace_sizes(
        shape.batch, heads, shape.head_dim, shared.most_splits(listed, _PAGE_SIZE)
    )
    options = {"workspace": tuple(driver.empty(n, np.float32) for n in sizes), "max_pages": pages}
    if shape.k:
        lists = [
            np.sort(rng.permutation(pages)[:listed]) for _ in range(shape.batch * shape.kv_heads)
        ]
        chosen = np.array(lists, np.int32).reshape(shape.batch, shape.kv_heads, listed)
        options["selected"] = up(chosen)
    scale = shape.head_dim**-0.5
    arguments = (queries, *pools, indptr, ids, last, shape.kv_heads, scale, outputs, lse)
    return stream, arguments, options
