"""`dsd_sweep`: the experiments, measured point by point, resumed after a crash, and drawn."""

import shlex
from pathlib import Path

import click
from tabulate import tabulate

from numbadsd.bench.sweep.commands import COMMANDS
from numbadsd.bench.sweep.experiments import EXPERIMENTS, find_experiments
from numbadsd.bench.sweep.grid import NAME as GRID
from numbadsd.bench.sweep.grid import grid_points, parse_grid
from numbadsd.bench.sweep.place import (
    DEVICES,
    SWEEPS,
    choose_scale,
    default_folder,
    device_slug,
    newest_sweep,
)
from numbadsd.bench.sweep.points import Point, check_points, code_version
from numbadsd.bench.sweep.process import LocalExecutor, Outcome, measure
from numbadsd.bench.sweep.records import read_sweep
from numbadsd.bench.sweep.run import Sweep, Tally, open_tables, run_sweep
from numbadsd.cli._arguments import choice_option, threads_option
from numbadsd.cli._run import INTERRUPT_STATUS, run_command
from numbadsd.integration.dask import DaskExecutor

FAILED_STATUS = 1
SETTINGS = {"help_option_names": ["-h", "--help"]}
FOLDER = click.Path(file_okay=False, path_type=Path)

device_option = choice_option("--device", DEVICES, "auto: the GPU where one is usable.")
quick_option = click.option("--quick", is_flag=True, help="Fewer points, fewer samples.")


