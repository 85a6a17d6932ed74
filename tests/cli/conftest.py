"""What tests of `dsd_bench` share."""

import pytest
from click.testing import CliRunner

from numbadsd.cli.dsd_bench import command
from tests.cli.process import read_record


@pytest.fixture
def invoke(tmp_path, num_threads):
    """Return a function that runs the command with --json; gives its output and its record."""

    def run(*arguments):
        path = tmp_path / "record.json"
        result = CliRunner().invoke(command, [*map(str, arguments), "--json", str(path)])
        assert result.exit_code == 0, result.output
        return result.output, read_record(path)

    return run
