"""The README tells the truth: what it shows is run."""

import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = Path(sysconfig.get_path("scripts"))
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line for kind, text in BLOCKS if kind == "" for line in text.splitlines() if line.strip()
]
OWN_COMMANDS = [line for line in COMMANDS if line.startswith("dsd_")]


def test_every_command_is_one_that_is_run_here_or_by_the_check_of_a_clean_checkout():
    others = [line for line in COMMANDS if line not in OWN_COMMANDS]
    assert others == [
        "python -m venv .venv && .venv/bin/pip install . && .venv/bin/dsd_bench",
        "python -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/python -m pytest",
    ]
    assert len(OWN_COMMANDS) >= 2


@pytest.mark.parametrize("command", OWN_COMMANDS)
def test_a_command_of_the_readme_prints_a_verdict(command):
    name, *arguments = shlex.split(command)
    done = subprocess.run(
        [str(SCRIPTS / name), *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"== Verdict ==\nSparse \w+ ", done.stdout)


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
