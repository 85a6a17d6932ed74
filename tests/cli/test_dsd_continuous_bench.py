"""`dsd_continuous_bench`: arguments, keys and their order, traces, records, stops and faults."""

import fcntl
import json
import os
import pty
import re
import shlex
import struct
import termios
from functools import partial
from pathlib import Path

import click
import pytest

from numbadsd.cli import dsd_continuous_bench as module
from numbadsd.cli.dsd_continuous_bench import command
from numbadsd.config import MODES, ContinuousBenchConfig
from numbadsd.serving.stats import STAGES
from tests.cli.continuous import NAME, ONE_THREAD, TINY, run_measured
from tests.cli.process import refuser, run_here, run_script

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "tests" / "workload" / "samples"
NAMES = (
    "num_requests max_active_requests arrival_window min_prompt_tokens max_prompt_tokens "
    "min_decode_steps max_decode_steps seed num_heads head_dim page_size top_k_pages "
    "admission_mode preadmit_prompts precompute_decode_payloads gpu_synthetic_decode_append "
    "lazy_release run_batch_output_mode run_batch_timing_mode benchmark_mode"
).split()
MODE_NAMES = ["direct_gpu_upload", "outputs_only", "kernel_events", "sparse"]
DEFAULTS = [128, 32, 64, 1024, 4096, 16, 64, 7, 32, 128, 16, 8, MODE_NAMES[0], 0, 0, 0, 0,
            *MODE_NAMES[1:]]  # fmt: skip
OPTIONS = (
    "num-kv-heads kv-dtype summary share sink-pages recent-pages gate-tokens backend prefill "
    "prefill-chunk-tokens admission preempt kv-budget clock step-ms serial request-rate burstiness "
    "trace trace-format limit time-scale max-context over jitter goodput timeline report seed "
    "threads json"
).split()
LABEL_KEYS = (
    "total_ms measured_end_to_end_ms tokens_per_second admission_ms prompt_preadmit_ms "
    "runtime_admission_ms append_sync_ms release_sync_ms decode_payload_prep_ms run_batch_wall_ms "
    "outside_run_batch_ms serving_loop_other_ms avg_step_ms p50_step_ms p95_step_ms "
    "avg_active_batch_size avg_score_ms avg_topk_ms avg_gather_ms avg_attention_ms avg_kernel_ms "
    "avg_h2d_ms avg_d2h_ms avg_launch_ms avg_sync_ms avg_prepare_sparse_layout_ms "
    "device_h2d_bytes device_h2d_calls device_h2d_large_calls device_d2h_bytes device_d2h_calls "
    "device_d2h_large_calls admission_device_h2d_bytes admission_device_h2d_calls "
    "admission_device_h2d_large_calls"
).split()  # of the reference system, in its order
OWN_KEYS = (
    "tokens_per_second_including_admission prefill_ms loop_payload_ms schedule_ms idle_ms "
    "kernels_ms host_fraction steps "
    "generated_tokens prefilled_tokens gated_tokens peak_pages kv_bytes_resident_per_step "
    "kv_bytes_read_per_step kv_bytes_read_dense_per_step"
).split()
VLLM_KEYS = [
    "duration", "completed", "failed", "total_input_tokens", "total_output_tokens",
    "request_throughput", "output_throughput", "total_token_throughput", "request_goodput",
    "max_concurrent_requests",
    *(f"{statistic}_{name}_ms" for statistic in ("mean", "median", "std", "p50", "p95", "p99")
      for name in ("ttft", "tpot", "itl", "e2el", "queue_wait")),
]  # fmt: skip
SECONDS = ["--request-rate", "200"]


@pytest.fixture
def run(capsys, tmp_path, num_threads):
    """Return a function that runs the command here; gives its lines, its record and its output."""
    return partial(run_measured, capsys, tmp_path / "record.json")


@pytest.fixture
def refused(monkeypatch, capsys, num_threads):
    """Return a function that runs arguments which must be refused before any work."""
    work = ("numbadsd.bench.serving.warm_up", "numbadsd.bench.serving.make_backend")
    return refuser(monkeypatch, capsys, command, *work)


def with_argument(name, value):
    """Return good arguments but for one."""
    arguments = [*TINY, "1", "0", "0", "0", "0", "1", "1", "0"]
    arguments[NAMES.index(name)] = str(value)
    return arguments


