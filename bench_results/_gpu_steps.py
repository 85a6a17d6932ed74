"""The steps of `gpu_check.py`, which runs this file once for each of them.

A step prints what it finds, and a line with its status, key figure and numbers, which may be
renewed: what counts is the last one before the step ends or is stopped.
"""

import gc
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from time import monotonic, perf_counter

import _gpu_attend
import _gpu_serving
import _gpu_tests
import _gpu_tools
import _gpu_topk
import click
import numpy as np
from _gpu_cases import ACCURACY, GPU_PATHS, GQA, HOST, REFERENCE, Case, Run
from tabulate import tabulate

from numbadsd.decode.path import make_path
from numbadsd.kernels.cuda.runtime import get_driver, why_unavailable
from numbadsd.kernels.cuda.switch import SIMULATED

_NO_GPU = "the simulator is no GPU"
_MOST_DIFFERENCE = {  # of outputs near 1; where scores are nearly equal other pages are right too
    "avg_max_abs_diff_dense_gpu_vs_dense_cpu": 1e-4,
    "avg_max_abs_diff_sparse_gpu_vs_sparse_cpu": 1e-2,
}
_HOST_STEPS, _HOST_WARMUP = 200, 5
_SDPA_SHARE = 0.6  # of the time for torch; the rest is flex_attention's, which is compiled
_SKIPPED_STATUS = 75  # of versus_torch_gpu.py


def kernels(run: Run) -> None:
    """Compile and load every kernel of two shapes; a kernel with local memory is a failure."""
    if SIMULATED:
        return run.tell(_NO_GPU, "skipped")
    from numbadsd.kernels.cuda.catalog import Shape, kernels_of

    driver, rows = get_driver(), {}
    for case in (REFERENCE[0], GQA[0]):
        model = case.config.model
        shape = Shape(
            model.num_heads, model.num_kv_heads, model.head_dim, model.page_size, model.kv_dtype,
            model.summary, model.share,
        )  # fmt: skip
        for kernel in kernels_of(shape):
            if kernel.name not in rows:
                rows[kernel.name] = _load(driver, kernel)
    print(tabulate(list(rows.values()), headers="keys", floatfmt=".2f"), flush=True)
    broken = [name for name, row in rows.items() if row["error"]]
    spilling = [name for name, row in rows.items() if row["local_bytes"]]
    slowest = max(rows.values(), key=lambda row: row["seconds"])
    figure = (
        f"{len(rows)} kernels in {sum(row['seconds'] for row in rows.values()):.1f} s, slowest "
        f"{slowest['kernel']} {slowest['seconds']:.1f} s"
    )
    for what, names in (("not loaded", broken), ("local memory", spilling)):
        figure += f"; {what}: {', '.join(names) or 'none'}"
    run.tell(figure, "failed" if broken or spilling else "ok", kernels=list(rows.values()))


def _load(driver, kernel) -> dict:
    """Return what a kernel takes, or why it does not load."""
    start, error, loaded = perf_counter(), "", None
    try:
        loaded = driver.load(kernel)
    except Exception as fault:  # the other kernels are to be seen as well
        error = f"{type(fault).__name__}: {fault}".splitlines()[0][:200]
    return {
        "kernel": kernel.name,
        "seconds": perf_counter() - start,
        "threads": kernel.num_threads,
        "registers": loaded and loaded.registers,
        "budget": kernel.max_registers,
        "local_bytes": loaded and loaded.local_bytes,
        "shared_bytes": loaded and loaded.shared_bytes,
        "error": error,
    }


def reference(run: Run) -> None:
    """Measure the reference system's contexts."""
    _bench_all(run, REFERENCE)


def gqa(run: Run) -> None:
    """Measure grouped heads in half precision, up to long contexts."""
    _bench_all(run, GQA)


