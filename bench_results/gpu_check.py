"""Everything that needs an NVIDIA GPU, in one command and a few minutes.

    python -m pip install --no-build-isolation --no-deps -e .
    python bench_results/gpu_check.py [--out FOLDER] [--commit TEXT] [--only verify | measure]

All steps want 15 minutes or more; `verify` (is it right?) and `measure` (is it fast?) fit in eight
each. In less time every step gets its share.

Each step (`--list`) is a process of its own with a time limit. One that fails or is late stops
none of the others, each leaves time for those after it, and what no longer fits is named. The
folder holds, at most:

    log.txt        everything that the steps printed
    summary.json   status, seconds, key figure and numbers of each step, renewed after each one
    decode.jsonl   the records of `dsd_bench`
    torch.jsonl    `versus_torch_gpu.py`
    topk.jsonl     the records of `dsd_topk_bench`
    serving.jsonl  the records of `dsd_continuous_bench`
    topk_tuning.json  an entry for numbadsd/kernels/cuda/topk_tuning.json

It needs numba, numba-cuda with NVVM and nvJitLink, cuda-bindings, numpy, ml_dtypes, click,
tabulate, tqdm, psutil, and pytest with hypothesis for the tests. Not needed: platformdirs (a
stand-in takes its place where it is missing), greenlet (the simulator's), pyelftools (the test file
that imports it is left out), plugins of pytest (switched off, but for xdist). What torch, ncu and
compute-sanitizer would do is skipped where they are missing. Ends with status 1 when a step failed
or was late.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from time import monotonic

import click
from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]
STEPS_FILE = Path(__file__).resolve().with_name("_gpu_steps.py")
RESULT = "RESULT "  # a step's line with its status, key figure and numbers; the last one counts
TOOLKIT = Path("/usr/local/cuda")
OWN_S = 3.0  # kept back: to end a late step, and for the summary
BAD = ("failed", "late")
_PLATFORMDIRS = '''"""Stands in for platformdirs, which is not installed here."""
from os.path import expanduser, join


def user_cache_dir(appname, appauthor=None):
    return join(expanduser("~"), ".cache", appname)
'''


@dataclass(frozen=True)
class Step:
    """A step: `limit_s` it may take at most, `least_s` is kept for it by the steps before it."""

    name: str
    limit_s: float
    least_s: float
    text: str
    hidden: bool = False


STEPS = (
    Step("versions", 40, 8, "packages, compilers, driver, device, clocks"),
    Step("tests", 240, 90, "pytest -m gpu, in several processes"),
    Step("kernels", 90, 30, "compile and load each kernel: seconds, registers, local memory"),
    Step("reference", 75, 30, "dsd_bench at the reference's contexts, 32 heads x 128, float32"),
    Step("gqa", 110, 40, "dsd_bench at 32/8 heads x 128, float16, up to 131072 tokens x 32"),
    Step("accuracy", 90, 30, "dsd_bench with all four paths on structured data"),
    Step("torch", 120, 40, "torch's attention beside dense_gpu, same shapes, same process"),
    Step("ways", 40, 20, "attention by multiply-adds and by tensor cores: which is faster where"),
    Step("host", 40, 15, "the host's share of a step"),
    Step("topk", 60, 25, "dsd_topk_bench at decode's rows and at long ones, torch.topk beside"),
    Step("serving", 90, 40, "dsd_continuous_bench at the reference's load, all fast options"),
    Step("topk-tune", 30, 10, "which rows a warp, a block or several should select"),
    Step("sanitizer", 150, 40, "compute-sanitizer: memcheck and racecheck of a small decode"),
    Step("profile", 60, 25, "ncu: DRAM throughput and occupancy of each kernel of a step"),
    Step("shapes", 240, 60, "kernel tests of every shape, many to compile: with the time left"),
    Step("sanitizer-target", 60, 1, "what compute-sanitizer runs", hidden=True),
    Step("profile-target", 60, 1, "what ncu runs", hidden=True),
)


VERIFY = ("versions", "tests", "sanitizer", "shapes")
GROUPS = {
    "verify": VERIFY,
    "measure": tuple(s.name for s in STEPS if not s.hidden and s.name not in VERIFY[1:]),
}


@dataclass
class Outcome:
    """How a step ended; status is ok, failed, late or skipped."""

    step: str
    status: str
    seconds: float = 0.0
    figure: str = ""
    data: dict = field(default_factory=dict)


def chosen_steps(ctx, param, value: str | None) -> tuple[Step, ...]:
    """Return the steps that are named, in their order, or all that are not hidden."""
    if value is None:
        return tuple(step for step in STEPS if not step.hidden)
    asked = [name.strip() for name in value.split(",")]
    names = [name for one in asked for name in GROUPS.get(one, (one,))]
    known = [*GROUPS, *(step.name for step in STEPS)]
    for name in names:
        if name not in known:
            raise click.BadParameter(f"got {name!r}, want some of {', '.join(known)}")
    return tuple(step for step in STEPS if step.name in names)


def list_steps(ctx, param, value: bool) -> None:
    """Print the steps and end."""
    if value:
        rows = [(s.name, f"{s.limit_s:.0f} s", s.text) for s in STEPS if not s.hidden]
        click.echo(tabulate(rows, ["step", "at most", ""], tablefmt="plain"))
        ctx.exit()


def first_line(*command: str) -> str | None:
    """Return the first line that a command prints, None when it cannot run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=ROOT)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.split("\n") if done.returncode == 0 else [""]
    return lines[0].strip() or None


