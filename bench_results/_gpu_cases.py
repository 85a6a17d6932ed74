"""What `gpu_check.py` measures, and what its steps share: one run of a step."""

import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic

from gpu_check import RESULT

from numbadsd.bench.data import DecodeData, fill_cache, lives_on_device, make_workload
from numbadsd.config import DecodeBenchConfig

SEED = 7
GPU_PATHS = ("dense_gpu", "sparse_gpu")
ALL_PATHS = ("dense_cpu", "sparse_cpu", *GPU_PATHS)


@dataclass(frozen=True)
class Case:
    """A batch to decode: `batch` requests of `context` tokens."""

    top_k: int
    batch: int
    context: int
    num_kv_heads: int = 32
    kv_dtype: str = "float32"
    share: str = "request"
    data: str = "uniform"
    paths: tuple[str, ...] = GPU_PATHS
    num_heads: int = 32
    head_dim: int = 128
    page_size: int = 16
    iterations: int = 20
    warmup: int = 3

    @property
    def name(self) -> str:
        """The case in words."""
        heads = f"{self.num_heads}/{self.num_kv_heads} heads of {self.head_dim}"
        return f"{self.context} x {self.batch}, {heads}, {self.kv_dtype}"

    @property
    def config(self) -> DecodeBenchConfig:
        """The same as a configuration."""
        return DecodeBenchConfig(
            self.top_k, self.batch, self.context, self.context, SEED, self.iterations, self.warmup,
            self.num_heads, self.head_dim, self.page_size, num_kv_heads=self.num_kv_heads,
            kv_dtype=self.kv_dtype, share=self.share, data=self.data, paths=self.paths,
        )  # fmt: skip

    @property
    def kv_bytes(self) -> int:
        """Bytes of K and V, which a dense step reads once."""
        return self.batch * self.context * self.config.model.token_bytes

    def shrunk(self) -> "Case":
        """Return a case that the simulator decodes in a second."""
        kv_heads = 2 if self.num_kv_heads == self.num_heads else 1
        return replace(
            self, top_k=2, batch=2, context=13, num_heads=2, num_kv_heads=kv_heads, head_dim=16,
            page_size=4, iterations=1, warmup=0,
        )  # fmt: skip

    def arguments(self) -> list[str]:
        """Return the arguments of `dsd_bench`."""
        numbers = (
            self.top_k, self.batch, self.context, self.context, SEED, self.iterations, self.warmup,
            self.num_heads, self.head_dim, self.page_size,
        )  # fmt: skip
        return [
            *map(str, numbers), "--num-kv-heads", str(self.num_kv_heads), "--kv-dtype",
            self.kv_dtype, "--summary", "mean", "--share", self.share, "--data", self.data,
            "--paths", ",".join(self.paths),
        ]  # fmt: skip

    def fill(self) -> DecodeData:
        """Return a filled cache, on the device alone where nothing else needs its tokens."""
        config = self.config
        return fill_cache(config.model, make_workload(config), lives_on_device(config))


def _gqa(context: int, batch: int, **options) -> Case:
    return Case(128, batch, context, 8, "float16", "kv_head", **options)


# What says most comes first: a step may be stopped before its last case.
REFERENCE = [Case(8, 16, context) for context in (4096, 512, 1024, 2048, 8192, 16384)]
GQA = [
    _gqa(context, batch)
    for context, batch in (
        (32768, 32), (32768, 8), (4096, 32), (131072, 8), (131072, 32), (4096, 8), (32768, 1),
        (131072, 1), (4096, 1),
    )
]  # fmt: skip
ACCURACY = [_gqa(4096, 4, data="structured", paths=ALL_PATHS, iterations=5, warmup=1)]
SMALL = replace(_gqa(300, 2), num_heads=4, num_kv_heads=2, head_dim=64, top_k=8)
HOST = [REFERENCE[0], GQA[0]]
PROFILED = GQA[1]


@dataclass
class Run:
    """One run of a step: where it writes, and until when it may run."""

    out: Path
    commit: str
    tiny: bool
    deadline: float

    @property
    def left_s(self) -> float:
        """Seconds until the step is stopped."""
        return max(1.0, self.deadline - monotonic())

    def sized(self, cases: list[Case]) -> list[Case]:
        """Return the cases, or tiny ones."""
        return [case.shrunk() for case in cases] if self.tiny else cases

    def tell(self, figure: str, status: str = "ok", **data) -> None:
        """Say how the step stands; what it says last counts."""
        print(RESULT + json.dumps({"status": status, "figure": figure, "data": data}), flush=True)

    def call(
        self, *command: object, seconds: float | None = None, ask_s: float = 0.0
    ) -> tuple[int | None, str]:
        """Run a command, its output going to the log; return its status (None: late) and output.

        A late one is ended; with `ask_s` it is interrupted so many seconds before that, and may
        say what it knows.
        """
        sys.stdout.flush()
        limit = self.left_s if seconds is None else min(seconds, self.left_s)
        with (self.out / "log.txt").open("ab+") as log:
            begin = log.seek(0, 2)
            with subprocess.Popen(
                [*map(str, command)], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            ) as process:
                status = _wait(process, limit - ask_s)
                if status is None and ask_s:
                    process.send_signal(signal.SIGINT)
                    _wait(process, ask_s)
                process.kill()
            log.seek(begin)
            return status, log.read().decode(errors="replace")

    def bench(self, case: Case) -> dict | None:
        """Return the record of a `dsd_bench` of a case."""
        return self.record("dsd_bench", case.arguments(), "decode.jsonl")

    def record(self, command: str, arguments: list[object], records_file: str) -> dict | None:
        """Return the record of a command, appended to those of this folder; None without."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "record.json"
            # its script may not be on PATH
            run = f"from numbadsd.cli.{command} import main; main()"
            self.call(sys.executable, "-c", run, *arguments, "--json", file)
            if not file.exists():
                return None
            record = json.loads(file.read_text())
        record["environment"]["commit"] = record["environment"]["commit"] or self.commit
        with (self.out / records_file).open("a") as records:
            records.write(json.dumps(record) + "\n")
        return record


def _wait(process: subprocess.Popen, seconds: float) -> int | None:
    """Return the status that a process ends with in time, None when it does not."""
    try:
        return process.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        return None