# ---- arguments and help


def test_arguments_have_this_order_and_these_defaults():
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    values = command.make_context(NAME, []).params
    assert [p.name for p in arguments] == NAMES and [values[name] for name in NAMES] == DEFAULTS
    assert not any(p.required for p in arguments)
    flags = {flag for p in command.params if isinstance(p, click.Option) for flag in p.opts}
    assert flags == {f"--{name}" for name in OPTIONS}


def test_the_help_states_the_defaults_and_the_modes():
    text = " ".join(command.get_help(command.make_context(NAME, [])).split())
    for name, default in zip(NAMES, DEFAULTS, strict=True):
        assert f" {name} {default} " in f"{text} ".replace(", ", " , ")
    for name, modes in MODES.items():
        assert f"{name} " + ", ".join(f"{i} {mode}" for i, mode in enumerate(modes)) in text
    config, values = ContinuousBenchConfig(), command.make_context(NAME, []).params
    for option in (p for p in command.params if isinstance(p, click.Option)):
        assert option.help and (option.help.endswith((".", "]")) or option.name == "json_file")
        if values[option.name] is not None and hasattr(config, option.name):
            assert values[option.name] == getattr(config, option.name), option.name


# ---- what is printed


@pytest.mark.parametrize("mode", [[], [*"10000110", "--backend", "cpu"], [*"10000111"]])
def test_the_keys_of_the_reference_are_printed_in_its_order(run, mode):
    lines, _, ended = run(*TINY, *mode)
    assert ended.stderr == ""
    kind = "dense_cpu" if mode[7:8] == ["1"] else "sparse"
    keys = list(lines)
    wanted = [*NAMES, f"continuous_{kind}_available", "total_generated_tokens"]
    wanted += [f"continuous_{kind}_{key}" for key in LABEL_KEYS]
    wanted += [f"serial_{kind}_{key}" for key in LABEL_KEYS]
    wanted.append("continuous_vs_serial_speedup")
    assert [key for key in keys if key in wanted] == wanted
    assert keys[-2:] == ["continuous_vs_serial_speedup_including_admission", wanted[-1]]
    assert ended.stdout.splitlines()[-1].startswith("continuous_vs_serial_speedup=")
    own = [f"{run}_{kind}_{key}" for run in ("continuous", "serial") for key in OWN_KEYS]
    own += [f"serving_{key}" for key in VLLM_KEYS]
    assert set(own) <= set(keys) and len(set(keys)) == len(ended.stdout.splitlines())


def test_the_configuration_is_echoed_with_the_names_of_the_modes(run):
    lines, record, _ = run(*TINY, "0", "0", "1", "0", "1", "2", "0", "dense_gpu", "--no-serial")
    shown = ["cpu_cache", "0", "1", "0", "1", "no_outputs", "host_wall", "dense_gpu"]
    assert [lines[name] for name in NAMES] == TINY + shown
    assert lines["continuous_dense_cpu_avg_score_ms"] == "nan"  # steps alone were timed
    assert float(lines["continuous_dense_cpu_avg_step_ms"]) > 0
    assert not any(key.startswith(("serial_", "continuous_vs")) for key in lines)
    assert record["config"]["run_batch_output_mode"] == "no_outputs"


@pytest.mark.parametrize("argument", MODES)
def test_modes_are_given_by_code_or_by_name(monkeypatch, capsys, argument):
    configs = []

    def stop(config, *arguments, **options):
        configs.append(config)
        raise ValueError("stopped")

    monkeypatch.setattr(module, "run_continuous_bench", stop)
    for code, name in enumerate(MODES[argument]):
        for given in (code, name):
            run_here(command, with_argument(argument, given), capsys)
            assert getattr(configs.pop(), argument) == name


def test_the_record_has_every_printed_key(run):
    lines, record, _ = run(*TINY, "--goodput", "ttft:10000")
    head = {"schema_version", "command", "config", "workload", "environment", "results"}
    assert set(record) == head and record["command"].startswith(NAME)
    results, config = record["results"], record["config"]
    assert set(VLLM_KEYS) <= set(results["serving"])
    for key in lines:
        places = (results, config, config["model"])
        found = [place for place in places if key in place]
        found += [results["serving"]] if key.removeprefix("serving_") in results["serving"] else []
        found += [record["workload"]] if key.removeprefix("workload_") in record["workload"] else []
        assert found, key
    assert results["serving"]["request_goodput"] > 0


