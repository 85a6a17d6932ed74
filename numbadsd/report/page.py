"""The page: answer, experiments, other records, environment, raw records."""

import base64
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

import numbadsd
from numbadsd import plots
from numbadsd.bench.sweep.records import PointResult
from numbadsd.files import replacing
from numbadsd.report import answer, tables
from numbadsd.report.collect import Results, Sweep, collect
from numbadsd.report.evidence import environment_tables, raw_records
from numbadsd.report.experiments import points_table, question_of, title_of, varied_in
from numbadsd.report.headline import answers, remarks
from numbadsd.report.markup import bullets, element, join, paragraph, text
from numbadsd.report.others import others_table
from numbadsd.report.reading import environment_of

QUESTION = "When does page-sparse decode beat dense?"
_SECTIONS = (("answer", "The answer"), ("experiments", "Experiments"), ("others", "Single runs"),
             ("environment", "Environment"), ("records", "Raw records"))  # fmt: skip
_PRINTED = "The page on a screen has the raw records as well."


def build_page(folder: Path) -> str:
    """Return the report on a folder of results as one HTML page that needs nothing else.

    Parameters
    ----------
    folder : Path
        ``bench_results``: the newest sweep of every device in it and the records of single runs.
        Or one sweep.

    Raises
    ------
    ValueError
        When there are no results, or when one is broken.
    """
    results = collect(Path(folder))
    parts = {
        "answer": _answers(results.sweeps),
        "experiments": _experiments(results.sweeps),
        "others": others_table(results.others) if results.others else "",
        "environment": environment_tables(results) + paragraph(_PRINTED, "print-only"),
        "records": raw_records(results.sweeps),
    }
    kept = [(name, title) for name, title in _SECTIONS if parts[name]]
    sections = [
        element("section", element("h2", text(title)) + parts[name], id=name)
        for name, title in kept
    ]
    page = Template(_asset("page.html"))
    return page.substitute(
        title=text(f"numbadsd: {QUESTION}"),
        question=text(QUESTION),
        about=_about(results),
        contents=_contents(kept, results.sweeps),
        sections="\n".join(sections),
        style=_asset("page.css"),
        script=_asset("page.js"),
    )


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _about(results: Results) -> str:
    said = [f"Report of numbadsd {numbadsd.__version__}"]
    for sweep in results.sweeps:
        day = str(environment_of(sweep.points).get("timestamp", "no date"))[:10]
        version = sweep.points[0].code_version
        said.append(f"{sweep.device}: {len(sweep.points)} points, {day}, code {version}")
    if results.older:
        said.append(f"not shown, as a newer one replaces it: {join(results.older)}")
    return paragraph("; ".join(said) + ".", "about")


def _contents(sections: Sequence[tuple[str, str]], sweeps: Sequence[Sweep]) -> str:
    """Return the links to what is on the page."""
    names = dict.fromkeys(name for sweep in sweeps for name in sweep.experiments)
    inner = "".join(_link(f"experiment-{name}", _heading(name)) for name in names)
    links = []
    for name, title in sections:
        below = element("ol", inner) if name == "experiments" else ""
        links.append(_link(name, title, below))
    return element("nav", element("ol", "".join(links)), aria_label="Contents")


def _link(target: str, title: str, below: str = "") -> str:
    return element("li", element("a", text(title), href=f"#{target}") + below)


def _heading(name: str) -> str:
    """Return the title of an experiment, after its number if it has one."""
    number, _, _ = name.partition("_")
    return f"{number} {title_of(name)}" if number.isdigit() else title_of(name)


def _answers(sweeps: Sequence[Sweep]) -> str:
    if not sweeps:
        said = "There is no sweep here, so there is no answer yet: run `dsd_sweep run all`."
        return paragraph(said)
    if len(sweeps) == 1:
        return _answer(sweeps[0])
    return "".join(
        element("section", element("h3", text(sweep.device)) + _answer(sweep), class_="experiment")
        for sweep in sweeps
    )


def _answer(sweep: Sweep) -> str:
    rows = answer.crossovers(sweep.experiments)
    found = answers(sweep, rows)
    parts = [paragraph(said, "headline") + paragraph(below) for said, below in found]
    if not parts:
        parts = [paragraph(f"{sweep.device}: no experiment here compares dense with sparse.")]
    for make, values in (
        (tables.crossover_table, rows),
        (tables.floor_table, answer.floors(sweep.experiments)),
        (tables.quality_table, answer.kept(sweep.experiments)),
        (tables.throughput_table, answer.throughputs(sweep.experiments)),
    ):
        if values:
            parts.append(element("div", make(values), class_="block"))
    parts.append(element("h4", "Before you believe it") + bullets(remarks(sweep)))
    return "".join(parts)


def _experiments(sweeps: Sequence[Sweep]) -> str:
    names = dict.fromkeys(name for sweep in sweeps for name in sweep.experiments)
    return "".join(_experiment(name, sweeps) for name in names)


def _experiment(name: str, sweeps: Sequence[Sweep]) -> str:
    """Return question, figure and points of an experiment, device by device."""
    heading = element("h3", text(_heading(name))) + paragraph(question_of(name), "question")
    content = ""
    for sweep in sweeps:
        if name in sweep.experiments:
            points = sweep.experiments[name]
            caption = f"All points: {title_of(name)}"
            if len(sweeps) > 1:
                heading += element("h4", text(sweep.device))
                caption += f", {sweep.device}"
            heading += paragraph(varied_in(points), "question")
            lead = element("div", heading + _figure(name, points), class_="lead")
            content += lead + points_table(name, points, caption)
            heading = ""
    return element("section", content, id=f"experiment-{name}", class_="experiment")


def _figure(name: str, points: Sequence[PointResult]) -> str:
    """Return the figure of an experiment, or why there is none.

    It is an image of its own, so that the identifiers and styles of several do not meet.
    """
    try:
        svg = plots.figure_svg(name, points)
    except ValueError as error:  # not one point was measured, or nobody draws this experiment
        return paragraph(f"No figure: {error}.", "note")
    except KeyError as error:
        return paragraph(f"No figure: a record lacks {error}.", "note")
    source = f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
    series = [one for one in dict.fromkeys(point.series for point in points) if one]
    about = f"Figure of {name}: {question_of(name)} The table below has its numbers"
    alt = f"{about}, for {join(series)}." if series else f"{about}."
    image = f'<img src="{source}" alt="{text(alt)}">'
    return element("figure", element("div", image, class_="plate"))


def write_page(page: str, path: Path) -> None:
    """Write a page; the file is whole, or what it was before."""
    with replacing(path) as file:
        file.write(page)
