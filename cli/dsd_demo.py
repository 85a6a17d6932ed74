"""`dsd_demo`: a small walk through pages, scores, selection and output."""

import click

from numbadsd.bench.demo import run_demo
from numbadsd.cli._run import run_command


@click.command("dsd_demo", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seed", default=7, show_default=True, help="Of the synthetic request.")
def command(seed: int) -> None:
    """Walk one request through pages, scores, selection and attention, with every number shown."""
    click.echo(run_demo(seed))


def main() -> None:
    """Run `dsd_demo` as a process."""
    run_command(command)
