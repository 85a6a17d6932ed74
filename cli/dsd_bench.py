"""`dsd_bench`: when does page-sparse decode beat dense decode, here, for this shape?"""

import shlex
import sys
from pathlib import Path

import click

from numbadsd import PATHS
from numbadsd.bench.data import capture_shape, load_capture
from numbadsd.bench.decode import run_decode_bench
from numbadsd.bench.record import write_record
from numbadsd.bench.report import render_report
from numbadsd.cli._arguments import (
    choice_option,
    json_option,
    positional,
    positional_help,
    seed_option,
    threads_option,
)
from numbadsd.cli._output import check_json_file
from numbadsd.cli._run import run_command
from numbadsd.config import DATA_KINDS, KV_DTYPES, DecodeBenchConfig, Share, Summary
from numbadsd.config.decode import CONTENDERS
from numbadsd.integration.sdpa import find_attention

LAST_POSITIONAL = "page_size"
HELP = f"""Decode one batch by every path and say whether sparsity pays.

Arguments, in order, and their defaults:

\b
{positional_help(DecodeBenchConfig, LAST_POSITIONAL)}

Context lengths are drawn from [min, max] for each request. With --kv-file the tensors of the file
give heads, head_dim and contexts, and batch_size is the most queries that are taken from it.
"""


def _parse_paths(ctx, param, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = tuple(name.strip() for name in value.split(","))
    for name in names:
        if name not in PATHS:
            raise click.BadParameter(f"got {name!r}, want a list of {', '.join(PATHS)}")
    return tuple(name for name in PATHS if name in names)


@click.command("dsd_bench", help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@positional(DecodeBenchConfig, LAST_POSITIONAL)
@click.option("--num-kv-heads", type=int, help="Heads of K and V [num_heads].")
@choice_option("--kv-dtype", KV_DTYPES, "Storage of K, V and summaries; arithmetic is float32.")
@choice_option("--summary", Summary, "What a page is scored by.")
@choice_option("--share", Share, "Which heads share one selection.")
@click.option("--sink-pages", "num_sink_pages", default=0, help="First pages always kept [0].")
@click.option("--recent-pages", "num_recent_pages", default=0, help="Last pages always kept [0].")
@choice_option(
    "--data", DATA_KINDS, "Random, or with sinks, topics and needles as real caches have."
)
@click.option("--kv-file", type=click.Path(path_type=Path), help="Captured q, k, v (.npz).")
@click.option("--layer", type=int, help="Layer of the capture [the lowest].")
@click.option("--paths", callback=_parse_paths, help=f"Some of {', '.join(PATHS)} [all].")
@click.option(
    "--versus",
    type=click.Choice(CONTENDERS),
    help="Also measure torch's scaled_dot_product_attention, on the same numbers.",
)
@click.option("--fused/--staged", default=True, help="Attend in place, or gather a copy first.")
@seed_option
@threads_option
@json_option
@click.pass_context
def command(ctx, kv_file: Path | None, layer, seed_option, threads, json_file, **values) -> None:
    """Measure, print the report, write the record."""
    check_json_file(json_file)
    if layer is not None and kv_file is None:
        raise click.UsageError("--layer goes with --kv-file")
    values["seed"] = values["seed"] if seed_option is None else seed_option
    capture = None
    if kv_file is not None:
        capture = load_capture(kv_file, layer)
        values |= _shape_of_file(ctx, capture)
    config = DecodeBenchConfig(**values)
    line = shlex.join(["dsd_bench", *sys.argv[1:]])
    record = run_decode_bench(config, capture, line, find_attention)
    record["config"]["kv_file"] = str(kv_file) if kv_file else None
    record["config"]["layer"] = capture.layer if capture else None
    try:
        if json_file is not None:
            write_record(record, json_file)
    finally:  # a full disk must not lose what was measured
        click.echo(render_report(record))


def _shape_of_file(ctx, capture) -> dict:
    """Return the fields that the file decides; refuse one that was given and differs."""

    def given(name: str) -> bool:
        return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE

    if given("data"):
        raise click.UsageError("--data and --kv-file exclude each other")
    shape = capture_shape(capture)
    for name, size in shape.items():
        if given(name) and ctx.params[name] != size:
            raise click.UsageError(f"{name}: got {ctx.params[name]}, the file has {size}")
    return shape


def main() -> None:
    """Run `dsd_bench` as a process."""
    run_command(command)
