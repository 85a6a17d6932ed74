"""`dsd_continuous_bench`: requests come and go; what does decoding them together bring?"""

import os
import shlex
import signal
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click

from numbadsd.bench.record import check_writable, write_record
from numbadsd.bench.serving import StopSwitch, Timeline, run_continuous_bench
from numbadsd.bench.serving_inputs import TRACE_FORMATS, load_requests, parse_goodput, poisson
from numbadsd.bench.serving_report import render_lines, render_report
from numbadsd.cli._arguments import (
    choice_option,
    json_option,
    positional,
    positional_help,
    seed_option,
    threads_option,
)
from numbadsd.cli._output import check_json_file
from numbadsd.cli._run import INTERRUPT_STATUS, run_command
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


def _codes(argument: str) -> str:
    """Return the codes of a mode with their names."""
    names = ", ".join(f"{code} {name}" for code, name in enumerate(MODES[argument]))
    return f"  {argument:<29}{names}"


HELP = f"""Decode requests that come and go, together and one at a time.

Prints key=value, one a line: the configuration, then the results. README.md says what they mean.

Arguments, in order, and their defaults:

\b
{positional_help(ContinuousBenchConfig, LAST_POSITIONAL)}

Modes may be given by code or by name:

\b
{chr(10).join(map(_codes, MODES))}

On the CPU all admission modes write the same prompts into pages of the host,
gpu_synthetic_decode_append changes nothing, outputs are always made, kernel_events are the times
that a compiled step takes itself, and dense_gpu is the dense path of the CPU (its label is
continuous_dense_cpu). A request's outputs have the same bits alone and in any batch. With
run_batch_timing_mode host_wall the times inside a step are nan, with disabled also those of steps.

Ctrl-C (or SIGTERM) starts nothing more, finishes what is active, prints and writes what was
measured, and ends with status {INTERRUPT_STATUS}; a second one ends what is active, too. When a
backend fails, what was done until then is printed and written, and the status is 2.
"""


def _number(name: str, default, text: str, *names: str, kind=int):
    """Return an option that takes a number; None where the text says what it is then."""
    return click.option(
        name, *names, type=kind, default=default, show_default=default is not None, help=text
    )


@click.command(
    "dsd_continuous_bench", help=HELP, context_settings={"help_option_names": ["-h", "--help"]}
)
@positional(ContinuousBenchConfig, LAST_POSITIONAL, dict.fromkeys(MODES, str))
@_number("--num-kv-heads", None, "Heads of K and V  [default: num_heads]")
@choice_option("--kv-dtype", KV_DTYPES, "Storage of K, V and summaries; arithmetic is float32.")
@choice_option("--summary", Summary, "What a page is scored by.")
@choice_option("--share", Share, "Which heads share one selection.")
@_number("--sink-pages", 0, "First pages always selected.", "num_sink_pages")
@_number("--recent-pages", 0, "Last pages always selected.", "num_recent_pages")
@_number("--gate-tokens", 0, "Requests with less context attend to all of it.")
@choice_option(
    "--backend", BACKENDS, "Where to decode; auto: a GPU where one is usable, else the CPU."
)
@choice_option(
    "--prefill",
    PREFILLS,
    "Attention of prompts: none; whole, in the step that admits them; in chunks beside the decode; "
    "these chunks, of several prompts, in one pass.",
)
@_number("--prefill-chunk-tokens", 256, "Prompt tokens of a step, for all prompts (with chunked "
         "and packed).")  # fmt: skip
@choice_option(
    "--admission", ADMISSIONS, "First come first served, or the shortest of those that wait."
)
@click.option("--preempt", is_flag=True, help="Take pages as requests grow; when there are none, "
              "the youngest starts anew. Otherwise all pages are taken at admission.")  # fmt: skip
@click.option("--kv-budget", default="auto", show_default=True, help="Memory of all pages: "
              "auto (0.8 of what is free), unlimited, bytes (2G, 512Mi) or 20000tok.")  # fmt: skip
@click.option("--clock", type=click.Choice(CLOCKS), help="What arrivals are compared with: logical "
              "steps; seconds that pass in steps only; real ones.  [default: steps; virtual with "
              "--trace or --request-rate]")  # fmt: skip
@_number("--step-ms", None, "With --clock virtual: what every step takes  [default: as measured]",
         kind=float)  # fmt: skip
@click.option("--serial/--no-serial", default=None, help="Also run the requests one at a time.  "
              "[default: --serial; --no-serial with --trace or --request-rate]")  # fmt: skip
@_number("--request-rate", None, "Requests a second, instead of arrivals in a window of steps.",
         kind=float)  # fmt: skip
@_number("--burstiness", 1.0, "With --request-rate: shape of the gamma distribution of gaps; 1 is "
         "Poisson, less is burstier.", kind=float)  # fmt: skip
@click.option("--trace", type=click.Path(path_type=Path), help="Arrivals and lengths of a file.")
@choice_option("--trace-format", TRACE_FORMATS, "What --trace is; auto goes by its first line.")
@_number("--limit", None, "Requests to take from --trace, the first ones  [default: all]")
@_number("--time-scale", 1.0, "Factor of the gaps in --trace; 0: all at once.", kind=float)
@_number("--max-context", None, "Longest prompt with its new tokens in --trace  [default: any]")
@choice_option(
    "--over", ("drop", "clip"), "What happens to longer ones: left out, or a shorter prompt."
)
@_number("--jitter", 0.0, "Each arrival in --trace is up to so many seconds later.", "jitter_s",
         kind=float)  # fmt: skip
