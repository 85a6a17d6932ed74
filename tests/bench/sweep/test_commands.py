"""Parameters of a point: as a configuration, and as the command line of the real commands."""

import dataclasses

import pytest

from numbadsd.bench.sweep.commands import ALIASES, BOTH, COMMANDS, merge, short_name
from numbadsd.cli import dsd_bench, dsd_continuous_bench

DECODE, CONTINUOUS = COMMANDS["dsd_bench"], COMMANDS["dsd_continuous_bench"]
MODULES = {"dsd_bench": dsd_bench, "dsd_continuous_bench": dsd_continuous_bench}


def parsed(command, parameters):
    """Return what the real command reads from a point's arguments."""
    real = MODULES[command.name].command
    with real.make_context(command.name, command.argv(parameters)) as context:
        return context.params


@pytest.mark.parametrize("command", COMMANDS.values(), ids=list(COMMANDS))
def test_the_positional_arguments_are_those_of_the_command(command):
    assert command.last_positional == MODULES[command.name].LAST_POSITIONAL
    arguments = command.argv({})
    assert len(arguments) == len(command.positionals)
    config = command.config({})
    read = parsed(command, {})
    for name in command.positionals:
        assert str(read[name]) == str(getattr(config, name))


DECODE_VALUES = {
    "top_k_pages": 3, "batch_size": 2, "min_context_tokens": 20, "max_context_tokens": 50,
    "seed": 9, "iterations": 2, "warmup": 0, "num_heads": 4, "head_dim": 32, "page_size": 8,
    "num_kv_heads": 2, "kv_dtype": "float16", "summary": "minmax", "share": "kv_head",
    "num_sink_pages": 1, "num_recent_pages": 2, "data": "structured", "fused": False,
    "paths": "dense_cpu,sparse_cpu",
}  # fmt: skip
CONTINUOUS_VALUES = {
    "num_requests": 9, "max_active_requests": 3, "arrival_window": 4, "min_prompt_tokens": 8,
    "max_prompt_tokens": 40, "min_decode_steps": 2, "max_decode_steps": 5, "seed": 11,
    "num_heads": 4, "head_dim": 32, "page_size": 8, "top_k_pages": 3, "admission_mode": "cpu_cache",
    "preadmit_prompts": 0, "precompute_decode_payloads": 1, "gpu_synthetic_decode_append": 0,
    "lazy_release": 0, "run_batch_output_mode": "full_outputs",
    "run_batch_timing_mode": "host_wall", "benchmark_mode": "sparse", "num_kv_heads": 2,
    "kv_dtype": "bfloat16", "summary": "mean_std", "share": "query_head", "num_sink_pages": 1,
    "num_recent_pages": 1, "backend": "cpu", "prefill": "packed", "prefill_chunk_tokens": 32,
    "admission": "pack", "preempt": True, "kv_budget": "2G", "gate_tokens": 30, "serial": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "values"), [(DECODE, DECODE_VALUES), (CONTINUOUS, CONTINUOUS_VALUES)]
)
def test_every_parameter_reaches_the_command(command, values):
    known = {field.name for field in dataclasses.fields(command.config_class)}
    assert known - set(values) <= {*command.hidden, "versus"}
    read = parsed(command, values)
    config = command.config(values)
    for name in values:
        assert read[name] == getattr(config, name), name


def test_what_is_no_field_reaches_the_command_as_well(num_threads):
    assert DECODE.argv({"threads": 1})[-2:] == ["--threads", "1"]
    assert parsed(DECODE, {"threads": 1})["threads"] == 1
    assert DECODE.argv({"versus": "torch"})[-2:] == ["--versus", "torch"]
    assert parsed(DECODE, {"versus": "torch"})["versus"] == "torch"


def test_options_that_a_point_does_not_set_are_left_to_the_command():
    assert not [a for a in DECODE.argv({"context_tokens": 64}) if a.startswith("--")]
    assert "--preempt" not in CONTINUOUS.argv({"preempt": False})
    assert CONTINUOUS.argv({"serial": True})[-1] == "--serial"
    assert DECODE.argv({"fused": True})[-1] == "--fused"


def test_one_value_for_both_ends_is_a_minimum_and_a_maximum():
    config = DECODE.config({"context_tokens": 64})
    assert (config.min_context_tokens, config.max_context_tokens) == (64, 64)
    config = CONTINUOUS.config({"prompt_tokens": 32, "decode_steps": 4})
    assert (config.min_prompt_tokens, config.max_prompt_tokens) == (32, 32)
    assert (config.min_decode_steps, config.max_decode_steps) == (4, 4)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"contexts": 5}, ["parameter", "contexts", "context_tokens"]),
        ({"prompt_tokens": 5}, ["parameter", "prompt_tokens"]),
        ({"context_tokens": 5, "max_context_tokens": 9}, ["context_tokens", "max_context_tokens"]),
        ({"page_size": 0}, ["page_size"]),
        ({"paths": "dense_cpu,tpu"}, ["paths", "tpu"]),
        ({"head_dim": 24}, ["head_dim", "24"]),
    ],
)
def test_parameters_that_are_no_configuration_are_refused_by_name(parameters, words):
    with pytest.raises(ValueError) as error:
        DECODE.config(parameters)
    assert all(word in str(error.value) for word in words)


def test_a_later_value_for_both_ends_replaces_the_ends_and_reverse():
    ends = {"min_prompt_tokens": 1, "max_prompt_tokens": 9, "seed": 3}
    assert merge(ends, {"prompt_tokens": 5}) == {"seed": 3, "prompt_tokens": 5}
    both = {"prompt_tokens": 5, "seed": 3}
    assert merge(both, {"max_prompt_tokens": 7}) == {
        "seed": 3, "min_prompt_tokens": 5, "max_prompt_tokens": 7,
    }  # fmt: skip
    assert merge({"seed": 1}, {"seed": 2}, {}) == {"seed": 2}


def test_every_alias_names_a_parameter():
    for alias, name in ALIASES.items():
        assert any(name in command.types for command in COMMANDS.values()), alias
        assert short_name(name) == alias
    assert short_name("kv_dtype") == "kv_dtype"
    assert set(BOTH) <= set(ALIASES.values())
