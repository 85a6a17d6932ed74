"""`dsd_demo`: a walk that says the same every time."""

import re

import pytest
from click.testing import CliRunner

from numbadsd.cli.dsd_demo import command
from tests.cli.process import (
    assert_complains,
    run_here,
    run_script,
    run_script_into_closed_pipe,
)


def output_of(*arguments):
    """Return what the command prints."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_walk_has_its_three_steps():
    output = output_of()
    assert [line[:2] for line in output.splitlines() if re.match(r"\d\. ", line)] == [
        "1.", "2.", "3.",
    ]  # fmt: skip
    assert "the planted needle" in output and "mass kept" in output


def test_every_kv_head_keeps_five_pages():
    rows = re.findall(r"^\d+ +-?\d+\.\d\d .*$", output_of(), re.MULTILINE)
    assert len(rows) == 13  # 200 tokens on pages of 16
    assert sum(row.count("*") for row in rows) == 2 * 5
    assert rows[0].count("*") == rows[-1].count("*") == 2  # sink and recent pages


def test_the_same_seed_prints_the_same_and_another_does_not():
    assert output_of() == output_of("--seed", 7)
    assert output_of("--seed", 0) != output_of()


def test_as_a_process_it_writes_to_stdout_only():
    ended = run_script("dsd_demo")
    assert ended.status == 0 and ended.stderr == ""
    assert ended.stdout == output_of()


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_one_screen(flag):
    ended = run_script("dsd_demo", flag)
    assert ended.status == 0 and ended.stderr == ""
    assert "--seed" in ended.stdout and len(ended.stdout.splitlines()) < 24


@pytest.mark.parametrize("seed", [-1, 10**30, "x", ""])
def test_a_seed_that_is_none_is_refused_by_name(seed, capsys):
    assert_complains(run_here(command, ["--seed", seed], capsys), "seed", name="dsd_demo")


@pytest.mark.parametrize("arguments", [["3"], ["--unknown"], ["--seed"]])
def test_bad_arguments_are_one_line(arguments, capsys):
    assert_complains(run_here(command, arguments, capsys), name="dsd_demo")


def test_a_closed_pipe_is_one_line_and_its_own_status():
    ended = run_script_into_closed_pipe("dsd_demo")
    assert_complains(ended, "stdout", status=141, name="dsd_demo")
