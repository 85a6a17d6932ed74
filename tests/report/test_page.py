"""The page: what is on it, that its numbers are those of the records, and that it is alone."""

import html
import re

import pytest

from numbadsd.report import build_page, page
from numbadsd.report.evidence import without_samples
from tests.bench.kernel_records import kernel_entry, kernel_record
from tests.report.parsed import Page
from tests.report.results import (
    BATCHES,
    CONTEXTS,
    LOAD,
    SPARSITY,
    context_lines,
    decode,
    environment,
    line,
    loop,
    whole_sweep,
    write_record,
    write_results,
    write_sweep,
)

EVIL = '<script>alert("x")</script>&\'$question'


def plain(text):
    """Return a page's text without its markup, style and script."""
    body = text[text.index("<body>") : text.rindex("<script>")]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def test_every_element_is_closed_and_every_link_leads_somewhere(page_of):
    parsed = Page(page_of())
    assert parsed.open == []
    names = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(set(names)) == len(names)
    links = [attributes["href"] for attributes in parsed.of("a")]
    assert links and {link.removeprefix("#") for link in links} <= set(names)


def test_every_experiment_has_a_section_a_link_a_figure_and_a_table(page_of, drawn):
    parsed = Page(page_of())
    experiments = [CONTEXTS, BATCHES, SPARSITY, LOAD]
    sections = [attributes.get("id") for attributes in parsed.of("section")]
    links = [attributes["href"] for attributes in parsed.of("a")]
    for name in experiments:
        assert f"experiment-{name}" in sections and f"#experiment-{name}" in links
    assert drawn == experiments
    assert len([caption for caption in parsed.tables if caption.startswith("All points")]) == 4
    alts = [image["alt"] for image in parsed.of("img")]
    assert [alt.split(":")[0] for alt in alts] == [f"Figure of {name}" for name in experiments]
    assert alts[0].endswith("for batch 1 and batch 4.")


def test_the_answer_comes_first(page_of):
    parsed = Page(page_of())
    sections = [attributes["id"] for attributes in parsed.of("section")]
    assert sections[:2] == ["answer", "experiments"]
    assert list(parsed.tables)[:4] == [
        "Crossover by batch", "Dense and sparse against their floors", "Quality beside speed",
        "Continuous throughput both ways",
    ]  # fmt: skip


def test_the_headline_names_the_device_and_the_crossing_of_every_batch(page_of):
    text = plain(page_of())
    assert (
        "On Intel Xeon Processor, 2 threads, sparse decode beats dense from about 300 tokens of "
        "context at batch 1 and from about 300 at batch 4." in text
    )
    assert "At 2,048 tokens its speed is 6.8 and 6.8 times that of dense (batch 1 and 4)" in text
    assert "it keeps 88% of the attention there, output error 0.062" in text


@pytest.mark.parametrize(
    ("crossing", "words"),
    [
        (100, "beats dense at every measured context (128 to 2,048 tokens) at batch 1"),
        (
            125,
            "(128 to 2,048 tokens, by over 5% from 512 on) at batch 1",
        ),
        (5000, "at batch 1 dense is faster at every measured context, up to 2,048 tokens"),
    ],
)
def test_the_headline_says_when_there_is_no_crossing(page_of, crossing, words):
    assert words in plain(page_of(*context_lines(batches=(1,), crossing=crossing)))


def test_the_headline_says_when_the_curves_cross_often(page_of):
    times = {128: (1, 2), 256: (2, 1), 512: (1, 2)}
    lines = [
        line(CONTEXTS, "batch 1", x, "context_tokens", decode(*ms), parameters={"batch_size": 1})
        for x, ms in times.items()
    ]
    assert "at batch 1 no single context divides the two" in plain(page_of(*lines))