def _bench_all(run: Run, cases: list[Case]) -> None:
    """Measure the cases in order while there is time; the first one is the key figure."""
    rows, bad, key = [], [], "nothing measured"
    cases = run.sized(cases)[: 1 if run.tiny else None]
    for i, case in enumerate(cases):
        start = monotonic()
        record = run.bench(case)
        paths = record["paths"] if record else {}
        numbers = {name: _numbers(path) for name, path in paths.items() if path["available"]}
        rows.append({"case": case.name, "seconds": monotonic() - start, **numbers})
        if not all(name in numbers for name in case.paths):
            bad.append(case.name)
        if i == 0 and numbers:
            key = ", ".join(_words(name, row) for name, row in numbers.items()) + f" ({case.name})"
        figure = key + (f"; failed: {' | '.join(bad)}" if bad else "")
        left_out = [case.name for case in cases[i + 1 :]]
        is_last = run.left_s < 1.5 * (monotonic() - start) or not left_out
        if is_last and left_out:
            figure += f"; no time for {len(left_out)} of {len(cases)}"
        run.tell(figure, "failed" if bad else "ok", cases=rows, left_out=left_out)
        if is_last:
            return


def _numbers(path: dict) -> dict:
    """Return what a path's record says in short; floors are its time over that of its bytes."""
    total_ms = path["total_ms"]["median"]
    return {
        "total_ms": total_ms,
        "kernel_ms": path["kernel_ms"],
        "of_copy_bandwidth": path["bandwidth_fraction"],
        "floors": total_ms / path["floor_ms"],
    }


def _words(name: str, row: dict) -> str:
    if name.startswith("dense"):
        reached = f"{row['of_copy_bandwidth']:.2f} of copy"
    else:
        reached = f"{row['floors']:.2f} floors"
    return f"{name} {row['total_ms']:.3g} ms (kernels {row['kernel_ms']:.3g}), {reached}"


def accuracy(run: Run) -> None:
    """Compare outputs of the GPU with the CPU's, on data that has pages worth finding."""
    (case,) = run.sized(ACCURACY)
    record = run.bench(case)
    if record is None:
        return run.tell("no record", "failed")
    found, quality = record["accuracy"], record["quality"]
    wrong = [n for n, most in _MOST_DIFFERENCE.items() if found[n] is None or not found[n] <= most]
    says = ", ".join(
        f"{name.removeprefix('avg_max_abs_diff_')} "
        + ("not measured" if found[name] is None else f"{found[name]:.1e}")
        for name in _MOST_DIFFERENCE
    )
    if quality is None:
        wrong.append("quality")
    else:
        says += f", recall {quality['page_recall']:.3f}"
    run.tell(says, "failed" if wrong else "ok", accuracy=found, quality=quality, wrong=wrong)


def torch(run: Run) -> None:
    """Measure torch's attention beside dense_gpu: what is ready, then what is compiled first."""
    if SIMULATED or find_spec("torch") is None:
        return run.tell(_NO_GPU if SIMULATED else "torch is not installed", "skipped")
    file, notes = run.out / "torch.jsonl", []
    script = Path(__file__).resolve().with_name("versus_torch_gpu.py")
    for group, share in (("sdpa", _SDPA_SHARE), ("flex", 1.0)):
        seconds = share * run.left_s - 1
        status, output = run.call(
            sys.executable, script, "--out", file, "--group", group, "--commit", run.commit,
            "--seconds", f"{seconds:.0f}", seconds=seconds,
        )  # fmt: skip
        if status == _SKIPPED_STATUS:
            return run.tell(output.strip().splitlines()[-1], "skipped")
        if status != 0:
            notes.append(f"{group} {'late' if status is None else f'status {status}'}")
        _tell_torch(run, file, notes)


