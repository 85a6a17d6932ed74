"""How every command ends: one line on stderr and the right status, never a traceback."""

import os
import re
import sys

import click

from numbadsd.errors import NumbadsdError

USAGE_STATUS, INTERRUPT_STATUS, BROKEN_PIPE_STATUS = 2, 130, 141


def run_command(command: click.Command, arguments: list[str] | None = None) -> None:
    """Run a click command as a process: exits with 0, or 2, 130, 141 after one line on stderr."""
    name = command.name
    try:
        result = command.main(arguments, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
        status = result if isinstance(result, int) else 0
    except (KeyboardInterrupt, click.Abort):
        status = _fail(name, "interrupted", INTERRUPT_STATUS)
    except BrokenPipeError:
        _forget_stdout()
        message = "stdout was closed before the report was complete"
        status = _fail(name, message, BROKEN_PIPE_STATUS)
    except click.ClickException as error:
        status = _fail(name, _usage_message(error), USAGE_STATUS)
    except (ValueError, NumbadsdError, OSError, MemoryError) as error:
        status = _fail(name, str(error) or type(error).__name__, USAGE_STATUS)
    sys.exit(status)


def _usage_message(error: click.ClickException) -> str:
    """Return what is wrong; a negative number is no option."""
    number = getattr(error, "option_name", None)
    if number and re.fullmatch(r"-\d.*", number):
        return f"got {number}, want a number that is not negative"
    return error.format_message()


def _fail(name: str, message: str, status: int) -> int:
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    return status


def _forget_stdout() -> None:
    """Point stdout at nothing, so that the flush at exit cannot fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
