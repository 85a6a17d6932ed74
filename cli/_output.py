"""Where commands put what they found."""

from pathlib import Path

import click

from numbadsd.bench.record import check_writable


def check_json_file(path: Path | None) -> None:
    """Raise UsageError before any work when the record could not be written."""
    if path is None:
        return
    try:
        check_writable(path)
    except OSError as error:
        raise click.UsageError(f"--json: cannot write {path}: {error.strerror or error}") from None