def test_the_crossover_table_holds_the_crossing_and_the_speed_up_at_the_end(page_of):
    first, second = Page(page_of()).rows("Crossover by batch")
    assert first == [
        ("batch", "1"), ("crossing tokens", "300"), ("measured between", "128 and 512"),
        ("faster", "sparse from there on"), ("over 5% faster from tokens", "512"),
        ("largest context tokens", "2,048"),
        ("speed-up there ×", "6.83"),
    ]  # fmt: skip
    assert second[0] == ("batch", "4") and second[1:] == first[1:]


def test_the_floor_table_says_where_the_ratio_flatters_sparse(page_of):
    rows = [dict(row) for row in Page(page_of()).rows("Dense and sparse against their floors")]
    assert [(row["batch"], row["context tokens"]) for row in rows] == [
        ("1", "2,048"), ("4", "2,048"), ("1", "4,096"), ("8", "4,096"),
    ]  # fmt: skip
    far, near = rows[2:]
    assert (far["dense ms"], far["dense floor ms"], far["sparse ms"]) == ("4.000", "0.500", "1.000")
    assert far["dense reads at of bandwidth"] == "0.50" and far["speed-up ×"] == "4.00"
    assert far["remark"] == "dense is far from its limit: the ratio flatters sparse"
    assert near["remark"] == "fair: dense is near its limit"


def test_the_quality_table_stands_beside_the_speed(page_of):
    rows = [[cell for _, cell in row] for row in Page(page_of()).rows("Quality beside speed")]
    assert rows == [
        ["8", "8.00", "0.500", "0.031", "1.250", "0.0312"],
        ["32", "2.00", "0.500", "0.125", "1.250", "0.1250"],
    ]


def test_the_throughput_table_takes_the_best_load_of_each_prompt_length(page_of):
    (row,) = Page(page_of()).rows("Continuous throughput both ways")
    assert [cell for _, cell in row] == [
        "1,024", "sparse CPU", "16", "23,456", "2.50", "5,864", "1.25",
    ]  # fmt: skip


def test_a_failed_point_is_counted_and_stands_in_its_table_with_its_reason(page_of):
    text = page_of()
    assert "14 of 15 points were measured; 1 timed out: the tables name the reasons." in plain(text)
    last = dict(Page(text).rows("All points: Context length")[-1])
    assert last["point"] == "batch 4, context_tokens 8192" and last["dense ms"] == "–"
    assert last["state"] == "timed out: took more than 60 s"


def test_an_experiment_of_failures_alone_has_no_figure_and_says_so(page_of):
    lost = line(CONTEXTS, "b", 8, "context_tokens", None, status="killed", reason="no memory")
    text = page_of(lost)
    assert f"No figure: no measured point in {CONTEXTS}." in plain(text)
    assert "no experiment here compares dense with sparse" in plain(text)


def test_points_on_two_backends_have_a_row_each_and_the_answer_names_both(page_of):
    gpu = context_lines(batches=(1,), crossing=200, backend="gpu", gpu="NVIDIA H200")
    text = page_of(*context_lines(batches=(1,)), *gpu)
    rows = [dict(row) for row in Page(text).rows("Crossover by batch")]
    assert [(row["on"], row["crossing tokens"]) for row in rows] == [("CPU", "300"), ("GPU", "200")]
    assert "On NVIDIA H200, sparse decode beats dense from about 200 tokens" in plain(text)
    assert "No GPU was measured" not in plain(text)
    points = Page(text).rows("All points: Context length")
    assert [dict(row)["on"] for row in points] == ["CPU"] * 3 + ["GPU"] * 3


def test_a_figure_that_lacks_a_record_is_missed_and_the_rest_stays(page_of, monkeypatch):
    def draw(name, points):
        raise KeyError("workload")

    monkeypatch.setattr("numbadsd.plots.figure_svg", draw)
    text = plain(page_of())
    assert "No figure: a record lacks 'workload'." in text and "about 300 tokens" in text


