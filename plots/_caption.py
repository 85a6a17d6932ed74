"""What stands below a figure: configuration, machine, versions, and what is not in it."""

from collections.abc import Sequence

from numbadsd.bench.sweep.records import PointResult
from numbadsd.plots._data import PATHS, run_path
from numbadsd.plots._style import PATH_LOOKS

_STATUS_WORDS = {"failed": "failed", "timed_out": "timed out", "killed": "were killed"}
_NAMED_POINTS = 2


def caption_of(
    points: Sequence[PointResult], shown: Sequence[PointResult], notes: Sequence[str] = ()
) -> list[str]:
    """Return the paragraphs of a caption.

    Parameters
    ----------
    points : sequence of PointResult
        All points of the experiment, also those that failed.
    shown : sequence of PointResult
        Those that the figure shows, all of one command.
    notes : sequence of str
        What the figure adds, before the rest.
    """
    describe = _decode if shown[0].command == "dsd_bench" else _continuous
    paragraphs = [" ".join(notes), describe(shown), _machine(shown)]
    paragraphs.append(" ".join([*_unavailable(shown), *_not_measured(points, shown)]))
    return [text for text in paragraphs if text]


def _distinct(values) -> list:
    return list(dict.fromkeys(value for value in values if value is not None))


def _span(values) -> str:
    """Return numbers as a reader says them: all of a few, else the ends."""
    numbers = sorted(set(values))
    if len(numbers) > 4:
        return f"{numbers[0]:,} to {numbers[-1]:,}"
    return ", ".join(f"{number:,}" for number in numbers)


def _range(numbers) -> str:
    """Return the ends of what is drawn at random between them."""
    ends = sorted({min(numbers), max(numbers)})
    return " to ".join(f"{end:,}" for end in ends)


def _model(shown: Sequence[PointResult]) -> list[str]:
    models = [point.record["config"]["model"] for point in shown]
    span = lambda name: _span(model[name] for model in models)  # noqa: E731
    words = lambda name: " and ".join(_distinct(model[name] for model in models))  # noqa: E731
    selection = f"selection by {words('summary')}, shared per {words('share').replace('_', ' ')}"
    if any(model["num_sink_pages"] or model["num_recent_pages"] for model in models):
        selection += f", {span('num_sink_pages')} sink + {span('num_recent_pages')} recent forced"
    return [
        f"{span('num_heads')} query and {span('num_kv_heads')} kv heads of {span('head_dim')}",
        f"pages of {span('page_size')} tokens, k {span('top_k_pages')}, {words('kv_dtype')}",
        selection,
    ]


def _decode(shown: Sequence[PointResult]) -> str:
    records = [point.record for point in shown]
    configs = [record["config"] for record in records]
    sources = _distinct(
        f"data of {str(c['kv_file']).replace(chr(92), '/').rsplit('/', 1)[-1]}"
        if c.get("kv_file")
        else f"{c['data']} data"
        for c in configs
    )
    ends = [r["data"][f"{end}_context_tokens"] for r in records for end in ("min", "max")]
    kinds = _distinct({True: "fused", False: "staged"}[c["fused"]] for c in configs)
    samples = [len(e["total_ms"]["samples"]) for r in records for e in _entries(r).values()]
    parts = [
        *_model(shown),
        f"batch {_span(r['data']['requests'] for r in records)}",
        f"context {_span(ends)} tokens",
        f"{' and '.join(sources)}, seed {_span(c['seed'] for c in configs)}",
        " and ".join(kinds),
        f"{_span(samples)} samples after {_span(c['warmup'] for c in configs)} warm-up",
    ]
    return f"Configuration: {'; '.join(parts)}."


def _entries(record: dict) -> dict[str, dict]:
    """Return what was measured of each path that ran."""
    entries = record["paths"]
    return {name: entries[name] for name in PATHS if entries.get(name, {}).get("available")}


