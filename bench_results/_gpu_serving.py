"""The serving step of `gpu_check.py`: continuous batching on the device, sparse and dense."""

from dataclasses import dataclass

from _gpu_cases import SEED, Run
from tabulate import tabulate

# the reference's load: requests, most active, arrival window, prompts, steps, heads, pages, k
LOAD = (128, 32, 64, 1024, 4096, 16, 64, SEED, 32, 128, 16, 8)
_TINY = (3, 2, 1, 5, 9, 1, 2, SEED, 2, 16, 4, 1)
ASKED = {"loop": 200_000, "overall": 10_000}  # tokens/s of an H200: sparse, prompts written before


@dataclass(frozen=True)
class Mode:
    """How the load is run; prompts and tokens are always made on the device."""

    name: str
    preadmit: int
    benchmark: int  # 0 sparse, 1 dense
    timing: int = 2  # nothing is measured inside the loop; 1: stages by events
    serial: bool = False

    def arguments(self) -> list[object]:
        """Return the modes of `dsd_continuous_bench`: synthetic, lazy release, no outputs."""
        modes = [2, self.preadmit, 0, 1, 1, 2, self.timing, self.benchmark]
        return [*modes, "--backend", "gpu", "--serial" if self.serial else "--no-serial"]


# What says most comes first: a step may be stopped before its last mode.
MODES = (
    Mode("sparse, prompts before", 1, 0), Mode("sparse, prompts in the loop", 0, 0),
    Mode("dense, prompts before", 1, 1), Mode("dense, prompts in the loop", 0, 1),
    Mode("sparse, stages", 1, 0, timing=1, serial=True),
)  # fmt: skip


def serving(run: Run) -> None:
    """Run `dsd_continuous_bench` on the device with all its fast options."""
    rows, bad = [], []
    for mode in (MODES[0], *MODES[-2:]) if run.tiny else MODES:
        record = _bench(run, mode)
        results = record["results"] if record else {}
        if results.get("serving", {}).get("completed") != (_TINY if run.tiny else LOAD)[0]:
            bad.append(mode.name)
        if "total_generated_tokens" in results:
            rows.append(_row(mode, results))
        first = rows[0] if rows else {"mode": "nothing", "loop": 0.0, "overall": 0.0}
        figure = f"{first['loop']:,.0f} tok/s in the loop, {first['overall']:,.0f} including "
        figure += f"admission ({first['mode']}; asked {ASKED['loop']:,} and {ASKED['overall']:,})"
        figure += f"; failed: {' | '.join(bad)}" if bad else ""
        run.tell(figure, "failed" if bad else "ok", modes=rows, asked=ASKED)
    print(tabulate(rows, headers="keys", floatfmt=".3f"), flush=True)


def _row(mode: Mode, results: dict) -> dict:
    """Return what a record says in short; the host's share where the kernels were timed."""
    label = "continuous_sparse" if mode.benchmark == 0 else "continuous_dense_gpu"
    run = {name: results[f"{label}_{name}"] for name in (
        "tokens_per_second", "tokens_per_second_including_admission", "total_ms",
        "prompt_preadmit_ms", "run_batch_wall_ms", "steps", "avg_active_batch_size",
        "avg_kernel_ms", "kv_bytes_read_per_step",
    )}  # fmt: skip
    kernel_ms = run["avg_kernel_ms"]
    return {
        "mode": mode.name,
        "loop": run["tokens_per_second"],
        "overall": run["tokens_per_second_including_admission"],
        "loop_ms": run["total_ms"],
        "prompts_ms": run["prompt_preadmit_ms"],
        "decode_ms": run["run_batch_wall_ms"],
        "steps": run["steps"],
        "batch": run["avg_active_batch_size"],
        "kernel_ms": kernel_ms,
        "host_share": None if kernel_ms is None else 1 - kernel_ms * run["steps"] / run["total_ms"],
        "speedup": results.get("continuous_vs_serial_speedup"),
    }


def _bench(run: Run, mode: Mode) -> dict | None:
    """Return the record of a run; None without."""
    load = _TINY if run.tiny else LOAD
    return run.record("dsd_continuous_bench", [*load, *mode.arguments()], "serving.jsonl")
