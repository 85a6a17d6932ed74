"""The report of `dsd_topk_bench`: one table, and how to read it."""

from tabulate import tabulate

from numbadsd.bench.verdict import SIMULATOR

_WHAT = {
    "numpy": "argpartition, a row at a time",
    "torch": "topk, all rows at once, the mix masked with -inf beforehand",
    "cupy": "argpartition, a row at a time",
}
_GUIDE = """\
Floors: this call over one read of the rows' own scores at the bandwidth above; 1 is the limit.
numpy, torch, cupy: their time on the same scores, and how many calls of ours fit in it."""


def render_topk(record: dict) -> str:
    """Return a `dsd_topk_bench` record as text."""
    sections = (
        ("Top-k Benchmark", _configuration(record)),
        ("Time per Call", "\n".join([_table(record["cases"]), *_remarks(record["cases"])])),
        ("Reading Guide", _GUIDE),
    )
    return "\n\n".join(f"== {title} ==\n{text}" for title, text in sections)


def _configuration(record: dict) -> str:
    config, env = record["config"], record["environment"]
    device = record["cases"][0]["device"]
    by = "ascending position" if config["order"] == "position" else "descending score"
    machine = f"{env['cpu']}, {env['num_threads']} threads ({env['threading_layer']})"
    if device == "gpu":
        machine = env["gpu"] + (": its times mean nothing" if env["gpu"] == SIMULATOR else "")
    rows = (
        ("rows", f"{config['rows']} of {config['length']} {config['dtype']}; "
         "mix: 9 of 10 rows 1/32 as long"),
        ("selection", f"k {config['k']}, by {by}, ties to the lower position"),
        ("samples", f"{config['iterations']} after {config['warmup']} warm-up, cold caches, "
         f"seed {config['seed']}"),
        ("machine", machine),
        ("memory", _bandwidth(record["bandwidth"], device)),
    )  # fmt: skip
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


def _bandwidth(measured: dict, device: str) -> str:
    """Return the bandwidth that floors are made of, and how it was measured."""
    gbps = measured["copy_gbps" if device == "gpu" else "read_gbps"]
    what = "copies, read and written," if device == "gpu" else "reads"
    return f"{what} {gbps['median']:.1f} GB/s (median of {len(gbps['samples'])}, between samples)"


def _table(cases: list[dict]) -> str:
    names = [name for name in cases[0]["comparators"] if _ran(cases, name)]
    is_short = all(case["ms"]["median"] < 1 for case in cases)
    unit, scale, digits, more = ("us", 1e3, ".1f", ".2f") if is_short else ("ms", 1, ".3f", ".4f")
    rows = [
        (
            case["lengths"],
            case["values"],
            *(case["ms"][key] * scale for key in ("median", "p95", "min")),
            round(case["rows_per_s"]),
            case["gbps"],
            case["floor_ms"] * scale,
            case["floors"],
            *(_cell(case["comparators"][name], scale, digits) for name in names),
        )
        for case in cases
    ]
    headers = f"lengths values Call({unit}) p95 min Rows/s GB/s Floor({unit}) Floors".split()
    headers += [f"{name}({unit})" for name in names]
    formats = ["", "", digits, digits, digits, "", ".2f", more, ".2f", *[""] * len(names)]
    texts = [0, 1, *range(len(headers) - len(names), len(headers))]
    align = ["left", "left", *["right"] * (len(headers) - 2)]
    return tabulate(rows, headers, floatfmt=formats, disable_numparse=texts, colalign=align)


def _ran(cases: list[dict], name: str) -> bool:
    return any(case["comparators"][name]["available"] for case in cases)


def _cell(other: dict, scale: float, digits: str) -> str:
    """Return the time of another top-k, and how many calls of ours fit in it."""
    if not other["available"]:
        return "-"
    if not other["agrees"]:
        return "DIFFERS"
    return f"{other['ms']['median'] * scale:{digits}} {other['speedup']:6.2f}x"


def _remarks(cases: list[dict]):
    """Yield what the columns of the others mean, and why some have no figures."""
    for name, first in cases[0]["comparators"].items():
        others = {f"{c['lengths']}/{c['values']}": c["comparators"][name] for c in cases}
        if _ran(cases, name):
            yield f"{name}: {_WHAT.get(name, 'another top-k')}"
        elif len({other["reason"] for other in others.values()}) == 1:
            yield f"{name}: {first['reason']}"
            continue
        for case, other in others.items():
            if not other["available"]:
                yield f"{name} failed at {case}: {other['reason']}"
        wrong = [case for case, other in others.items() if other["agrees"] is False]
        if wrong:
            yield f"{name} DIFFERS at {', '.join(wrong)}: it selects other scores than we do"
