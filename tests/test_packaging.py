"""The installed package: what a wheel holds, what an import loads, which commands there are."""

import configparser
import json
import os
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from shutil import copy, copytree, ignore_patterns

import pytest

import numbadsd

ROOT = Path(__file__).parents[1]
ALWAYS_LOADED = ("exchange", "launch", "runtime", "switch")
COMMANDS = (
    "dsd_bench", "dsd_compare", "dsd_continuous_bench", "dsd_demo", "dsd_kernels", "dsd_report",
    "dsd_sweep", "dsd_topk_bench",
)  # fmt: skip

DATA_FILES = (".json", ".html", ".css", ".js")

# `import numbadsd` must stay fast, and must work where these are not installed.
NOT_IMPORTED = (
    "torch", "transformers", "ray", "numba.cuda", "elftools", "matplotlib", "click", "tabulate",
)  # fmt: skip


def setup_cfg() -> configparser.ConfigParser:
    """Return the package's own description."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def run_python(code: str, folder: Path, **environment: str) -> str:
    """Return the standard output of a fresh interpreter that runs `code` in `folder`."""
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build a wheel from a copy of what it is made of; nothing is downloaded."""
    source = tmp_path_factory.mktemp("source")
    for folder in ("numbadsd", "cli", "plots"):
        copytree(ROOT / folder, source / folder, ignore=ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        copy(ROOT / name, source)
    output = tmp_path_factory.mktemp("wheel")
    code = "import sys; from setuptools import build_meta as b; b.build_wheel(sys.argv[1])"
    run_python(code.replace("sys.argv[1]", repr(str(output))), source)
    (built,) = output.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def loaded_modules(tmp_path_factory) -> set[str]:
    """Return what a fresh interpreter has loaded after `import numbadsd`."""
    code = "import json, sys, numbadsd; print(json.dumps(list(sys.modules)))"
    return set(json.loads(run_python(code, tmp_path_factory.mktemp("empty"))))


def test_import_loads_nothing_that_only_a_command_or_a_gpu_needs(loaded_modules):
    assert "numbadsd" in loaded_modules
    assert not loaded_modules.intersection(NOT_IMPORTED)


def test_import_loads_no_command_and_no_optional_part(loaded_modules):
    parts = ("numbadsd.cli", "numbadsd.bench", "numbadsd.integration", "numbadsd.kernels.cuda.")
    loaded = {name for name in loaded_modules if name.startswith(parts)}
    # what tells whether there is a GPU or an array of one, and imports nothing of CUDA itself
    assert loaded <= {f"numbadsd.kernels.cuda.{name}" for name in ALWAYS_LOADED}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_an_entry_point_that_loads(command):
    (entry,) = metadata.entry_points(group="console_scripts", name=command)
    assert entry.value == f"numbadsd.cli.{command}:main"
    assert callable(entry.load())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_installed_beside_the_interpreter(command):
    assert (Path(sys.executable).parent / command).exists()


def test_every_command_file_is_an_entry_point():
    files = {file.stem for file in (ROOT / "cli").glob("dsd_*.py")}
    assert files == set(COMMANDS)


def test_the_version_has_one_source():
    assert numbadsd.__version__ == metadata.version("numbadsd")
    assert f"## [{numbadsd.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_linter_has_one_version():
    lint = setup_cfg()["options.extras_require"]["lint"].strip()
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    assert tox["testenv:lint"]["deps"].strip() == lint


def test_a_wheel_adds_one_top_level_name(wheel):
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert names == {"numbadsd", f"numbadsd-{numbadsd.__version__}.dist-info"}


def test_a_wheel_holds_every_source_file(wheel):
    sources = {str(file.relative_to(ROOT)) for file in (ROOT / "numbadsd").rglob("*.py")}
    for folder in ("cli", "plots"):
        sources |= {f"numbadsd/{file.relative_to(ROOT)}" for file in (ROOT / folder).rglob("*.py")}
    for kind in DATA_FILES:
        sources |= {str(file.relative_to(ROOT)) for file in (ROOT / "numbadsd").rglob(f"*{kind}")}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if name.endswith((".py", *DATA_FILES))}
    assert names == sources


def test_a_wheel_imports_outside_the_checkout(wheel, tmp_path):
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    code = "import numbadsd.cli; print(numbadsd.__file__); print(numbadsd.cli.__file__)"
    files = run_python(code, tmp_path, PYTHONPATH=str(installed)).split()
    assert all(Path(file).is_relative_to(installed) for file in files)


def test_a_wheel_asks_for_what_setup_cfg_lists(wheel):
    with zipfile.ZipFile(wheel) as archive:
        info = f"numbadsd-{numbadsd.__version__}.dist-info/METADATA"
        lines = archive.read(info).decode().splitlines()
    listed = setup_cfg()["options"]["install_requires"].split()
    assert [f"Requires-Dist: {name}" in lines for name in listed] == [True] * len(listed)
    extras = ("cuda", "cuda12", "cuda13", "sim", "test")
    assert {f"Provides-Extra: {name}" for name in extras} <= {*lines}
