"""The commands that a sweep runs: what they take, as parameters and as a command line."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property

from numbadsd.config import ContinuousBenchConfig, DecodeBenchConfig, check
from numbadsd.decode.path import PATHS

# One parameter for a minimum and a maximum that are the same.
BOTH = ("context_tokens", "prompt_tokens", "decode_steps")

# Short names, for `--grid` and for the names of points.
ALIASES = {
    "context": "context_tokens",
    "batch": "batch_size",
    "top_k": "top_k_pages",
    "page": "page_size",
    "heads": "num_heads",
    "kv_heads": "num_kv_heads",
    "prompt": "prompt_tokens",
    "decode": "decode_steps",
    "requests": "num_requests",
    "active": "max_active_requests",
    "window": "arrival_window",
}
_SHORT = {name: alias for alias, name in ALIASES.items()}
_FLAGS = {
    "num_sink_pages": ("--sink-pages", None),
    "num_recent_pages": ("--recent-pages", None),
    "fused": ("--fused", "--staged"),
    "preempt": ("--preempt", None),
    "serial": ("--serial", "--no-serial"),
}


@dataclass(frozen=True)
class Command:
    """A benchmark command.

    Attributes
    ----------
    name : str
        The console script.
    config_class : type
        Its configuration; the fields up to `last_positional` are its arguments in order.
    extras : dict
        Options that are no field of the configuration, with their types.
    hidden : tuple of str
        Fields that only mean something together with options that a sweep does not give.
    """

    name: str
    config_class: type
    last_positional: str
    extras: Mapping[str, type]
    hidden: tuple[str, ...] = ()

    @cached_property
    def types(self) -> dict[str, object]:
        """The parameters and their types, in the order of the command line."""
        names = {f.name: f.type for f in fields(self.config_class) if f.name not in self.hidden}
        both = {name: int for name in BOTH if f"min_{name}" in names}
        return both | names | {n: t for n, t in self.extras.items() if n not in names}

    @cached_property
    def positionals(self) -> list[str]:
        """The names of the positional arguments."""
        names = [field.name for field in fields(self.config_class)]
        return names[: names.index(self.last_positional) + 1]

    def config(self, parameters: Mapping):
        """Return the configuration of a point; ValueError where it is none."""
        values = dict(parameters)
        for name in values:
            want = f"one of {', '.join(self.types)}"
            check(name in self.types, "parameter", name, want)
        for name in BOTH:
            if name in values:
                ends = (f"min_{name}", f"max_{name}")
                given = next((end for end in ends if end in values), None)
                check(given is None, name, values[name], f"nothing beside {given}")
                values |= dict.fromkeys(ends, values.pop(name))
        known = {field.name for field in fields(self.config_class)}
        values = {name: value for name, value in values.items() if name in known}
        for name, value in values.items():
            if "tuple" in str(self.types[name]) and value is not None:
                values[name] = tuple(value.split(","))
        for path in values.get("paths") or ():
            check(path in PATHS, "paths", path, f"some of {', '.join(PATHS)}")
        return self.config_class(**values)

    def argv(self, parameters: Mapping) -> list[str]:
        """Return the arguments for a point: all positional ones, and the options that it sets."""
        config = self.config(parameters)
        arguments = [str(getattr(config, name)) for name in self.positionals]
        for name in self.types:
            if name not in parameters or name in BOTH or name in self.positionals:
                continue
            arguments += _option(name, getattr(config, name, parameters[name]))
        return arguments


def merge(*layers: Mapping) -> dict:
    """Return parameters of which later ones win; a value for both ends replaces both."""
    merged = {}
    for layer in layers:
        for name in BOTH:
            ends = (f"min_{name}", f"max_{name}")
            if name in layer:
                merged = {key: value for key, value in merged.items() if key not in ends}
            elif name in merged and any(end in layer for end in ends):
                merged |= dict.fromkeys(ends, merged.pop(name))
        merged |= layer
    return merged


def short_name(parameter: str) -> str:
    """Return the short name of a parameter, as in `--grid`."""
    return _SHORT.get(parameter, parameter)


def _option(name: str, value) -> list[str]:
    """Return a parameter as an option."""
    flag, negative = _FLAGS.get(name, (f"--{name.replace('_', '-')}", None))
    if isinstance(value, bool):
        chosen = flag if value else negative
        return [chosen] if chosen else []
    text = ",".join(value) if isinstance(value, tuple) else str(value)
    return [flag, text]


COMMANDS = {
    command.name: command
    for command in (
        Command("dsd_bench", DecodeBenchConfig, "page_size", extras={"threads": int}),
        Command(
            "dsd_continuous_bench",
            ContinuousBenchConfig,
            "benchmark_mode",
            extras={"threads": int},
            hidden=("clock", "step_ms"),  # of arrivals in seconds
        ),
    )
}
