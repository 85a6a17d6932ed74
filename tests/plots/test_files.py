"""Figures as files, each plot file as a program, and what importing them loads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from numbadsd.plots import PLOTS, draw_experiment, figure_svg, save_figure
from numbadsd.plots._files import render
from numbadsd.plots.plot_00_backend_total_time import main
from tests.plots.factory import lost, three_rows, write_experiment

ROOT = Path(__file__).parents[2]
NAME = "00_backend_total_time"


@pytest.fixture
def sweep(tmp_path):
    """Return a sweep with one experiment, where dsd_sweep puts it by default."""
    folder = tmp_path / "bench_results" / "sweeps" / "test" / "2026-11-21_0123456"
    write_experiment(folder / NAME, three_rows(NAME))
    return folder


def run_python(*arguments, cwd):
    """Return what a fresh interpreter wrote."""
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True,
                          text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_png_and_svg_are_written_into_a_new_folder(tmp_path):
    figure = draw_experiment(NAME, three_rows(NAME))
    png, svg = save_figure(figure, tmp_path / "a" / "figures", NAME)
    assert [path.name for path in (png, svg)] == [f"{NAME}.png", f"{NAME}.svg"]
    assert png.read_bytes().startswith(b"\x89PNG") and png.stat().st_size > 20_000
    assert svg.read_text().lstrip().startswith("<?xml") and svg.stat().st_size > 20_000
    assert sorted(path.name for path in png.parent.iterdir()) == [png.name, svg.name]


def test_the_same_points_give_the_same_bytes():
    first, second = (figure_svg(NAME, three_rows(NAME)) for _ in range(2))
    assert first == second
    figure = draw_experiment(NAME, three_rows(NAME))
    assert render(figure, "svg").decode() == render(figure, "svg").decode() == first
    assert render(figure, "png") == render(figure, "png")


@pytest.mark.parametrize("name", PLOTS)
def test_no_picture_is_too_heavy_for_a_page(name):
    svg = figure_svg(name, three_rows(name))
    assert len(svg) < 300_000
    assert "<dc:date>" not in svg


def test_an_unknown_kind_of_file_is_refused():
    with pytest.raises(ValueError, match="kind: got gif, want one of png, svg"):
        render(draw_experiment(NAME, three_rows(NAME)), "gif")


def test_a_full_disk_leaves_the_old_figure_and_no_rest(tmp_path, monkeypatch):
    figure = draw_experiment(NAME, three_rows(NAME))
    (tmp_path / f"{NAME}.png").write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        save_figure(figure, tmp_path, NAME)
    assert [path.name for path in tmp_path.iterdir()] == [f"{NAME}.png"]
    assert (tmp_path / f"{NAME}.png").read_bytes() == b"old"


def test_importing_the_plots_loads_no_matplotlib_and_drawing_no_pyplot(sweep, tmp_path):
    code = f"""
import sys, numbadsd.plots as plots
assert "matplotlib" not in sys.modules and "numpy.testing" not in sys.modules
from pathlib import Path
from numbadsd.bench.sweep.records import read_experiment
points = read_experiment(Path({str(sweep / NAME)!r}))
plots.save_figure(plots.draw_experiment({NAME!r}, points), Path("out"), "figure")
assert "matplotlib" in sys.modules
print("matplotlib.pyplot" in sys.modules)
"""
    assert run_python("-c", code, cwd=tmp_path) == "False\n"


def test_a_plot_file_runs_alone(sweep, tmp_path):
    script = ROOT / "plots" / f"plot_{NAME}.py"
    out = run_python(script, sweep, "--out", tmp_path / "figures", cwd=tmp_path)
    assert out.split() == [str(tmp_path / "figures" / f"{NAME}.{kind}") for kind in ("png", "svg")]


def test_the_newest_sweep_is_drawn_when_none_is_named(sweep, monkeypatch):
    for day, device in (("2026-11-20_fffffff", "test"), ("2025-01-01_fffffff", "other")):
        write_experiment(sweep.parents[1] / device / day / NAME, [lost(three_rows(NAME)[0])])
    monkeypatch.chdir(sweep.parents[3])
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 0, result.output
    assert (sweep / NAME / "figures" / f"{NAME}.svg").exists()


def test_the_folder_of_an_experiment_can_be_named_itself(sweep):
    result = CliRunner().invoke(main, [str(sweep / NAME)])
    assert result.exit_code == 0, result.output
    assert (sweep / NAME / "figures" / f"{NAME}.png").exists()


def test_what_is_wrong_is_one_line(sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "bench_results")
    for arguments, words in (
        ([], "no results of 00_backend_total_time in bench_results/sweeps: run dsd_sweep"),
        (["nowhere"], "no results in nowhere/00_backend_total_time"),
        ([str(sweep), "--out", __file__], "File exists"),
    ):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2
        assert words in result.output
        assert result.output.count("\n") == 1


@pytest.mark.parametrize("name", PLOTS)
def test_every_experiment_has_its_file(name):
    assert (ROOT / "plots" / f"{PLOTS[name]}.py").is_file()


def test_every_plot_file_belongs_to_an_experiment():
    files = {path.stem for path in (ROOT / "plots").glob("plot_*.py")}
    assert files == set(PLOTS.values())