def test_what_is_nan_is_null_in_the_record(run):
    lines, record, _ = run("2", "1", "0", "3", "3", "1", "1", *TINY[7:], "--no-serial")
    assert lines["serving_mean_tpot_ms"] == "nan"
    assert record["results"]["serving"]["mean_tpot_ms"] is None


def test_the_report_is_for_a_reader(run):
    _, _, ended = run(*TINY, "--report", "--goodput", "e2el:10000", "--kv-budget", "44tok")
    titles = ["Continuous Batching", "Time of the Loop", "KV Cache", "Latency", "Requests"]
    assert re.findall(r"^== (.+) ==$", ended.stdout, re.MULTILINE) == titles
    assert max(map(len, ended.stdout.splitlines())) <= 100
    for stage in (*STAGES, "other"):
        assert re.search(rf"^- {stage} +[\d.]+ \(\d+%\)", ended.stdout, re.MULTILINE)
    assert re.search(r"^\d completed, 0 rejected", ended.stdout, re.MULTILINE)


def test_progress_is_shown_on_a_terminal_only():
    terminal, stderr = pty.openpty()
    fcntl.ioctl(stderr, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    ended = run_script(NAME, *TINY, *ONE_THREAD, stderr=stderr)
    os.write(stderr, b"end")  # else reading nothing would wait
    shown = os.read(terminal, 1 << 16).decode()
    os.close(stderr)
    os.close(terminal)
    assert ended.status == 0 and "tok" in shown and "continuous_sparse" in shown
    assert "serial_sparse" in shown and "compiling" in shown


# ---- bad arguments


@pytest.mark.parametrize("value", ["x", "1.5", "", -1, 10**30])
@pytest.mark.parametrize("name", NAMES)
def test_an_argument_that_means_nothing_is_refused_by_name(refused, name, value):
    message = refused("--", *with_argument(name, value))
    assert name in message.lower()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (with_argument("num_requests", 0), ["num_requests: got 0"]),
        (with_argument("min_prompt_tokens", 41), ["min_prompt_tokens: got 41", "40"]),
        (with_argument("min_decode_steps", 6), ["min_decode_steps: got 6", "5"]),
        (with_argument("preadmit_prompts", 2), ["preadmit_prompts: got 2"]),
        (with_argument("admission_mode", 3), ["admission_mode: got", "0 or cpu_cache"]),
        (with_argument("benchmark_mode", "dense"), ["benchmark_mode", "1 or dense_gpu"]),
        ([*TINY, "0", "0", "0", "1"], ["gpu_synthetic_decode_append: got 1", "cpu_cache"]),
        ([*TINY, "1", "1", "--prefill", "packed"], ["preadmit_prompts: got 1", "--prefill"]),
        ([*TINY, "1", "1", "--preempt"], ["preadmit_prompts: got 1", "--preempt"]),
        ([*TINY, "1", "0", "0", "0", "1", "--preempt"], ["lazy_release: got 1", "--preempt"]),
        ([*TINY, *"10000111", "--gate-tokens", "9"], ["gate_tokens: got 9", "dense"]),
        ([*TINY, "1", "1", "--kv-budget", "40tok"], ["preadmit_prompts", "KV budget has 10"]),
        ([*TINY, "--num-kv-heads", "3"], ["num_kv_heads", "3"]),
        ([*TINY, "--step-ms", "2"], ["step_ms: got 2.0", "--clock virtual"]),
        ([*TINY, *SECONDS, "--step-ms", "0"], ["step_ms: got 0.0"]),
        ([*TINY, *SECONDS, "--step-ms", "nan"], ["step_ms: got nan"]),
        ([*TINY, "--clock", "wall"], ["--clock wall", "--trace"]),
        ([*TINY, "--clock", "virtual"], ["--clock virtual", "--request-rate"]),
        ([*TINY, *SECONDS, "--clock", "steps"], ["--clock steps", "seconds"]),
        ([*TINY, *SECONDS, "--trace", "x"], ["--trace and --request-rate"]),
        ([*TINY, "--request-rate", "0"], ["request_rate: got 0"]),
        ([*TINY, "--request-rate", "nan"], ["request_rate: got nan"]),
        ([*TINY, *SECONDS, "--burstiness", "-1"], ["burstiness: got -1"]),
        ([*TINY, "--burstiness", "2"], ["--burstiness goes with --request-rate"]),
        ([*TINY, "--limit", "2"], ["--limit goes with --trace"]),
        ([*TINY, *SECONDS, "--time-scale", "2"], ["--time-scale goes with --trace"]),
        ([*TINY, "--prefill-chunk-tokens", "8"], ["--prefill-chunk-tokens goes with --prefill"]),
        ([*TINY, "--prefill", "packed", "--prefill-chunk-tokens", "0"], ["chunk_tokens: got 0"]),
        ([*TINY, "--kv-budget", "many"], ["kv_budget: got 'many'", "20000tok"]),
        ([*TINY, "--kv-budget", "1"], ["kv_budget", "at least one page"]),
        ([*TINY, "--goodput", "ttft"], ["goodput: got 'ttft'", "ttft:500"]),
        ([*TINY, "--goodput", ""], ["goodput"]),
        ([*TINY, "--json", "/missing/r.json"], ["--json", "/missing"]),
        ([*TINY, "--timeline", "/missing/t.json"], ["--timeline", "/missing"]),
        ([*TINY, *"10000110", "1"], ["unexpected extra argument"]),
        (["10", "10", "0", "2000000000", "2000000000", "--kv-budget", "unlimited"], ["bytes"]),
        ([*TINY, "--prefill", "whole"], ["--prefill", "blocking"]),
    ],
    ids=lambda value: " ".join(map(str, value))[-60:],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_any_work(refused, arguments, words):
    refused(*arguments, words=words)