def _continuous(shown: Sequence[PointResult]) -> str:
    configs = [point.record["config"] for point in shown]
    span = lambda name: _span(c[name] for c in configs)  # noqa: E731
    words = lambda name: " and ".join(_distinct(str(c[name]) for c in configs))  # noqa: E731
    between = lambda kind: _range(  # noqa: E731
        [c[f"{end}_{kind}"] for c in configs for end in ("min", "max")]
    )
    workloads = " and ".join(_distinct(point.record["workload"]["name"] for point in shown))
    parts = [
        f"{span('num_requests')} requests ({workloads})",
        f"{span('max_active_requests')} active at most",
        f"decoded by {' and '.join(_distinct(PATH_LOOKS[run_path(p)].label for p in shown))}",
        f"prompts of {between('prompt_tokens')} tokens, {between('decode_steps')} new ones each",
        f"arrival window {span('arrival_window')} steps",
        *_model(shown),
        f"prompts {words('admission_mode')}, prefill {words('prefill')}",
        f"clock {words('clock')}, seed {span('seed')}",
    ]
    return f"Configuration: {'; '.join(parts)}."


def _machine(shown: Sequence[PointResult]) -> str:
    """Return device, versions and date."""
    places = [point.record["environment"] for point in shown]
    each = lambda name: _distinct(place.get(name) for place in places)  # noqa: E731
    cpus = [cpu.replace("(R)", "").replace("(TM)", "") for cpu in each("cpu")]
    devices = f"{' and '.join(cpus)}, {_span(each('num_threads'))} threads"
    if each("gpu"):
        devices += f"; {' and '.join(each('gpu'))}, driver {' and '.join(map(str, each('driver')))}"
    commits = _distinct(
        f"{place['commit'][:7]}{', dirty' if place.get('dirty') else ''}"
        for place in places
        if place.get("commit")
    )
    package = f"numbadsd {' and '.join(each('numbadsd'))}"
    versions = [f"{package} (commit {', '.join(commits)})" if commits else package]
    libraries = {"numba": "numba", "numba_cuda": "numba-cuda", "numpy": "NumPy", "python": "Python"}
    for name, title in libraries.items():
        if name != "numba_cuda" or each("gpu"):
            versions += [f"{title} {' and '.join(each(name))}"] if each(name) else []
    torch = _distinct(p.record.get("paths", {}).get("torch_sdpa", {}).get("version") for p in shown)
    versions += [f"torch {version}" for version in torch]
    days = sorted({str(time)[:10] for time in each("timestamp")})
    dates = f" {' to '.join(dict.fromkeys((days[0], days[-1])))}" if days else ""
    quick = " in a quick run" if any(point.quick for point in shown) else ""
    return f"Measured{dates}{quick} on {devices}; {', '.join(versions)}."


def _unavailable(shown: Sequence[PointResult]) -> list[str]:
    """Return a sentence for each reason why paths never ran, the remedy left out."""
    if shown[0].command != "dsd_bench":
        return []
    reasons: dict[str, list[str]] = {}
    for path, look in PATH_LOOKS.items():
        entries = [e for p in shown if (e := p.record["paths"].get(path)) is not None]
        if entries and not any(entry["available"] for entry in entries):
            reason = str(entries[0].get("reason") or "no reason recorded").split(";")[0]
            reasons.setdefault(reason, []).append(look.label)
    return [f"Not available: {', '.join(names)} ({reason})." for reason, names in reasons.items()]


def _not_measured(points: Sequence[PointResult], shown: Sequence[PointResult]) -> list[str]:
    """Return a sentence for each way in which points were lost: how many, and which."""
    drawn = {id(point) for point in shown}
    lost: dict[str, list[str]] = {}
    for point in points:
        if not point.ok:
            words = _STATUS_WORDS.get(point.status, point.status)
            lost.setdefault(words, []).append(point.variant)
        elif id(point) not in drawn:
            lost.setdefault("are not in this figure", []).append(point.variant)
    sentences = []
    for words, names in lost.items():
        more = len(names) - _NAMED_POINTS
        shown_names = [*names[:_NAMED_POINTS], *([f"{more} more"] if more > 0 else [])]
        count = f"{len(names)} of {len(points)} points {words}"
        sentences.append(f"{count}: {'; '.join(shown_names)}.")
    return sentences
