"""`dsd_compare`: what became faster or slower between two sets of records?"""

import shlex
import sys
from pathlib import Path

import click

from numbadsd.bench.record import write_record
from numbadsd.bench.regress import NOISE, SINGLE_NOISE, compare
from numbadsd.bench.regress_records import read_records
from numbadsd.bench.regress_report import comparison_record, render_comparison
from numbadsd.cli._arguments import json_option
from numbadsd.cli._output import check_json_file
from numbadsd.cli._run import run_command

SLOWER_STATUS = 1
HELP = f"""Compare two sets of records: what became faster or slower from BASE to NEW?

BASE and NEW are files of records (--json of dsd_bench, dsd_continuous_bench or dsd_topk_bench, one
or several lines), or folders of dsd_sweep: of one experiment, or a whole sweep. Runs of the same
setting are pooled and compared with those of the other side.

Ends with status {SLOWER_STATUS} when anything became slower, 0 when nothing did, 2 when the two
cannot be compared.
"""


@click.command("dsd_compare", help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option(
    "--noise",
    type=float,
    help=f"Change that is none, a fraction  [default: {NOISE}; {SINGLE_NOISE} for single figures]",
)
@click.option("--all", "show_all", is_flag=True, help="List what was measured on one side only.")
@json_option
@click.pass_context
def command(ctx, base: Path, new: Path, noise: float | None, show_all: bool, json_file) -> None:
    """Compare, print the table, write the record."""
    if json_file is not None and json_file.exists():
        for name, path in (("BASE", base), ("NEW", new)):
            if path.exists() and json_file.samefile(path):
                raise click.UsageError(f"--json: {json_file} is {name}, which it would overwrite")
    check_json_file(json_file)
    comparison = compare(read_records(base), read_records(new), noise)
    try:
        if json_file is not None:
            line = shlex.join(["dsd_compare", *sys.argv[1:]])
            write_record(comparison_record(comparison, str(base), str(new), line), json_file)
    finally:  # a full disk must not lose the answer
        click.echo(render_comparison(comparison, str(base), str(new), show_all))
    if comparison.count("slower"):
        ctx.exit(SLOWER_STATUS)


def main() -> None:
    """Run `dsd_compare` as a process."""
    run_command(command)
