"""dense_gpu beside torch's attention kernels on one GPU: same shapes, dtype and process.

    python bench_results/versus_torch_gpu.py --out FILE.jsonl [--group sdpa|flex]

torch gets contiguous random tensors, queries [B, H, 1, D] and K and V [B, G, L, D], numbadsd a
paged cache of as many random tokens. Samples alternate, each after a copy that empties the L2
cache. torch's are times between CUDA events, dense_gpu's the time of its kernels by events and of
the whole call by the host's clock. One line of JSON a case. Where torch has no GPU it ends with
status 75.
"""

import gc
import json
import sys
from pathlib import Path
from time import monotonic, perf_counter

import click
import torch
from _gpu_cases import GQA, REFERENCE, Case
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from numbadsd.bench.record import environment
from numbadsd.decode.path import make_path
from numbadsd.timing import sample_statistics

SKIPPED_STATUS = 75
FLUSH_BYTES = 256 << 20  # several times the largest L2 cache
MATH_BYTES = 5 << 30  # of K and V; the backend copies them, expanded to every head, in float32
SDPA = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
# What says most comes first; a compilation for each case of "flex" leaves time for few.
CASES = {
    "sdpa": [GQA[0], REFERENCE[0], *GQA[1:4], REFERENCE[-1], *GQA[4:], *REFERENCE[1:-1]],
    "flex": [GQA[0], REFERENCE[0], GQA[1], GQA[3], REFERENCE[-1], GQA[2]],
}


class Clock:
    """Times of work on a device, each after a copy that empties its L2 cache."""

    def __init__(self, device: str):
        self.is_cuda = device == "cuda"
        size = FLUSH_BYTES if self.is_cuda else 16
        self._source = torch.ones(size, dtype=torch.uint8, device=device)
        self._target = torch.empty_like(self._source)

    def flush(self) -> None:
        """Empty the cache; the device is still at it when this returns."""
        self._target.copy_(self._source)

    def synchronize(self) -> None:
        """Wait for torch's work."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def time_ms(self, work) -> float:
        """Return the milliseconds of `work` on the device; its launch hides behind the flush."""
        self.flush()
        if not self.is_cuda:
            start = perf_counter()
            work()
            return (perf_counter() - start) * 1e3
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)


def sdpa_work(case: Case, tensors, backend: SDPBackend):
    """Return one step by a backend of scaled_dot_product_attention."""
    is_grouped = case.num_heads != case.num_kv_heads

    def work():
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(*tensors, enable_gqa=is_grouped)

    return work


def flex_work(case: Case, tensors):
    """Return one step by flex_attention, compiled for this case alone."""
    from torch.nn.attention.flex_attention import flex_attention

    torch.compiler.reset()
    compiled = torch.compile(flex_attention, dynamic=False)
    is_grouped = case.num_heads != case.num_kv_heads
    return lambda: compiled(*tensors, enable_gqa=is_grouped)


def all_work(group: str, case: Case, tensors) -> dict:
    """Return what torch is to do, by backend; a text says why it is left out."""
    if group == "flex":
        return {"flex": flex_work(case, tensors)}
    work = {name: sdpa_work(case, tensors, backend) for name, backend in SDPA.items()}
    if case.kv_bytes > MATH_BYTES:
        work["math"] = f"left out: it would copy {case.kv_bytes:,} bytes several times"
    return work


def try_once(work, clock: Clock) -> str | None:
    """Run work once, compiling it; return why it does not run, or None."""
    if isinstance(work, str):
        return work
    try:
        work()
        clock.synchronize()
    except Exception as error:  # whatever a backend answers is its result
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return None


def make_tensors(case: Case, device: str) -> tuple[torch.Tensor, ...]:
    """Return random queries [B, H, 1, D], keys and values [B, G, L, D]."""
    kv = (case.batch, case.num_kv_heads, case.context, case.head_dim)
    shapes = ((case.batch, case.num_heads, 1, case.head_dim), kv, kv)
    dtype = getattr(torch, case.kv_dtype)
    return tuple(torch.randn(shape, dtype=dtype, device=device) for shape in shapes)


def measure(group: str, case: Case, clock: Clock, samples: int) -> dict:
    """Return the times of every backend of a group, and of dense_gpu, on one case."""
    data = case.fill()
    path = make_path("dense_gpu", data.cache)
    tensors = make_tensors(case, "cuda" if clock.is_cuda else "cpu")
    works = all_work(group, case, tensors)
    reasons = {name: reason for name, work in works.items() if (reason := try_once(work, clock))}
    works = {name: work for name, work in works.items() if name not in reasons}
    path.decode(data.queries, data.request_ids)
    times: dict[str, list[float]] = {name: [] for name in (*works, "kernel", "total")}
    for i in range(-1, samples):
        taken = {name: clock.time_ms(work) for name, work in works.items()}
        clock.flush()
        clock.synchronize()
        stages = path.decode(data.queries, data.request_ids).stages
        taken |= {"kernel": stages.kernel_ms, "total": stages.total_ms}
        for name, ms in taken.items() if i >= 0 else ():  # the first is a warm-up
            times[name].append(ms)
    return results(case, times, reasons)


def results(case: Case, times: dict[str, list[float]], reasons: dict[str, str]) -> dict:
    """Return the medians, and the bytes of K and V over them."""
    found = {name: sample_statistics(values) for name, values in times.items()}
    speed = lambda name: case.kv_bytes / found[name]["median"] / 1e6  # noqa: E731
    backends = {
        name: {"ms": found[name]["median"], "min_ms": found[name]["min"], "gbps": speed(name)}
        for name in times
        if name not in ("kernel", "total")
    }
    return {
        "fastest": min(backends, key=lambda name: backends[name]["ms"], default=None),
        "backends": backends | {name: {"reason": reason} for name, reason in reasons.items()},
        "dense_gpu": {
            "kernel_ms": found["kernel"]["median"],
            "total_ms": found["total"]["median"],
            "kernel_gbps": speed("kernel"),
            "total_gbps": speed("total"),
        },
    }


def fits(case: Case, clock: Clock) -> bool:
    """Whether torch's tensors and the paged cache fit on the device together."""
    if not clock.is_cuda:
        return True
    gc.collect()  # a cache and its device pool know each other
    torch.cuda.empty_cache()
    copies = 2 if case.kv_bytes > MATH_BYTES else 12  # with what "math" copies
    return copies * case.kv_bytes + FLUSH_BYTES * 8 < torch.cuda.mem_get_info()[0]


