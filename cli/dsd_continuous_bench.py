"""`dsd_continuous_bench`: requests come and go; what does decoding them together bring?"""

import shlex
import signal
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click

from numbadsd.bench.record import write_record
from numbadsd.bench.serving import run_continuous_bench
from numbadsd.bench.serving_inputs import (
    TRACE_FORMATS,
    Timeline,
    load_requests,
    parse_goodput,
    poisson,
)
from numbadsd.bench.serving_report import render_lines, render_report
from numbadsd.cli._arguments import (
    json_option,
    positional,
    positional_help,
    seed_option,
    threads_option,
)
from numbadsd.cli._output import check_json_file
from numbadsd.cli._run import run_command
from numbadsd.config import (
    ADMISSIONS,
    BACKENDS,
    CLOCKS,
    KV_DTYPES,
    MODES,
    PREFILLS,
    ContinuousBenchConfig,
    Share,
    Summary,
)

LAST_POSITIONAL = "benchmark_mode"
HELP = f"""Decode requests that come and go, together and one at a time.

Arguments, in order, and their defaults; modes by name or by code (0, 1, ...):

\b
{positional_help(ContinuousBenchConfig, LAST_POSITIONAL)}

\b
admission_mode         {", ".join(MODES["admission_mode"])}
run_batch_output_mode  {", ".join(MODES["run_batch_output_mode"])}
run_batch_timing_mode  {", ".join(MODES["run_batch_timing_mode"])}
benchmark_mode         {", ".join(MODES["benchmark_mode"])}

On the CPU, cpu_cache, direct_gpu_upload and synthetic_gpu_prefill all write the same prompt tokens
into pages of the host, the output modes keep the same outputs, kernel_events are the times that the
compiled step takes itself, gpu_synthetic_decode_append changes nothing, and dense_gpu is the dense
path of the CPU (continuous_dense_cpu). A request's outputs have the same bits in every mode.
"""


def _choice(name: str, values, text: str):
    """Return an option with a fixed set of values, the first of which is the default."""
    values = [getattr(value, "value", value) for value in values]
    return click.option(
        name, type=click.Choice(values), default=values[0], show_default=True, help=text
    )


@click.command(
    "dsd_continuous_bench", help=HELP, context_settings={"help_option_names": ["-h", "--help"]}
)
@positional(ContinuousBenchConfig, LAST_POSITIONAL, dict.fromkeys(MODES, str))
@click.option("--num-kv-heads", type=int, help="Heads of K and V [num_heads].")
@_choice("--kv-dtype", KV_DTYPES, "Storage of K, V and summaries; arithmetic is float32.")
@_choice("--summary", Summary, "What a page is scored by.")
@_choice("--share", Share, "Which heads share one selection.")
@click.option("--sink-pages", "num_sink_pages", default=0, help="First pages always kept [0].")
@click.option("--recent-pages", "num_recent_pages", default=0, help="Last pages always kept [0].")
@_choice("--backend", BACKENDS, "Where to decode; auto is a GPU where one is usable.")
@_choice("--prefill", PREFILLS, "Attention of prompts: none, whole, in chunks, chunks packed.")
@click.option("--prefill-chunk-tokens", default=256, help="Prompt tokens of a step [256].")
@_choice("--admission", ADMISSIONS, "First come first served, or what fits.")
@click.option(
    "--preempt", is_flag=True, help="Take pages as requests grow; recompute the youngest."
)
@click.option(
    "--kv-budget", default="auto", help="auto, unlimited, bytes (2G) or tokens (20000tok)."
)
@click.option("--gate-tokens", default=0, help="Contexts below attend to everything [0].")
@click.option(
    "--clock", type=click.Choice(CLOCKS), help="Of arrivals [steps; virtual for seconds]."
)
@click.option("--step-ms", type=float, help="A virtual step takes so long [as measured].")
@click.option("--serial/--no-serial", default=None, help="Also one at a time [for steps only].")
@click.option("--request-rate", type=float, help="Requests a second instead of a window of steps.")
@click.option("--burstiness", type=float, default=1.0, help="Of their gaps; 1 is Poisson [1].")
@click.option("--trace", type=click.Path(path_type=Path), help="Requests of a trace file.")
@_choice("--trace-format", TRACE_FORMATS, "Its format.")
@click.option("--limit", type=int, help="Requests of the trace to take [all].")
@click.option("--time-scale", type=float, default=1.0, help="Factor of its gaps [1].")
@click.option("--max-context", type=int, help="Longest request to take.")
@_choice("--over", ("drop", "clip"), "What to do with longer ones.")
@click.option("--jitter", "jitter_s", type=float, default=0.0, help="Seconds added at random [0].")
@click.option("--goodput", help='Limits of a good request, in ms: "ttft:500 tpot:50".')
@click.option("--timeline", type=click.Path(dir_okay=False, path_type=Path),
              help="Write the steps as a Chrome trace to this file.")  # fmt: skip
