"""Each plot file as a program: reads a sweep, writes its figure."""

import re
from collections.abc import Callable
from pathlib import Path

import click

from numbadsd.bench.sweep.place import SWEEPS
from numbadsd.bench.sweep.records import POINTS_FILE, read_experiment
from numbadsd.plots import save_figure

_USAGE_STATUS = 2


def newest_experiment(name: str, sweeps: Path = SWEEPS) -> Path:
    """Return the folder of an experiment in the newest sweep that has it.

    Sweeps are named by their date; of one day's the one that was written last.
    """
    files = sweeps.glob(f"*/*/{name}/{POINTS_FILE}")
    ages = {file.parent: (_date(file.parents[1].name), file.stat().st_mtime) for file in files}
    if not ages:
        raise ValueError(f"no results of {name} in {sweeps}: run dsd_sweep, or name a folder")
    return max(ages, key=ages.__getitem__)


def _date(folder_name: str) -> str:
    match = re.match(r"\d{4}-\d\d-\d\d", folder_name)
    return match[0] if match else ""


def plot_command(name: str, draw: Callable) -> click.Command:
    """Return the command that draws one experiment."""

    @click.command(
        name=f"plot_{name}",
        help=f"Draw {name} of the sweep in FOLDER (default: the newest one in {SWEEPS}).",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    @click.argument("folder", required=False, type=click.Path(path_type=Path))
    @click.option(
        "--out", type=click.Path(path_type=Path), help="Where to: by default figures/ beside it."
    )
    @click.pass_context
    def main(context: click.Context, folder: Path | None, out: Path | None) -> None:
        try:
            source = newest_experiment(name) if folder is None else _experiment_in(folder, name)
            figure = draw(read_experiment(source))
            for path in save_figure(figure, out or source / "figures", name):
                click.echo(path)
        except (ValueError, OSError) as error:
            click.echo(f"{context.info_name}: {error}", err=True)
            context.exit(_USAGE_STATUS)

    return main


def _experiment_in(folder: Path, name: str) -> Path:
    """Return the folder itself if it holds points, else that of the experiment in a sweep."""
    return folder if (folder / POINTS_FILE).is_file() else folder / name