def test_the_remarks_say_how_it_was_measured(page_of):
    text = plain(page_of())
    for words in (
        "Keys and values are synthetic (uniform)", "the median of 3 samples",
        "comes from a single run", "Machine: Intel Xeon Processor, 2 threads, 2 cores, 24 GiB",
        "below 0.7 of the measured bandwidth in 1 of 10 points", "No GPU was measured",
    ):  # fmt: skip
        assert words in text


def test_the_remarks_say_up_to_where_sparse_reads_everything(page_of):
    lines = context_lines(contexts=(64, 512))  # k is 4 pages of 16 tokens
    assert "Up to 64 tokens, k pages, sparse reads all that dense reads" in plain(page_of(*lines))


def test_the_remarks_warn_of_quick_runs_and_dirty_trees(page_of):
    quick = [one | {"quick": True} for one in context_lines()]
    quick[0]["record"]["environment"] = environment(dirty=True)
    text = plain(page_of(*quick))
    assert "quick run" in text and "changes that no commit holds" in text


def test_each_device_shows_its_newest_sweep_and_the_older_one_is_named(tmp_path):
    write_results(tmp_path, device="xeon", name="a_new_one")
    old = [one | {"started": "2025-01-01"} for one in context_lines(crossing=1000)]
    write_results(tmp_path, old, device="xeon", name="z_old_one")
    write_results(tmp_path, context_lines(crossing=200), device="epyc")
    text = build_page(tmp_path)
    assert "not shown, as a newer one replaces it: sweeps/xeon/z_old_one" in plain(text)
    assert "about 300 tokens" in plain(text) and "about 200 tokens" in plain(text)
    assert "about 1,000 tokens" not in plain(text)
    captions = Page(text).tables
    assert "All points: Context length, xeon" in captions
    assert "All points: Context length, epyc" in captions


def test_one_sweep_is_enough(tmp_path):
    text = build_page(write_sweep(tmp_path / "here", whole_sweep()))
    assert "from about 300 tokens" in plain(text) and 'id="others"' not in text
    assert "Intel Xeon Processor, 2 threads: 15 points, 2026-11-21" in plain(text)
    assert str(tmp_path) not in text and tmp_path.name not in text


def test_records_of_single_runs_have_their_key_figures(tmp_path):
    write_record(tmp_path, "decode", decode(6.0, 2.0, verdict={"speedup": 3.0}))
    write_record(tmp_path, "continuous", loop(1234.0) | {"command": "run 1 --json a/b --x"})
    write_record(tmp_path, "kernels", kernel_record(kernel_entry()), device="sm_90")
    torch = {"bench": "versus_torch", "case": {"batch": 4}, "dense_cpu_ms": {"median": 2.0}}
    torch |= {"torch_sdpa_ms": {"median": 3.0}, "dense_over_torch": 1.5}
    write_record(tmp_path, "versus_torch", torch | {"environment": environment(dirty=True)})
    write_record(tmp_path, "unknown", {"schema_version": 1, "anything": 1})
    (tmp_path / "gpu_check" / "h200").mkdir(parents=True)
    (tmp_path / "gpu_check" / "h200" / "summary.json").write_text(
        '{"command": "gpu_check", "commit": "abc", "timestamp": "2026-11-22T00:00", \n"steps": '
        '[{"step": "tests", "status": "ok", "figure": "9 passed"}]}'
    )
    text = build_page(tmp_path)
    assert "There is no sweep here" in plain(text)
    rows = {dict(row)["bench"]: dict(row) for row in Page(text).rows("Records of single runs")}
    figures = {bench: row["key figure"] for bench, row in rows.items()}
    assert figures["decode"] == "3.00×: dense_cpu 6.000 ms, sparse_cpu 2.000 ms"
    assert figures["continuous"] == "sparse 1,234 tokens/s in the loop; 2.50× serial"
    assert figures["versus_torch"] == "dense_cpu 2.000 ms, torch 3.000 ms: 1.50× faster"
    assert figures["gpu_check"] == "tests ok: 9 passed" and figures["unknown"] == "–"
    assert "kernels for sm_90" in figures["kernels"]
    assert rows["continuous"]["command"] == "run 1 --x"
    assert (rows["versus_torch"]["commit"], rows["versus_torch"]["tree"]) == ("0123456", "dirty")
    assert rows["versus_torch"]["command"] == "batch 4"


