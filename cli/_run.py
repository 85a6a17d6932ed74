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
        # not command.main: it answers a closed pipe and Ctrl-C in its own way
        given = list(sys.argv[1:] if arguments is None else arguments)
        with command.make_context(name, given) as context:
            command.invoke(context)
        sys.stdout.flush()
        status = 0
    except click.exceptions.Exit as end:  # --help
        status = _flushed(name, end.exit_code)
    except (KeyboardInterrupt, click.Abort):
        status = _fail(name, "interrupted", INTERRUPT_STATUS)
    except BrokenPipeError:
        status = _broken_pipe(name)
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


def _flushed(name: str, status: int) -> int:
    """Return `status` once everything is written, or what a closed pipe gives."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return _broken_pipe(name)
    return status


def _broken_pipe(name: str) -> int:
    """Point stdout at nothing, so that the flush at exit cannot fail again; say what happened."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    message = "stdout was closed before the report was complete"
    return _fail(name, message, BROKEN_PIPE_STATUS)


def _fail(name: str, message: str, status: int) -> int:
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    return status
