"""`dsd_report`: one HTML page from a folder of results."""

from contextlib import contextmanager
from pathlib import Path

import click

from numbadsd.bench.record import check_writable
from numbadsd.cli._run import run_command
from numbadsd.report import build_page, write_page


@click.command("dsd_report", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(path_type=Path), default="bench_results")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="numbadsd_report.html",
    show_default=True,
    help="The page.",
)
def command(folder: Path, out: Path) -> None:
    """Write one HTML page from FOLDER: the answer, figures and tables of all points.

    FOLDER [bench_results] holds sweeps and the records of single runs, or is one sweep. Of several
    sweeps of a device the newest is shown. The page needs no network and nothing beside it.
    """
    with _naming(out):
        check_writable(out)
    page = build_page(folder)
    with _naming(out):
        write_page(page, out)
    click.echo(out)


@contextmanager
def _naming(out: Path):
    """Say which file it is that cannot be written."""
    try:
        yield
    except OSError as error:
        raise click.UsageError(f"--out: cannot write {out}: {error.strerror or error}") from None


def main() -> None:
    """Run `dsd_report` as a process."""
    run_command(command)