def test_a_size_beyond_memory_is_refused_with_its_bytes(refused):
    message = refused(
        "10", "10", "0", "2000000000", "2000000000", "16", "16", "--kv-budget", "unlimited"
    )
    needed = int(re.search(r"needs ([\d,]+) bytes", message)[1].replace(",", ""))
    assert (
        needed > 10 * 2_000_000_000 * 2 * 4 * 32 * 128 and "kv_budget: got 'unlimited'" in message
    )


# ---- memory budgets


@pytest.mark.parametrize(
    ("budget", "pages"),
    [("unlimited", None), ("48tok", 12), ("20000", 17), ("1.5Ki", 1), ("auto", ...)],
)
def test_a_budget_is_bytes_or_tokens_or_what_there_is(run, budget, pages):
    lines, record, _ = run(*TINY, "--kv-budget", budget, "--no-serial")
    got = record["results"]["kv_budget_pages"]
    assert lines["kv_budget_pages"] == str(got).lower()
    assert got > 100 if pages is ... else got == pages
    serving = record["results"]["serving"]
    assert serving["completed"] + serving["rejected"] == 6 and (serving["rejected"] == 0) == (
        budget not in ("1.5Ki",)
    )
    assert int(lines["continuous_sparse_peak_pages"]) <= (got or 10**9)


def test_a_request_that_never_fits_is_rejected_with_the_reason(run):
    lines, record, ended = run(*TINY, "--kv-budget", "40tok")
    rejected = int(lines["serving_rejected"])
    assert rejected and int(lines["serving_completed"]) == 6 - rejected
    assert "the KV budget has 10" in lines["serving_rejections"]
    assert len(record["results"]["serving"]["rejections"]) == rejected
    report = run(*TINY, "--kv-budget", "1.5Ki", "--report")[2].stdout
    assert "6 rejected" in report and "and 3 more" in report


# ---- seconds


