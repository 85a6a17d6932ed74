"""What the tests of `dsd_continuous_bench` share."""

from numbadsd.cli.dsd_continuous_bench import command
from tests.cli.process import read_record, run_here

NAME = "dsd_continuous_bench"
# 6 requests, 3 active, arrivals in 4 steps, prompts of 8 to 40 tokens, 2 to 5 steps
TINY = ["6", "3", "4", "8", "40", "2", "5", "7", "2", "16", "4", "3"]
ONE_THREAD = ["--threads", "1"]


def run_measured(capsys, path, *arguments, status=0):
    """Run the command here with --json; return its lines, its record and its output."""
    ended = run_here(command, [*arguments, *ONE_THREAD, "--json", path], capsys)
    assert ended.status == status, ended
    lines = dict(line.split("=", 1) for line in ended.stdout.splitlines() if "=" in line)
    return lines, read_record(path), ended