def report(record: dict) -> str:
    """Return a record as a line."""
    parts = [
        f"{name} {row['ms']:.4f} ms" if "ms" in row else f"{name}: {row['reason']}"
        for name, row in record["backends"].items()
    ]
    ours = record["dense_gpu"]
    parts.append(f"dense_gpu kernels {ours['kernel_ms']:.4f} ms, call {ours['total_ms']:.4f} ms")
    return f"{record['case']}: {', '.join(parts)}, {ours['kernel_gbps']:.0f} GB/s"


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Appended to.")
@click.option("--group", type=click.Choice(list(CASES)), default="sdpa", show_default=True)
@click.option("--samples", default=20, show_default=True)
@click.option("--seconds", default=600.0, show_default=True, help="Starts no case after these.")
@click.option("--commit", help="Commit of this tree, where git does not know it.")
@click.option("--rehearse", is_flag=True, hidden=True, help="Tiny cases on the CPU.")
def main(out: Path, group: str, samples: int, seconds: float, commit, rehearse: bool) -> None:
    """Measure the cases in order while there is time and write a line for each."""
    if not rehearse and not torch.cuda.is_available():
        click.echo(f"torch {torch.__version__} has no CUDA device")
        sys.exit(SKIPPED_STATUS)
    torch.manual_seed(0)
    clock, cases = Clock("cpu" if rehearse else "cuda"), CASES[group]
    cases = [case.shrunk() for case in cases[:2]] if rehearse else cases
    deadline, longest_s = monotonic() + seconds, 0.0
    machine = {**environment(uses_gpu=True), "torch": torch.__version__}
    machine["commit"] = machine["commit"] or commit
    for case in cases:
        if monotonic() + longest_s > deadline or not fits(case, clock):
            click.echo(f"{case.name}: left out, no time or memory")
            continue
        start = monotonic()
        head = {"bench": "versus_torch_gpu", "group": group, "case": case.name}
        sizes = {"kv_bytes": case.kv_bytes, "samples": samples, "commit": commit}
        record = {**head, **sizes, **measure(group, case, clock, samples), "environment": machine}
        longest_s = max(longest_s, monotonic() - start)
        with out.open("a") as file:
            file.write(json.dumps(record) + "\n")
        click.echo(report(record))


if __name__ == "__main__":
    main()
