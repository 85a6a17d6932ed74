"""Arguments that commands share; names, order and defaults come from the configuration."""

from dataclasses import fields
from pathlib import Path

import click
import numba

SEED = click.IntRange(0, 2**32 - 1)


def positional(config_class, last: str, types: dict | None = None):
    """Return a decorator: the fields of `config_class` up to `last`, as optional arguments.

    They are integers but for those that `types` names.
    """
    names = [field.name for field in fields(config_class)]
    chosen = fields(config_class)[: names.index(last) + 1]

    def decorate(function):
        for field in reversed(chosen):
            kind = (types or {}).get(field.name, int)
            argument = click.argument(field.name, type=kind, default=field.default, required=False)
            function = argument(function)
        return function

    return decorate


def positional_help(config_class, last: str) -> str:
    """Return the arguments and their defaults, one a line, for a command's help."""
    names = [field.name for field in fields(config_class)]
    chosen = fields(config_class)[: names.index(last) + 1]
    width = 2 + max(len(field.name) for field in chosen)
    return "\n".join(f"  {field.name:<{width}}{field.default}" for field in chosen)


def choice_option(name: str, values, text: str, *variable: str):
    """Return an option with a fixed set of values, the first of which is the default."""
    names = [getattr(value, "value", value) for value in values]
    return click.option(
        name, *variable, type=click.Choice(names), default=names[0], show_default=True, help=text
    )


def set_threads(ctx, param, value: int | None) -> int | None:
    """Use `value` threads in every parallel kernel."""
    if value is not None:
        limit = numba.config.NUMBA_NUM_THREADS
        if not 1 <= value <= limit:
            raise click.BadParameter(f"got {value}, want 1 .. {limit} (the processors here)")
        numba.set_num_threads(value)
    return value


threads_option = click.option(
    "--threads", type=int, callback=set_threads, help="Threads of the CPU kernels [all]."
)
seed_option = click.option(
    "--seed", "seed_option", type=SEED, help="The same as the argument seed, where that is awkward."
)
json_option = click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the record, one line of JSON, to this file.",
)