@click.option("--report", is_flag=True, help="Print tables for a reader instead of key=value.")
@seed_option
@threads_option
@json_option
def command(seed_option, threads, json_file, timeline, goodput, report, **values) -> None:
    """Run, print, write the record."""
    check_json_file(json_file)
    check_json_file(timeline)
    inputs = {name: values.pop(name) for name in _INPUTS}
    values["seed"] = values["seed"] if seed_option is None else seed_option
    slo = parse_goodput(goodput) if goodput else None
    in_steps = inputs["trace"] is None and inputs["request_rate"] is None
    values["clock"] = values["clock"] or ("steps" if in_steps else "virtual")
    if values["serial"] is None:
        values["serial"] = in_steps
    config = ContinuousBenchConfig(**values)
    workload = _workload(config, inputs, in_steps)
    if workload is not None:
        config = replace(config, num_requests=len(workload))
    steps = Timeline() if timeline else None
    with _stoppable() as on_engine:
        line = shlex.join(["dsd_continuous_bench", *sys.argv[1:]])
        record = run_continuous_bench(
            config, workload, line, slo=slo, timeline=steps, on_engine=on_engine
        )
    try:
        if json_file is not None:
            write_record(record, json_file)
        if timeline is not None:
            steps.write_chrome_trace(timeline)
    finally:  # a full disk must not lose what was measured
        click.echo(render_report(record) if report else render_lines(record))


_INPUTS = ("trace", "trace_format", "limit", "time_scale", "max_context", "over", "jitter_s",
           "request_rate", "burstiness")  # fmt: skip


def _workload(config: ContinuousBenchConfig, inputs: dict, in_steps: bool):
    """Return the requests that the options name; None for those of the configuration."""
    if in_steps:
        if config.clock != "steps":
            raise click.UsageError("--clock virtual and wall go with --trace or --request-rate")
        return None
    if config.clock == "steps":
        raise click.UsageError("--clock steps: arrivals of --trace and --request-rate are seconds")
    rate, burstiness = inputs.pop("request_rate"), inputs.pop("burstiness")
    if inputs["trace"] is None:
        return poisson(config, rate, burstiness)
    if rate is not None:
        raise click.UsageError("--trace and --request-rate exclude each other")
    return load_requests(config, **inputs)


@contextmanager
def _stoppable():
    """Let a first Ctrl-C or SIGTERM finish what is active, a second one end it.

    Yields what takes each engine before it runs; outside of a run signals do what they always do.
    """
    engines = []
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def on_signal(number, frame) -> None:
        click.echo("dsd_continuous_bench: stopping; what is active is finished", err=True)
        engines[-1].stop()

    def on_engine(engine) -> None:
        engines.append(engine)
        for number in signals:
            signal.signal(number, on_signal)

    try:
        yield on_engine
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    """Run `dsd_continuous_bench` as a process."""
    run_command(command)