def _tell_torch(run: Run, file: Path, notes: list[str]) -> None:
    """Say how the first case compares; a group that was stopped may have left lines."""
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    lines = [line for line in lines if line["commit"] == run.commit]
    figure = f"{len(lines)} lines"
    first = [line for line in lines if line["case"] == GQA[0].name and line["fastest"]]
    if first:
        best = min(first, key=lambda line: line["backends"][line["fastest"]]["ms"])
        theirs, ours = best["backends"][best["fastest"]]["ms"], best["dense_gpu"]["kernel_ms"]
        figure += f"; {best['fastest']} {theirs:.3g} ms, dense_gpu kernels {ours:.3g} ms, "
        figure += f"{theirs / ours:.2f}x ({best['case']})"
    failed = not lines or any("status" in note for note in notes)
    run.tell("; ".join([figure, *notes]), "failed" if failed else "ok", lines=len(lines))


def host(run: Run) -> None:
    """Compare a step's wall time, without events in it, with the time its kernels take.

    Once with queries and outputs on the host, once with both on the device, as an engine has them:
    then the host's part of a step overlaps the step before it, and what is left is what shows.
    """
    rows = []
    for case in run.sized(HOST):
        data = case.fill()
        for resident in (False, True):
            rows += [_host_share(run, case, data, name, resident) for name in GPU_PATHS]
        del data
        gc.collect()  # cache and device pool know each other
        last = " and ".join(f"{r['path']} {r['host_share']:.1%}" for r in rows[-len(GPU_PATHS) :])
        run.tell(f"host share of {last} ({case.name})", steps=rows)
    print(tabulate(rows, headers="keys", floatfmt=".4f"))


def _host_share(run: Run, case: Case, data, name: str, resident: bool) -> dict:
    """Return the medians of one path."""
    queries, mode = data.queries, "outputs"
    if resident:
        queries, mode = _on_device(data.queries), "none"
    steps, warmup = (1, 0) if run.tiny else (_HOST_STEPS, _HOST_WARMUP)
    wall, kernel, total = [], [], []
    for timing in (False, True):
        path = make_path(name, data.cache, timing=timing, output_mode=mode)
        for i in range(-warmup, steps):
            start = perf_counter()
            stages = path.decode(queries, data.request_ids).stages
            wall_ms = (perf_counter() - start) * 1e3
            if i >= 0 and timing:
                kernel.append(stages.kernel_ms)
                total.append(stages.total_ms)
            elif i >= 0:
                wall.append(wall_ms)
    wall_ms, kernel_ms, total_ms = map(float, map(np.median, (wall, kernel, total)))
    share = 1 - kernel_ms / wall_ms
    return {
        "case": case.name, "path": name, "resident": resident, "wall_ms": wall_ms,
        "kernel_ms": kernel_ms, "total_with_events_ms": total_ms, "host_share": share,
    }  # fmt: skip


def _on_device(array: np.ndarray):
    """Return a copy of an array on the device."""
    driver = get_driver()
    stream, copy = driver.stream(), driver.empty(array.shape, array.dtype)
    stream.upload(copy, array)
    stream.synchronize()
    return copy


STEPS = {
    step.__name__.replace("_", "-"): step
    for step in (
        _gpu_tools.versions, _gpu_tests.tests, kernels, reference, gqa, accuracy, torch,
        _gpu_attend.ways, host, _gpu_topk.topk, _gpu_serving.serving, _gpu_topk.topk_tune,
        _gpu_tools.sanitizer, _gpu_tools.profile, _gpu_tests.shapes, _gpu_tools.sanitizer_target,
        _gpu_tools.profile_target,
    )
}  # fmt: skip


@click.command()
@click.argument("name", type=click.Choice(list(STEPS)))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--commit", required=True)
@click.option("--seconds", default=600.0)
@click.option("--tiny", is_flag=True)
def main(name: str, out: Path, commit: str, seconds: float, tiny: bool) -> None:
    """Run one step; without a device only those that look for the reason."""
    run = Run(out, commit, tiny, monotonic() + seconds - 1)
    problem = why_unavailable()
    if problem is not None and name not in ("versions", "tests"):
        return run.tell("; ".join(problem), "failed")
    STEPS[name](run)


if __name__ == "__main__":
    main()
