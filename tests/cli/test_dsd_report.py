"""`dsd_report`: the page, where it goes, and one line for what is wrong."""

import pytest

from numbadsd import plots
from numbadsd.cli.dsd_report import command
from tests.cli.process import assert_complains, run_here, run_script
from tests.report.results import FIGURE, context_lines, write_record, write_results

NAME = "dsd_report"


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Stand in for the figures, which have tests of their own."""
    monkeypatch.setattr(plots, "figure_svg", lambda name, points: FIGURE)


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Go to a folder that has bench_results."""
    monkeypatch.chdir(tmp_path)
    return write_results(tmp_path / "bench_results")


@pytest.fixture
def refused(results, capsys):
    """Return a function that runs the command, which must refuse and leave the old page."""

    def run(*arguments, words):
        page = results.parent / "numbadsd_report.html"
        page.write_text("old")
        before = sorted(results.parent.rglob("*"))
        assert_complains(run_here(command, arguments, capsys), *words, name=NAME)
        assert page.read_text() == "old" and sorted(results.parent.rglob("*")) == before

    return run


def test_the_page_is_written_to_the_current_folder_and_named(results, capsys):
    ended = run_here(command, [], capsys)
    assert ended == (0, "numbadsd_report.html\n", "")
    page = (results.parent / "numbadsd_report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>") and page.endswith("</html>\n")
    assert "from about 300 tokens of context at batch 1" in page


def test_folder_and_page_can_be_chosen(results, tmp_path, capsys):
    out = tmp_path / "other" / "page.html"
    out.parent.mkdir()
    sweep = next((results / "sweeps" / "xeon").iterdir())
    assert run_here(command, [sweep, "--out", out], capsys) == (0, f"{out}\n", "")
    assert run_here(command, [sweep, "--out", out], capsys).status == 0  # an old one is replaced
    assert list(out.parent.iterdir()) == [out]


def test_no_results_are_refused(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    refused("empty", words=["no results in empty"])
    refused("absent", words=["no results in absent"])
    refused("bench_results/README.md", words=["no results"])


def test_a_broken_record_is_refused_with_its_place(refused, results):
    write_record(results, "decode", {"x": float("nan")})
    refused(words=["2026-11-21_0123456.jsonl:1", "NaN"])


def test_mixed_versions_are_refused(refused, results):
    changed = [one | {"code_version": "feedfeedfeed"} for one in context_lines()]
    write_results(results, changed)
    refused(words=["feedfeedfeed", "0123456789ab"])


@pytest.mark.parametrize("out", [".", "nowhere/page.html", "/dev/null", "bench_results"])
def test_a_page_that_cannot_be_written_is_refused_before_any_work(refused, monkeypatch, out):
    monkeypatch.setattr("numbadsd.cli.dsd_report.build_page", lambda folder: pytest.fail("work"))
    refused("--out", out, words=["--out", out])


@pytest.mark.parametrize("arguments", [["a", "b"], ["--unknown"], ["--out"]])
def test_wrong_arguments_are_refused(refused, arguments):
    refused(*arguments, words=[])


def test_a_disk_that_is_full_is_said_with_the_page_and_leaves_the_old_one(refused, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    refused(words=["--out: cannot write numbadsd_report.html", "No space left on device"])


def test_the_installed_command_draws_and_writes(results):
    """With the real figures, in a process of its own."""
    ended = run_script(NAME, cwd=results.parent)
    assert ended == (0, "numbadsd_report.html\n", "")
    page = (results.parent / "numbadsd_report.html").read_text(encoding="utf-8")
    assert page.count("data:image/svg+xml;base64,") == 4