@click.group("dsd_sweep", context_settings=SETTINGS, invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Measure whole experiments: one command a sweep, one process a point.

    \b
      dsd_sweep list
      dsd_sweep run all --quick
      dsd_sweep run 01 03
      dsd_sweep run --grid context=1k..128k:x2,batch=1,8,32,top_k=64
      dsd_sweep plot
    """
    if ctx.invoked_subcommand is None:
        raise click.UsageError("want list, run or plot; --help says more")


@command.command("list", context_settings=SETTINGS)
@device_option
@quick_option
def list_experiments(device: str, quick: bool) -> None:
    """Show the experiments, and how many points each has."""
    scale = choose_scale(device) if device == "auto" else device
    rows = [(e.code, e.name, e.question, len(e.points(scale, quick))) for e in EXPERIMENTS.values()]
    rows.append(("", "all", "", sum(row[-1] for row in rows)))
    headers = ("", "experiment", "question", f"{scale} points")
    click.echo(tabulate(rows, headers, disable_numparse=[0]))


def _names(ctx, param, value: tuple[str, ...]) -> tuple[str, ...]:
    """Check the names of experiments while arguments are read."""
    find_experiments(value)
    return value


@command.command("run", context_settings=SETTINGS)
@click.argument("experiments", nargs=-1, callback=_names)
@device_option
@quick_option
@click.option("--resume", is_flag=True, help="Measure what is missing, and what failed, again.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Points "
              "at once; side by side they disturb each other: times say little.")  # fmt: skip
@click.option("--out", type=FOLDER, help=f"Folder of the results  [default: {SWEEPS}/<device>/"
              "<date>_<commit>]")  # fmt: skip
@click.option("--grid", help="An own sweep instead: context=1k..128k:x2,batch=1,8,32,top_k=64. "
              "Keys are arguments of the command; a..b:x2 doubles, a..b:+512 adds.")  # fmt: skip
@choice_option("--bench", COMMANDS, "Which command a grid is of.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True), default=300.0,
              show_default=True, help="Seconds that a point may take.")  # fmt: skip
@threads_option
@click.option("--dask", metavar="ADDRESS", help="Measure on the workers of this Dask cluster "
              "(start each with --nthreads 1); a lost worker's points run again.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the commands of the points that would run.")
@click.pass_context
def run_experiments(ctx, experiments, device, quick, resume, jobs, out, grid, bench, timeout_s,
                    threads, dask, dry_run) -> None:  # fmt: skip
    """Measure experiments: some of `dsd_sweep list`, or all.

    Every point runs in a process of its own and is written when it ends; one that fails is written
    with its reason, and the others go on. Then the status is 1.
    """
    _check_together(ctx, experiments, grid, dask)
    # a cluster's workers say themselves that they have no GPU
    scale = device if dask is not None and device == "gpu" else choose_scale(device)
    more = {} if threads is None else {"threads": threads}
    tables = _tables(experiments, grid, bench, scale, quick, more)
    check_points([point for points in tables.values() for point in points])
    out = out or default_folder(device_slug(scale, dask is not None), resume)
    sweep = Sweep(tables, out, scale, quick, code_version(), timeout_s)
    if dry_run:
        _print_commands(sweep, resume)
        return
    _run(ctx, sweep, resume, jobs, dask)


def _check_together(ctx: click.Context, experiments, grid: str | None, dask: str | None) -> None:
    """Raise UsageError for what excludes each other, and when there is nothing to measure."""

    def is_given(name: str) -> bool:
        return ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT

    if experiments and grid is not None:
        raise click.UsageError("--grid is an own sweep: it takes no experiments")
    if not experiments and grid is None:
        raise click.UsageError("nothing to run: want 00 .. 07, all, or --grid")
    if is_given("bench") and grid is None:
        raise click.UsageError("--bench goes with --grid")
    if is_given("jobs") and dask is not None:
        raise click.UsageError("--jobs and --dask exclude each other")


def _tables(experiments, grid, bench, scale: str, quick: bool, more: dict) -> dict:
    """Return the points of each chosen experiment, or of the grid."""
    if grid is not None:
        return {GRID: grid_points(parse_grid(grid, bench), bench, scale, quick, more)}
    return {e.name: e.points(scale, quick, more) for e in find_experiments(experiments)}


def _print_commands(sweep: Sweep, resume: bool) -> None:
    for table in open_tables(sweep, resume):
        for point_id in table.missing():
            point: Point = table.points[point_id]
            click.echo(shlex.join([point.command, *point.argv]))


def _run(ctx: click.Context, sweep: Sweep, resume: bool, jobs: int, dask: str | None) -> None:
    """Measure, and say how it ended."""
    tally = Tally()
    try:
        if dask is None:
            run_sweep(sweep, LocalExecutor(jobs), resume, tally)
        else:
            lost = lambda reason: Outcome("killed", f"lost with its workers: {reason}")  # noqa: E731
            run_sweep(sweep, DaskExecutor(dask, measure, lost), resume, tally)
    except KeyboardInterrupt:
        done = f"{tally.kept + tally.measured} of {tally.total} points"
        click.echo(f"dsd_sweep: interrupted after {done}; the same with --resume goes on", err=True)
        ctx.exit(INTERRUPT_STATUS)
    kept = f" ({tally.kept} of them before)" if tally.kept else ""
    ok = tally.total - tally.failed
    click.echo(f"{ok} of {tally.total} points measured{kept}: {sweep.out}")
    click.echo(f"next: dsd_sweep plot {shlex.quote(str(sweep.out))}; "
               f"dsd_report {shlex.quote(str(sweep.out))}")  # fmt: skip
    if tally.failed:
        click.echo(
            f"dsd_sweep: {tally.failed} of {tally.total} points failed; the first: "
            f"{tally.first_reason}",
            err=True,
        )
        ctx.exit(FAILED_STATUS)


@command.command("plot", context_settings=SETTINGS)
@click.argument("folder", required=False, type=FOLDER)
@click.option("--out", type=FOLDER, help="Folder of the figures  [default: figures/ beside the "
              "points of each experiment]")  # fmt: skip
@click.pass_context
def plot(ctx: click.Context, folder: Path | None, out: Path | None) -> None:
    """Draw every experiment of a sweep, as PNG and SVG.  [default: the newest sweep]"""
    from numbadsd.plots import draw_experiment, save_figure  # here: it may import matplotlib

    folder = newest_sweep() if folder is None else folder
    undrawn = []
    for name, points in read_sweep(folder).items():
        try:
            figure = draw_experiment(name, points)
        except ValueError as error:
            undrawn.append(f"{name}: {error}")
            continue
        for file in save_figure(figure, out or folder / name / "figures", name):
            click.echo(file)
    if undrawn:
        click.echo(f"dsd_sweep: not drawn: {'; '.join(undrawn)}", err=True)
        ctx.exit(FAILED_STATUS)


def main() -> None:
    """Run `dsd_sweep` as a process."""
    run_command(command)