@pytest.mark.parametrize(
    ("sample", "kind"),
    [("azure.csv", "azure"), ("mooncake.jsonl", "mooncake"), ("burstgpt.csv", "burstgpt")],
)
def test_a_trace_is_replayed_with_every_row_accounted_for(run, sample, kind):
    arguments = ["--max-context", "600", "--over", "clip", "--trace", SAMPLES / sample]
    lines, record, _ = run(*TINY[:7], "7", "1", "16", "16", "2", *arguments, "--time-scale", "0.5")
    workload, serving = record["workload"], record["results"]["serving"]
    assert workload["name"] == "trace" and lines["workload_format"] == kind
    assert workload["rows_read"] == workload["emitted"] + sum(workload["dropped"].values())
    assert re.fullmatch("[0-9a-f]{64}", lines["workload_sha256"])
    assert serving["completed"] == workload["emitted"] == int(lines["num_requests"]) > 0
    assert serving["clock"] == "virtual" and "min_prompt_tokens" not in lines
    assert not any(key.startswith("serial_") for key in lines)
    named = run(*TINY, *arguments, "--trace-format", kind, "--limit", "1")[1]["workload"]
    assert named["emitted"] == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty"]),
        (b"a,b,c\n1,2,3\n", ["want"]),
        (b"\xff\xfe\x00", ["UTF-8"]),
        ((SAMPLES / "azure.csv").read_bytes()[:-20], ["trace.csv:4: got"]),
        (b"TIMESTAMP,ContextTokens,GeneratedTokens\n", ["want a row"]),
        (b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,0,4\n",
         ["1 rows, none of them usable (1 no prompt tokens)"]),
        (b"x" * 200_000, []),
    ],
    ids=["empty", "columns", "not utf-8", "truncated", "no rows", "no usable rows", "long line"],
)  # fmt: skip
def test_a_file_that_is_no_trace_is_refused(refused, tmp_path, content, words):
    file = tmp_path / "trace.csv"
    file.write_bytes(content)
    refused(*TINY, "--trace", file, words=["trace", *words])


def test_a_trace_that_is_not_there_is_refused(refused, tmp_path):
    refused(*TINY, "--trace", tmp_path / "none.csv", words=["none.csv"])
    refused(*TINY, "--trace", tmp_path, words=[tmp_path.name])


def test_a_virtual_clock_with_a_given_step_gives_the_same_again(run):
    arguments = [*TINY, *SECONDS, "--burstiness", "0.5", "--step-ms", "3", "--goodput", "ttft:9"]
    first, second = (run(*arguments)[1]["results"]["serving"] for _ in range(2))
    assert first == second and first["clock"] == "virtual"
    assert first["mean_tpot_ms"] == pytest.approx(3) and first["request_goodput"] > 0


def test_a_wall_clock_waits_for_arrivals(run):
    lines, record, _ = run(*TINY, "--request-rate", "100", "--clock", "wall")
    assert lines["clock"] == "wall" and record["results"]["serving"]["completed"] == 6
    idle_ms = record["results"]["continuous_sparse_idle_ms"]
    assert 1 < idle_ms < record["results"]["continuous_sparse_total_ms"] < 10_000


def test_a_timeline_has_the_steps_with_their_stages(run, tmp_path):
    file = tmp_path / "timeline.json"
    lines, _, _ = run(*TINY, "--prefill", "packed", "--timeline", file)
    events = json.loads(file.read_text())["traceEvents"]
    steps = {event["args"]["step"] for event in events if event["ph"] == "X"}
    assert steps == set(range(int(lines["continuous_sparse_steps"])))
    assert {event["name"] for event in events if event["ph"] == "X"} <= set(STAGES)


# ---- the README


def readme_blocks(kind):
    """Return the blocks of a kind in the section about this command."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(r"^## Continuous batching\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)[1]
    return re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL)


@pytest.mark.slow
def test_the_commands_of_the_readme_run_and_print_what_it_shows():
    lines = [line for block in readme_blocks("bash") for line in block.splitlines()]
    outputs = []
    for line in lines:
        name, *arguments = shlex.split(line)
        ended = run_script(name, *arguments, *ONE_THREAD, cwd=ROOT)
        assert name == NAME and (ended.status, ended.stderr) == (0, "")
        outputs.append(ended.stdout)
    [shown] = readme_blocks("console")
    titles = [re.findall(r"^(?:== .+ ==|[-\w/]+)", text, re.M) for text in (shown, outputs[0])]
    assert titles[0] == titles[1] and "== Requests ==" in titles[0]
    assert all("== Latency ==" in output for output in outputs[:2])
    assert "continuous_sparse_total_ms=" in outputs[2]


def test_the_readme_explains_keys_that_are_printed(run):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    keys = " ".join(run(*TINY)[0])
    [*named] = re.findall(r"^\| (`[_s].+?) \|", text.split("## Continuous batching")[1], re.M)
    for key in re.findall(r"`(\w+)`", " ".join(named)):
        assert key in keys, key
    assert len(named) >= 8