@click.option(
    "--goodput", help='Most milliseconds of a good request: "ttft:500 tpot:50 e2el:9000".'
)
@click.option("--timeline", type=click.Path(dir_okay=False, path_type=Path), help="Write the steps "
              "of the continuous run to this file, as a trace for Chrome or Perfetto.")  # fmt: skip
@click.option("--report", is_flag=True, help="Print tables instead of key=value.")
@seed_option
@threads_option
@json_option
@click.pass_context
def command(ctx, seed_option, threads, json_file, timeline, goodput, report, **values) -> None:
    """Run, print, write the record and the timeline."""
    check_json_file(json_file)
    _check_timeline(timeline)
    _check_together(ctx, values)
    inputs = {name: values.pop(name) for name in _INPUTS}
    values["seed"] = values["seed"] if seed_option is None else seed_option
    slo = None if goodput is None else parse_goodput(goodput)
    in_steps = inputs["trace"] is None and inputs["request_rate"] is None
    values["clock"] = values["clock"] or ("steps" if in_steps else "virtual")
    if values["serial"] is None:
        values["serial"] = in_steps
    config = ContinuousBenchConfig(**values)
    workload = _workload(config, inputs)
    if workload is not None:
        config = replace(config, num_requests=len(workload))
    steps = Timeline() if timeline else None
    with _stoppable() as stop:
        line = shlex.join(["dsd_continuous_bench", *sys.argv[1:]])
        record = run_continuous_bench(config, workload, line, slo=slo, timeline=steps, stop=stop)
    try:
        if json_file is not None:
            write_record(record, json_file)
        if timeline is not None:
            steps.write_chrome_trace(timeline)
    finally:  # a full disk must not lose what was measured
        click.echo(render_report(record) if report else render_lines(record))
    _end(ctx, record["results"], stop)


_OF_TRACE = ("trace_format", "limit", "time_scale", "max_context", "over", "jitter_s")
_INPUTS = ("trace", *_OF_TRACE, "request_rate", "burstiness")


def _check_timeline(file: Path | None) -> None:
    """Raise UsageError before any work when the timeline could not be written."""
    try:
        if file is not None:
            check_writable(file)
    except OSError as error:
        raise click.UsageError(
            f"--timeline: cannot write {file}: {error.strerror or error}"
        ) from None


def _check_together(ctx: click.Context, values: dict) -> None:
    """Raise UsageError for options that exclude each other, or that would change nothing."""
    in_steps = values["trace"] is None and values["request_rate"] is None
    if values["trace"] is not None and values["request_rate"] is not None:
        raise click.UsageError("--trace and --request-rate exclude each other")
    if in_steps and values["clock"] not in (None, "steps"):
        raise click.UsageError(f"--clock {values['clock']} goes with --trace or --request-rate")
    if not in_steps and values["clock"] == "steps":
        raise click.UsageError("--clock steps: arrivals of --trace and --request-rate are seconds")
    needs = dict.fromkeys(_OF_TRACE, ("--trace", values["trace"] is not None))
    needs["burstiness"] = ("--request-rate", values["request_rate"] is not None)
    is_chunked = values["prefill"] in ("chunked", "packed")
    needs["prefill_chunk_tokens"] = ("--prefill chunked or packed", is_chunked)
    for parameter in ctx.command.params:
        wanted, is_there = needs.get(parameter.name, ("", True))
        source = ctx.get_parameter_source(parameter.name)
        if not is_there and source is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError(f"{parameter.opts[0]} goes with {wanted}")


def _workload(config: ContinuousBenchConfig, inputs: dict):
    """Return the requests that the options name; None for those of the configuration."""
    rate, burstiness = inputs.pop("request_rate"), inputs.pop("burstiness")
    if rate is not None:
        return poisson(config, rate, burstiness)
    return None if inputs["trace"] is None else load_requests(config, **inputs)


@contextmanager
def _stoppable():
    """Let Ctrl-C and SIGTERM press a switch, once there is something to save."""
    stop = StopSwitch()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def on_signal(number, frame) -> None:
        if not stop.is_armed:
            raise KeyboardInterrupt
        stop.press()
        what = "finishing what is active" if stop.num_presses == 1 else "ending what is active"
        # not by sys.stderr, in whose own write a signal may come
        os.write(2, f"dsd_continuous_bench: stopping, {what}\n".encode())

    for number in signals:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(ctx: click.Context, results: dict, stop: StopSwitch) -> None:
    """End with the status of a run that is not whole, and say what it lost."""
    if "error" in results:
        raise click.ClickException(results["error"])
    if stop.num_presses:
        serving = results["serving"]
        names = ("completed", "cancelled", "not_started")
        counts = ", ".join(f"{serving[name]} {name.replace('_', ' ')}" for name in names)
        click.echo(f"dsd_continuous_bench: stopped: {counts}", err=True)
        ctx.exit(INTERRUPT_STATUS)


def main() -> None:
    """Run `dsd_continuous_bench` as a process."""
    run_command(command)