def default_folder(commit: str) -> Path:
    """Return bench_results/gpu_check/<device>/<date>_<commit>."""
    if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
        device = "simulator"
    else:
        device = first_line("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "no_gpu"
    device = re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_")
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    return ROOT / "bench_results" / "gpu_check" / device / f"{date}_{commit}"


def step_environment(scratch: Path) -> dict[str, str]:
    """Return the environment of the steps, with a stand-in for what may be missing."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    if not {"CUDA_HOME", "CUDA_PATH"} & set(os.environ) and (TOOLKIT / "nvvm").is_dir():
        environment["CUDA_HOME"] = str(TOOLKIT)  # where the compiler is, unless pip installed one
    if find_spec("platformdirs") is None:
        (scratch / "platformdirs.py").write_text(_PLATFORMDIRS)
        inherited = os.environ.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(scratch), inherited)))
    return environment


def time_for(step: Step, later: tuple[Step, ...], left_s: float) -> float:
    """Return the seconds that a step gets, 0 when it no longer fits."""
    if left_s < step.least_s:
        return 0.0
    spare_s = left_s - sum(other.least_s for other in later)
    return min(left_s, max(step.least_s, min(step.limit_s, spare_s)))


def end_group(process: subprocess.Popen) -> None:
    """End a step and whatever it started: they are one process group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # all of them have ended
        pass
    process.wait()


def run_step(step: Step, seconds: float, arguments: list[str], out: Path, env: dict) -> Outcome:
    """Run a step in a process of its own, its output going to the log."""
    log = out / "log.txt"
    command = [sys.executable, str(STEPS_FILE), step.name, "--seconds", f"{seconds:.1f}"]
    start = monotonic()
    with log.open("ab") as file:
        file.write(f"\n==== {step.name}, at most {seconds:.0f} s\n".encode())
        file.flush()
        begin = file.tell()
        process = subprocess.Popen(
            [*command, *arguments], stdin=subprocess.DEVNULL, stdout=file,
            stderr=subprocess.STDOUT, env=env, cwd=ROOT, start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            end_group(process)
    with log.open("rb") as file:
        file.seek(begin)
        output = file.read().decode(errors="replace")
    return outcome_of(step, status, output, monotonic() - start)


def outcome_of(step: Step, status: int | None, output: str, seconds: float) -> Outcome:
    """Return how a step ended, by its last result and by how its process ended (None: late)."""
    lines = output.splitlines()
    results = [line[len(RESULT) :] for line in lines if line.startswith(RESULT)]
    results = [text for text in results if text.endswith("}}")]  # whole, though it was stopped
    last = json.loads(results[-1]) if results else {"status": "ok", "figure": "", "data": {}}
    outcome = Outcome(step.name, last["status"], seconds, last["figure"], last["data"])
    if status is None:
        outcome.status = "late"
        outcome.figure = f"stopped after {seconds:.0f} s; {outcome.figure}".rstrip("; ")
    elif status != 0 or not results:
        outcome.status = "failed"
        said = next((line for line in reversed(lines) if line.strip()), "nothing")
        outcome.figure = f"status {status}: {said.strip()[:160]}"
    return outcome


def write_summary(out: Path, head: dict, outcomes: list[Outcome]) -> None:
    """Write what is known so far: a machine that goes away must not take it along."""
    summary = {**head, "steps": [asdict(outcome) for outcome in outcomes]}
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")


def run_all(steps: tuple[Step, ...], minutes: float, arguments: list[str], out: Path, head: dict):
    """Run the steps one after another; yield each outcome."""
    deadline = monotonic() + 60 * minutes - OWN_S
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as scratch:
        env = step_environment(Path(scratch))
        for i, step in enumerate(steps):
            left_s = deadline - monotonic()
            seconds = time_for(step, steps[i + 1 :], left_s)
            if seconds:
                outcome = run_step(step, seconds, arguments, out, env)
            else:
                figure = f"no time: {max(0.0, left_s):.0f} s left of {minutes:g} minutes"
                outcome = Outcome(step.name, "skipped", figure=figure)
            outcomes.append(outcome)
            write_summary(out, head, outcomes)
            yield outcome


def table(outcomes: list[Outcome]) -> str:
    """Return the outcomes as one reads them."""
    width = max(40, shutil.get_terminal_size((280, 24)).columns - 30)
    rows = [(o.step, o.status, f"{o.seconds:.1f}", o.figure[:width]) for o in outcomes]
    return tabulate(rows, ["step", "status", "seconds", "key figure"], disable_numparse=True)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Where to write.")
@click.option("--commit", help="Commit of this tree, where git does not know it.")
@click.option("--minutes", type=click.FloatRange(min=0), default=8.0, show_default=True)
@click.option(
    "--only",
    "steps",
    callback=chosen_steps,
    metavar="STEP[,STEP]",
    help="Some steps, verify or measure.",
)
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=list_steps,
              help="Show the steps and end.")  # fmt: skip
@click.option("--tiny", is_flag=True, hidden=True, help="Tiny shapes, as a simulator can do.")
def main(out: Path | None, commit: str | None, minutes: float, steps, tiny: bool) -> None:
    """Check numbadsd on the GPU of this machine and write what was found."""
    commit = commit or first_line("git", "rev-parse", "--short", "HEAD") or "unknown"
    out = (out or default_folder(commit)).resolve()
    out.mkdir(parents=True, exist_ok=True)
    head = {
        "command": "gpu_check",
        "commit": commit,
        "timestamp": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "minutes": minutes,
        "tiny": tiny,
    }
    arguments = ["--out", str(out), "--commit", commit, *(["--tiny"] if tiny else [])]
    outcomes = []
    for outcome in run_all(steps, minutes, arguments, out, head):
        outcomes.append(outcome)
        click.echo(f"{outcome.step}: {outcome.status}, {outcome.seconds:.1f} s; {outcome.figure}")
    summary = table(outcomes)
    with (out / "log.txt").open("a") as log:
        log.write(f"\n{summary}\n")
    click.echo(f"\n{summary}\n\n{out}")
    if any(outcome.status in BAD for outcome in outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