def test_each_environment_has_one_table(tmp_path):
    write_results(tmp_path)
    write_record(
        tmp_path, "decode", decode(1.0, 1.0) | {"environment": environment(commit="f" * 9)}
    )
    write_record(tmp_path, "decode", decode(1.0, 1.0) | {"environment": environment(numba="9")})
    tables = Page(build_page(tmp_path)).tables
    first, second = (tables[f"Environment {n} of 2"] for n in (1, 2))
    assert ["commits", "0123456, fffffff"] in first and ["memory", "24.0 GiB"] in first
    assert ["numba", "9"] in second


def test_raw_records_are_there_without_samples(page_of):
    text = page_of()
    assert "points.jsonl, with all samples" in text and "&quot;bytes_read&quot;" in text
    assert "&quot;samples&quot;" not in text
    assert without_samples([{"samples": [1], "median": 2}]) == [{"median": 2}]


def test_a_page_stays_small_when_the_records_are_many(page_of, monkeypatch):
    monkeypatch.setattr("numbadsd.report.evidence.MAX_RAW_BYTES", 10_000)
    text = page_of()
    assert "records are left out here, to keep this page small" in plain(text)


def test_nothing_of_a_record_becomes_markup(tmp_path):
    bad = line(CONTEXTS, EVIL, 1, EVIL, None, variant=EVIL, status="failed", reason=EVIL)
    good = context_lines(batches=(1,))
    for one in good:
        one["point"]["series"] = one["point"]["variant"] = EVIL
        one["record"]["environment"] = environment(EVIL, cpu=EVIL, os=EVIL, commit=EVIL)
        one["record"]["config"]["data"] = one["record"]["config"]["model"]["summary"] = EVIL
    folder = write_results(tmp_path, [*good, bad], device="<b>xeon")
    record = decode(2.0, 1.0) | {"command": EVIL, "environment": environment(cpu=EVIL)}
    write_record(folder, "<i>bench", record, device='"onclick="alert(1)')
    text = build_page(folder)
    parsed = Page(text)
    assert parsed.open == [] and len(parsed.of("script")) == 1
    assert "<script>alert" not in text and "<b>xeon" not in text and "<i>bench" not in text
    assert not [
        name for _, attributes in parsed.elements for name in attributes if name[:2] == "on"
    ]
    assert EVIL in plain(text)  # as text it is all there, the $ as well


def test_the_page_asks_nobody_for_anything(page_of):
    text = page_of()
    parsed = Page(text)
    for name in ("src", "href", "srcset", "data", "action", "poster"):
        for tag, attributes in parsed.elements:
            target = attributes.get(name, "#")
            assert target.startswith(("#", "data:")), (tag, target)
    assert not re.search(r"https?://", text)
    for word in (
        "@import",
        "url(",
        "fetch(",
        "XMLHttpRequest",
        "import(",
        "<iframe",
        "<link rel=s",
    ):
        assert word not in text
    (policy,) = [meta["content"] for meta in parsed.of("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none'; ") and "img-src data:" in policy


def test_headers_are_buttons_and_numbers_carry_their_value(page_of):
    text = page_of()
    heads = [attributes for attributes in Page(text).of("th") if attributes.get("scope") == "col"]
    assert heads and all(head["aria-sort"] == "none" for head in heads)
    assert len(Page(text).of("button")) == len(heads)
    assert '<td class="number" data-value="0.128">0.128</td>' in text
    assert '<td class="number" data-value="">–</td>' in text  # of the point that failed


def test_the_same_results_make_the_same_page(tmp_path):
    write_results(tmp_path)
    assert build_page(tmp_path) == build_page(tmp_path)


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    target = tmp_path / "page.html"
    target.write_text("old")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        page.write_page("new", target)
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]
