"""`dsd_topk_bench`: how fast is top-k on its own, beside the read of its scores?"""

import shlex
import sys
from pathlib import Path

import click

from numbadsd.bench.record import write_record
from numbadsd.bench.topk import run_topk_bench
from numbadsd.bench.topk_report import render_topk
from numbadsd.cli._arguments import (
    choice_option,
    json_option,
    positional,
    positional_help,
    threads_option,
)
from numbadsd.cli._output import check_json_file
from numbadsd.cli._run import run_command
from numbadsd.config import (
    KV_DTYPES,
    TOPK_DEVICES,
    TOPK_LENGTHS,
    TOPK_ORDERS,
    TOPK_VALUES,
    TopkBenchConfig,
)
from numbadsd.integration.selectors import find_selectors

LAST_POSITIONAL = "warmup"
HELP = f"""Time the k best of every row, beside NumPy, torch and CuPy on the same scores.

Arguments, in order, and their defaults:

\b
{positional_help(TopkBenchConfig, LAST_POSITIONAL)}

Cases: full rows (uniform) of every kind of values, and a mix as in decode (9 rows of 10 have 1/32
of the length) of normal ones. --lengths or --values keeps some; both together give every pair.
"""


def _list_of(known: tuple[str, ...]):
    """Return a callback that reads a list of known names; order and repeats do not matter."""

    def parse(ctx, param, value: str | None) -> tuple[str, ...] | None:
        if value is None:
            return None
        names = [name.strip() for name in value.split(",")]
        for name in names:
            if name not in known:
                raise click.BadParameter(f"got {name!r}, want a list of {', '.join(known)}")
        return tuple(name for name in known if name in names)

    return parse


@click.command(
    "dsd_topk_bench", help=HELP, context_settings={"help_option_names": ["-h", "--help"]}
)
@positional(TopkBenchConfig, LAST_POSITIONAL)
@choice_option("--device", TOPK_DEVICES, "auto: the GPU where one is usable.")
@choice_option("--dtype", KV_DTYPES, "Of the scores.")
@choice_option("--sorted", TOPK_ORDERS, "What the selected come out by.", "order")
@click.option(
    "--lengths", callback=_list_of(TOPK_LENGTHS), help=f"Some of {', '.join(TOPK_LENGTHS)} [all]."
)
@click.option(
    "--values", callback=_list_of(TOPK_VALUES), help=f"Some of {', '.join(TOPK_VALUES)} [all]."
)
@threads_option
@json_option
def command(threads, json_file: Path | None, **values) -> None:
    """Measure, print the table, write the record."""
    check_json_file(json_file)
    config = TopkBenchConfig(**values)
    record = run_topk_bench(config, shlex.join(["dsd_topk_bench", *sys.argv[1:]]), find_selectors)
    try:
        if json_file is not None:
            write_record(record, json_file)
    finally:  # a full disk must not lose what was measured
        click.echo(render_topk(record))


def main() -> None:
    """Run `dsd_topk_bench` as a process."""
    run_command(command)
