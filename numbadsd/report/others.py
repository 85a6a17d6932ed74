"""Records of single runs: what each says in one line."""

from collections.abc import Callable, Sequence

from numbadsd.report.collect import OtherRecord
from numbadsd.report.markup import Column, number, paragraph, table
from numbadsd.report.reading import find, find_number, path_figures, run_labels, run_number

_PATHS = ("dense_cpu", "sparse_cpu", "dense_gpu", "sparse_gpu")


def others_table(records: Sequence[OtherRecord]) -> str:
    """Return one sortable table of the records that are no points of a sweep."""
    columns = [
        Column("bench"), Column("device"), Column("date"), Column("commit"), Column("tree"),
        Column("line", decimals=0), Column("key figure", wraps=True),
        Column("command", wraps=True),
    ]  # fmt: skip
    note = "One line of <bench>/<device>/<date>_<commit>.jsonl each, as --json writes it."
    rows = [_row(other) for other in records]
    return paragraph(note, "note") + table("Records of single runs", columns, rows)


def _row(other: OtherRecord) -> list[str | None]:
    record = other.record
    environment = find(record, "environment") or record
    commit, dirty = find(environment, "commit"), find(environment, "dirty")
    return [
        other.bench or "-",
        other.device or None,
        str(find(environment, "timestamp") or "")[:10] or None,
        str(commit)[:7] if commit else None,
        {"True": "dirty", "False": "clean"}.get(str(dirty)),
        other.line,
        key_figure(record),
        command_of(record),
    ]


def command_of(record: dict) -> str | None:
    """Return the command of a record, without where it put the record; else its case."""
    command = find(record, "command")
    if isinstance(command, str) and "step" not in record:
        words = command.split(" ")
        if "--json" in words:
            i = words.index("--json")
            del words[i : i + 2]
        return " ".join(words)
    case = record.get("case")
    if isinstance(case, dict):
        return ", ".join(f"{name} {value}" for name, value in case.items())
    return None if case is None and command is None else str(case or command)


def key_figure(record: dict) -> str | None:
    """Return what a record says in a few words, by what is in it; None when it says nothing."""
    for has, say in _SAYINGS.items():
        if has in record:
            try:
                return say(record)
            except (LookupError, TypeError, AttributeError, ValueError):  # another kind of record
                return None
    return None


def _decode(record: dict) -> str:
    times = {path: figures for path in _PATHS if (figures := path_figures(record, path))}
    speedup = find_number(record, "verdict", "speedup")
    said = ", ".join(f"{path} {figures.median_ms:,.3f} ms" for path, figures in times.items())
    return said if speedup is None else f"{speedup:.2f}×: {said}"


def _topk(record: dict) -> str:
    case = record["cases"][0]
    config = record["config"]
    said = f"k {config['k']} of {config['rows']:,} × {config['length']:,}"
    said += f", {case['lengths']} {case['values']}: {case['ms']['median']:.3f} ms"
    rival = find_number(case, "comparators", "numpy", "speedup")
    return said if rival is None else f"{said}, {rival:.1f}× numpy"


def _continuous(record: dict) -> str:
    said = []
    for label in run_labels(record):
        rate = run_number(record, label, "tokens_per_second")
        said.append(f"{label.removeprefix('continuous_')} {number(rate)} tokens/s in the loop")
    speedup = find_number(record, "results", "continuous_vs_serial_speedup")
    return "; ".join([*said, *([f"{speedup:.2f}× serial"] if speedup is not None else [])])


def _kernels(record: dict) -> str:
    kernels = record["kernels"]
    faults = sum(bool(kernel["faults"]) for kernel in kernels)
    most = max((kernel["registers"] for kernel in kernels), default=0)
    return f"{len(kernels)} kernels for {record['arch']}, at most {most} registers, {faults} faulty"


def _torch(record: dict) -> str:
    dense, torch = (record[name]["median"] for name in ("dense_cpu_ms", "torch_sdpa_ms"))
    ratio = record["dense_over_torch"]
    return f"dense_cpu {dense:.3f} ms, torch {torch:.3f} ms: {ratio:.2f}× faster"


def _torch_gpu(record: dict) -> str:
    return f"group {record['group']}, fastest {record['fastest']}"


def _step(record: dict) -> str:
    step = record["step"]
    return f"{step['step']} {step['status']}: {step['figure']}"


# Told apart by what only they have; the first that fits says it.
_SAYINGS: dict[str, Callable[[dict], str]] = {
    "step": _step,
    "paths": _decode,
    "cases": _topk,
    "kernels": _kernels,
    "torch_sdpa_ms": _torch,
    "fastest": _torch_gpu,
    "results": _continuous,
}
