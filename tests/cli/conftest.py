"""What tests of `dsd_bench` share. It loads before tests/conftest.py has configured anything."""

import json

import pytest
from click.testing import CliRunner


@pytest.fixture
def invoke(tmp_path, num_threads):
    """Return a function that runs the command with --json; gives its output and its record."""
    from numbadsd.cli.dsd_bench import command

    def run(*arguments):
        path = tmp_path / "record.json"
        result = CliRunner().invoke(command, [*map(str, arguments), "--json", str(path)])
        assert result.exit_code == 0, result.output
        return result.output, json.loads(path.read_text(encoding="utf-8"))

    return run
