"""The top-k steps of `gpu_check.py`: what it takes, and which rows should go which way."""

import json
from dataclasses import asdict, replace

import numpy as np
from _gpu_attend import time_us
from _gpu_cases import SEED, Run
from tabulate import tabulate

import numbadsd
from numbadsd.kernels.cuda.runtime import get_driver
from numbadsd.kernels.cuda.topk import topk_rows, topk_workspace_size
from numbadsd.kernels.cuda.topk_tuning import TopkTuning, tuning_of

# rows, length, k, and the microseconds asked of a graph replay on an H200
CASES = (
    (128, 2048, 128, 8.0), (4, 163_840, 2048, 25.0), (256, 256, 64, None),
    (256, 8192, 128, None), (1, 65_536, 128, None), (32, 65_536, 512, None),
    (1024, 1024, 64, None),
)  # fmt: skip
_TINY = ((3, 40, 4, None),)

WARP_LENGTHS = (64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
PART_LENGTHS = (4096, 8192, 16384)
BLOCK_LENGTHS = (8192, 16384, 32768, 65536, 131072)
LONG_ROWS, K, REPLAYS = 4, 128, 50
_NEVER = 1 << 20  # a length that no row has


def topk(run: Run) -> None:
    """Run `dsd_topk_bench` on the device for the shapes that matter."""
    rows, bad, cases = [], [], _TINY if run.tiny else CASES
    for num_rows, length, k, asked_us in cases:
        record = _bench(run, num_rows, length, k)
        name = f"{num_rows} x {length}, k {k}"
        if record is None:
            bad.append(name)
        for case in record["cases"] if record else ():
            others = {n: c["speedup"] for n, c in case["comparators"].items() if c["available"]}
            kind = {name: case[name] for name in ("lengths", "values", "floors")}
            us = case["ms"]["median"] * 1e3
            rows.append({"case": name, "us": us, "asked_us": asked_us, **kind, **others})
            if any(c.get("agrees") is False for c in case["comparators"].values()):
                bad.append(f"{name} {case['values']} differs")
        first = rows[0] if rows else {"us": float("nan"), "case": "nothing"}
        figure = f"{first['us']:.1f} us ({first['case']})"
        figure += f"; failed: {', '.join(bad)}" if bad else ""
        run.tell(figure, "failed" if bad else "ok", cases=rows)
    print(tabulate(rows, headers="keys", floatfmt=".2f"), flush=True)


def _bench(run: Run, rows: int, length: int, k: int) -> dict | None:
    """Return the record of a `dsd_topk_bench`; None without."""
    size = [rows, length, k, SEED, *((1, 0) if run.tiny else (20, 3))]
    cases = ["--lengths", "uniform", "--values", "normal"] if run.tiny else []
    return run.record("dsd_topk_bench", [*size, "--device", "gpu", *cases], "topk.jsonl")


def topk_tune(run: Run) -> None:
    """Find the tuning of this architecture: each way of a row, timed at lengths of both sides."""
    capability = get_driver().compute_capability
    measured, start = [], tuning_of(capability)
    replays = 1 if run.tiny else REPLAYS

    def us(rows: int, length: int, tuning: TopkTuning, way: str) -> float:
        times = _replay_us(rows, length, tuning, replays)
        measured.append({"rows": rows, "length": length, "way": way, "us": times, **asdict(tuning)})
        return times

    by_warp = replace(start, warp_length=_NEVER, block_length=_NEVER)
    by_block = replace(start, warp_length=0, block_length=_NEVER)
    warp_length = 0
    for length in WARP_LENGTHS[: 1 if run.tiny else None]:
        rows = 3 if run.tiny else 2 * get_driver().num_multiprocessors
        if us(rows, length, by_warp, "warp") <= us(rows, length, by_block, "block"):
            warp_length = length
    best = replace(start, warp_length=warp_length)
    lengths = (300,) if run.tiny else BLOCK_LENGTHS
    parts = {
        part: [us(LONG_ROWS, length, replace(best, block_length=warp_length, part_length=part),
                  f"parts of {part}") for length in lengths]
        for part in PART_LENGTHS
    }  # fmt: skip
    part_length = min(parts, key=lambda part: sum(parts[part]))
    blocks = [us(LONG_ROWS, length, by_block, "block") for length in lengths]
    faster = [n for n, a, b in zip(lengths, blocks, parts[part_length], strict=True) if a <= b]
    best = replace(best, block_length=max([warp_length, *faster]), part_length=part_length)
    entry = {f"sm_{capability[0]}{capability[1]}": {"tuning": asdict(best), "commit": run.commit,
             "device": get_driver().name, "measured": measured}}  # fmt: skip
    (run.out / "topk_tuning.json").write_text(json.dumps(entry, indent=1) + "\n")
    print(tabulate(measured, headers="keys", floatfmt=".2f"), flush=True)
    run.tell(f"warp up to {best.warp_length}, block up to {best.block_length}, parts of "
             f"{best.part_length}", measured=measured, tuning=asdict(best))  # fmt: skip


def every_way() -> None:
    """Select by a warp, by a block and by several blocks in one call; compare with the CPU."""
    driver, rng = get_driver(), np.random.default_rng(SEED)
    stream, tuning = driver.stream(), TopkTuning(64, 256, 64, 64)
    lengths = np.array([400, 300, 257, 256, 100, 64, 5, -1], np.int32)
    scores = rng.integers(-20, 20, (lengths.size, 400)).astype(np.float32)
    arrays = [driver.empty(scores.size, np.float32), driver.empty(lengths.size, np.int32)]
    for array, host in zip(arrays, (scores.reshape(-1), lengths), strict=True):
        stream.upload(array, host)
    out = driver.empty((lengths.size, 9), np.int32)
    workspace = driver.empty(topk_workspace_size(lengths.size, 400, tuning), np.int32)
    for order in ("position", "score"):
        topk_rows(
            arrays[0], 400, 400, arrays[1], 0, 0, order, out, stream=stream, workspace=workspace,
            launch=tuning,
        )  # fmt: skip
        chosen = np.empty(out.shape, np.int32)
        stream.download(chosen, out)
        stream.synchronize()
        np.testing.assert_array_equal(chosen, numbadsd.topk(scores, lengths, 9, sorted=order))


def _replay_us(rows: int, length: int, tuning: TopkTuning, replays: int) -> float:
    """Return the median microseconds of one replay, over several of many in a row."""
    driver = get_driver()
    stream, rng = driver.stream(), np.random.default_rng(SEED)
    scores = rng.standard_normal(rows * length, np.float32)
    lengths = np.full(rows, length, np.int32)
    arrays = [driver.empty(rows * length, np.float32), driver.empty(rows, np.int32)]
    k = min(K, length // 2)
    out = driver.empty((rows, k), np.int32)
    stream.upload(arrays[0], scores)
    stream.upload(arrays[1], lengths)
    size = topk_workspace_size(rows, length, tuning)
    workspace = driver.empty(size, np.int32) if size else None

    def call() -> None:
        topk_rows(arrays[0], length, length, arrays[1], 0, 0, "position", out, stream=stream,
                  workspace=workspace, launch=tuning)  # fmt: skip

    call()
    stream.synchronize()
    return time_us(stream, call, replays, replays > 1)
