"""The README tells the truth: what it shows is run."""

import os
import re
import shlex
import subprocess
import sys
import sysconfig
from configparser import ConfigParser
from pathlib import Path

import pytest

from tests.cli.process import NO_GPU

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = Path(sysconfig.get_path("scripts"))
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line for kind, text in BLOCKS if kind == "" for line in text.splitlines() if line.strip()
]
OWN_COMMANDS = [line for line in COMMANDS if line.startswith("dsd_")]
GPU_COMMANDS = [line for line in OWN_COMMANDS if "_gpu" in line]
CPU_COMMANDS = [line for line in OWN_COMMANDS if "_gpu" not in line]


def run_command(command, folder=None, **environment):
    """Run a command of the README; returns what it prints."""
    name, *arguments = shlex.split(command)
    done = subprocess.run(
        [str(SCRIPTS / name), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_command_is_run_here_or_by_the_check_of_a_clean_checkout_or_installs():
    others = [line for line in COMMANDS if line not in OWN_COMMANDS]
    assert others == [
        "python -m venv .venv && .venv/bin/pip install . && .venv/bin/dsd_bench",
        "python -m venv .venv && .venv/bin/pip install -e '.[test]'"
        " && .venv/bin/python -m pytest -n 2",
        ".venv/bin/pip install '.[cuda]'",
    ]
    assert len(CPU_COMMANDS) >= 2


def test_every_file_that_is_shown_or_linked_exists():
    files = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert len([file for file in files if file.endswith(".png")]) == 2
    assert all((ROOT / file).is_file() for file in files)


def test_every_extra_that_is_named_exists():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    named = set(re.findall(r"\.\[(\w+)\]", README))
    assert {"test", "cuda"} <= named <= set(setup["options.extras_require"])


@pytest.mark.parametrize("command", CPU_COMMANDS)
def test_a_command_of_the_readme_prints_a_verdict(command):
    assert re.search(r"== Verdict ==\nSparse \w+ ", run_command(command))


@pytest.mark.parametrize("command", GPU_COMMANDS)
def test_a_gpu_command_of_the_readme_says_at_once_that_there_is_no_gpu(command):
    output = run_command(command, **NO_GPU)
    assert re.search(r"^dense_gpu, sparse_gpu unavailable: .+; .+", output, re.MULTILINE)
    assert "== Verdict ==\nNo verdict" in output


def test_the_sweep_commands_of_the_readme_run_one_after_the_other(tmp_path):
    blocks = [text.splitlines() for kind, text in BLOCKS if kind == "shell"]
    printed = [
        run_command(f"{command} --device cpu" if "dsd_sweep run" in command else command, tmp_path)
        for command in sum(blocks, [])
    ]
    assert len(printed) == 8 and all(printed)
    assert "3 of 3 points measured: first_sweep" in printed[1]
    assert "6 of 6 points measured: own_sweep" in printed[4]
    figures = tmp_path / "first_sweep" / "00_backend_total_time" / "figures"
    assert {file.suffix for file in figures.iterdir()} == {".png", ".svg"}
    assert (tmp_path / "first_sweep.html").stat().st_size > 100_000
    assert len(printed[5].splitlines()) == 14 and "--backend cpu" in printed[5]


@pytest.mark.gpu
@pytest.mark.parametrize("command", GPU_COMMANDS)
def test_a_gpu_command_of_the_readme_prints_a_verdict(command):
    output = run_command(command, NUMBA_ENABLE_CUDASIM="0")
    assert re.search(r"== Verdict ==\nSparse .* on the GPU", output)


def test_the_python_of_the_readme_runs_as_it_stands():
    (source,) = [text for kind, text in BLOCKS if kind == "python"]
    check = "\nassert result.outputs.shape == (1, 32, 128) and result.selected_pages.shape[2] == 64"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source + check], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_printed_output_has_the_sections_of_today():
    (output,) = [text for kind, text in BLOCKS if kind == "text"]
    from numbadsd.bench import report

    source = Path(report.__file__).read_text(encoding="utf-8")
    for title in re.findall(r"== (.+?) ==", output):
        assert f'"{title}"' in source
