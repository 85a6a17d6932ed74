"""`dsd_kernels`: what the CUDA kernels take of a GPU, without one."""

import shlex
import sys
from pathlib import Path

import click

from numbadsd.bench.kernels import (
    ARCHITECTURES,
    SHAPE_FIELDS,
    SWEEP,
    over_budget,
    render_kernels,
    run_kernels,
)  # fmt: skip
from numbadsd.bench.record import write_record
from numbadsd.cli._arguments import json_option
from numbadsd.cli._output import check_json_file
from numbadsd.cli._run import run_command
from numbadsd.config import KV_DTYPES, ModelConfig, Share, Summary

OVER_BUDGET_STATUS = 1


def _shape_option(name: str, default, values=None, *, text: str):
    kind = click.Choice([getattr(value, "value", value) for value in values]) if values else int
    return click.option(name, type=kind, default=default, show_default=True, help=text)


@click.command("dsd_kernels", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--arch",
    type=click.Choice(ARCHITECTURES),
    metavar="sm_XX",
    default="sm_90",
    show_default=True,
    help="Architecture to compile for.",
)
@_shape_option("--num-heads", 32, text="Query heads.")
@_shape_option("--num-kv-heads", 8, text="Heads of K and V.")
@_shape_option("--head-dim", 128, text="Elements of a head.")
@_shape_option("--page-size", 16, text="Tokens of a page.")
@_shape_option("--kv-dtype", "float16", KV_DTYPES, text="Storage of K, V and summaries.")
@_shape_option("--summary", "mean", Summary, text="What a page is scored by.")
@_shape_option("--share", "kv_head", Share, text="Which heads share one selection.")
@click.option("--all", "sweep", is_flag=True, help=f"{len(SWEEP)} shapes that cover the choices.")
@json_option
@click.pass_context
def command(ctx, arch: str, sweep: bool, json_file: Path | None, **shape) -> None:
    """Compile the CUDA kernels of a model shape, no GPU needed, and show what they take of one.

    Ends with status 1 when a kernel is over the budget that it declares: more registers, any
    stack, or an occupancy under 0.5 for which it gives no reason.
    """
    check_json_file(json_file)
    if sweep and (given := _given(ctx)):
        raise click.UsageError(f"--all and {given[0]} exclude each other")
    configs = SWEEP if sweep else [ModelConfig(**shape)]
    record = run_kernels(configs, arch, shlex.join(["dsd_kernels", *sys.argv[1:]]))
    try:
        if json_file is not None:
            write_record(record, json_file)
    finally:  # a full disk must not lose what was found
        click.echo(render_kernels(record))
    if faults := over_budget(record):
        click.echo(f"dsd_kernels: over budget: {faults}", err=True)
        ctx.exit(OVER_BUDGET_STATUS)


def _given(ctx) -> list[str]:
    """Return the options of the shape that were given."""
    is_given = lambda name: (  # noqa: E731
        ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    )
    return [f"--{name.replace('_', '-')}" for name in SHAPE_FIELDS if is_given(name)]


def main() -> None:
    """Run `dsd_kernels` as a process."""
    run_command(command)
