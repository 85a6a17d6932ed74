"""`dsd_demo`: a small walk through pages, scores, selection and output."""

import click

from numbadsd.bench.demo import run_demo
from numbadsd.cli._arguments import SEED, threads_option
from numbadsd.cli._run import run_command


@click.command("dsd_demo", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seed", type=SEED, default=7, show_default=True, help="Of the synthetic request.")
@threads_option
def command(seed: int, threads: int | None) -> None:
    """Walk one request through pages, scores, selection and attention, with every number shown."""
    click.echo(run_demo(seed))


def main() -> None:
    """Run `dsd_demo` as a process."""
    run_command(command)
