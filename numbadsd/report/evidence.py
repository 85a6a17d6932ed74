"""What stands behind the page: the environments, and the records themselves."""

import json
from collections.abc import Iterable, Iterator

from numbadsd.bench.sweep.records import POINTS_FILE, PointResult
from numbadsd.report.collect import Results, Sweep
from numbadsd.report.markup import element, folded, join, pairs, paragraph, text
from numbadsd.report.reading import find

MAX_RAW_BYTES = 3_000_000  # of raw records in a page that is to open quickly
_VARYING = ("timestamp", "commit", "dirty")  # told beside an environment, not part of it
_LABELS = {
    "cpu": "processor",
    "num_cores": "cores",
    "memory_bytes": "memory",
    "num_threads": "threads",
    "threading_layer": "threading layer",
    "gpu": "GPU",
    "os": "system",
    "numba_cuda": "numba-cuda",
}


def environment_tables(results: Results) -> str:
    """Return a table for each environment in which something was measured."""
    groups: dict[str, list[tuple[str, dict]]] = {}
    for source, environment in _environments(results):
        same = {name: value for name, value in environment.items() if name not in _VARYING}
        groups.setdefault(json.dumps(same, sort_keys=True), []).append((source, environment))
    tables = [
        _environment_table(f"Environment {n} of {len(groups)}", members)
        for n, members in enumerate(groups.values(), 1)
    ]
    return element("div", "".join(tables), class_="pair-grid") if tables else ""


def _environments(results: Results) -> Iterator[tuple[str, dict]]:
    """Yield (who measured in it, environment) of every record."""
    for sweep in results.sweeps:
        for point in sweep.points:
            environment = find(point.record, "environment")
            if isinstance(environment, dict):
                yield f"sweep {sweep.place}", environment
    for other in results.others:
        environment = find(other.record, "environment")
        if isinstance(environment, dict):
            yield f"{other.bench} {other.device}".strip(), environment


def _environment_table(caption: str, members: list[tuple[str, dict]]) -> str:
    first = members[0][1]
    rows = [
        (_LABELS.get(name, name.replace("_", " ")), _value(name, value))
        for name, value in first.items()
        if name not in _VARYING and value is not None
    ]
    days = sorted({str(environment.get("timestamp"))[:10] for _, environment in members})
    commits = dict.fromkeys(
        f"{str(environment['commit'])[:7]}{' (dirty)' if environment.get('dirty') else ''}"
        for _, environment in members
        if environment.get("commit")
    )
    sources: dict[str, int] = {}
    for source, _ in members:
        sources[source] = sources.get(source, 0) + 1
    rows += [
        ("commits", ", ".join(commits) or "unknown"),
        ("measured", days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"),
        ("records", join([f"{count} of {source}" for source, count in sources.items()])),
    ]
    return pairs(caption, rows)


def _value(name: str, value) -> str:
    is_size = name == "memory_bytes" and isinstance(value, (int, float))
    return f"{value / 2**30:.1f} GiB" if is_size else str(value)


def without_samples(value):
    """Return a record without its samples: their statistics stay."""
    if isinstance(value, dict):
        return {name: without_samples(v) for name, v in value.items() if name != "samples"}
    if isinstance(value, list):
        return [without_samples(item) for item in value]
    return value


def raw_records(sweeps: Iterable[Sweep]) -> str:
    """Return the records of all points, folded; those over `MAX_RAW_BYTES` in all are left out."""
    left, parts = MAX_RAW_BYTES, []
    for sweep in sweeps:
        for name, points in sweep.experiments.items():
            shown = []
            for n, point in enumerate(points, 1):
                record = _folded_record(n, point)
                left -= len(record.encode())
                if left >= 0:
                    shown.append(record)
            missing = len(points) - len(shown)
            place = f"{'' if sweep.place == '.' else sweep.place + '/'}{name}/{POINTS_FILE}"
            note = f"{place}, with all samples; printed output is in stdout beside it."
            if missing:
                note += f" {missing} records are left out here, to keep this page small."
            content = paragraph(note, "note") + "".join(shown)
            parts.append(folded(f"{name}, {len(points)} points", content))
    return "".join(parts)


def _folded_record(line: int, point: PointResult) -> str:
    shown = {name: value for name, value in vars(point).items() if name != "record"}
    shown["record"] = without_samples(point.record)
    pretty = element("pre", text(json.dumps(shown, indent=1, ensure_ascii=False)), tabindex="0")
    return folded(f"line {line}: {point.variant}", pretty)
