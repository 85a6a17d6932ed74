"""Own sweeps: the product of the axes that a line of text names.

    context=1k..128k:x2,batch=1,8,32,top_k=64

A comma separates values, and starts an axis where a `=` follows. Integers may end in k or M, times
1024; `a..b:x2` doubles, `a..b:+512` adds, both up to b. Other parameters take words.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import product
from math import prod

from numbadsd.bench.sweep.commands import ALIASES, BOTH, COMMANDS, Command, merge, short_name
from numbadsd.bench.sweep.points import Point
from numbadsd.bench.sweep.series import Series, base_parameters, make_point

NAME = "grid"
MAX_POINTS = 1000
_SUFFIX = {"": 1, "k": 1 << 10, "K": 1 << 10, "m": 1 << 20, "M": 1 << 20}
_INTEGER = re.compile(r"(\d{1,18})([kKmM]?)")
_RANGE = re.compile(r"(\w+)\.\.(\w+):([x+])(\w+)")
_BOOLS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def parse_grid(text: str, command: str) -> dict[str, list]:
    """Return the values of each axis, by parameter name, in order.

    Raises
    ------
    ValueError
        Naming the part of the text that is wrong.
    """
    axes, parameter = {}, None
    for token in text.split(","):
        key, has_key, word = token.rpartition("=")
        if has_key:
            parameter = _parameter(key.strip(), COMMANDS[command])
            if parameter in axes:
                raise ValueError(f"--grid: {key.strip()!r} is there twice")
            axes[parameter] = []
        elif parameter is None:
            raise ValueError(f"--grid: got {token!r}, want key=value[,value ...][,key=...]")
        axes[parameter] += _values(word.strip(), parameter, COMMANDS[command])
    for parameter, values in axes.items():
        for value in values:
            if values.count(value) > 1:
                raise ValueError(f"--grid: {short_name(parameter)} has {value} twice")
    count = prod(map(len, axes.values()))
    if count > MAX_POINTS:
        raise ValueError(f"--grid: {count:,} points, at most {MAX_POINTS:,} make a sweep")
    return axes


def _parameter(key: str, command: Command) -> str:
    """Return the parameter of a key."""
    name = ALIASES.get(key, key)
    if name not in command.types:
        aliases = [alias for alias, known in ALIASES.items() if known in command.types]
        raise ValueError(
            f"--grid: {command.name} has no parameter {key!r}; want one of its arguments or "
            f"{', '.join(aliases)}"
        )
    return name


def _values(text: str, parameter: str, command: Command) -> list:
    """Return the values of one word of an axis."""
    kind = command.types[parameter]
    if not text:
        raise ValueError(f"--grid: {short_name(parameter)} has an empty value")
    if kind is bool:
        if text.lower() not in _BOOLS:
            raise ValueError(f"--grid: {short_name(parameter)}: got {text!r}, want 1 or 0")
        return [_BOOLS[text.lower()]]
    if "int" not in str(kind):
        return [text]
    if ".." in text:
        return _range(text, parameter)
    return [_integer(text, parameter)]


def _integer(text: str, parameter: str) -> int:
    found = _INTEGER.fullmatch(text)
    if found is None:
        want = "an integer, also 4k or 1M"
        raise ValueError(f"--grid: {short_name(parameter)}: got {text!r}, want {want}")
    return int(found[1]) * _SUFFIX[found[2]]


def _range(text: str, parameter: str) -> list[int]:
    """Return the integers of ``a..b:x2`` or ``a..b:+512``."""
    found = _RANGE.fullmatch(text)
    name = short_name(parameter)
    if found is None:
        raise ValueError(f"--grid: {name}: got {text!r}, want a..b:x2 or a..b:+512")
    low, high, step = (_integer(found[i], parameter) for i in (1, 2, 4))
    least = 2 if found[3] == "x" else 1
    if step < least:
        raise ValueError(f"--grid: {name}: {text!r} never ends, want a step of at least {least}")
    if low > high or (found[3] == "x" and low == 0):
        raise ValueError(f"--grid: {name}: {text!r} is empty, want a <= b, and a > 0 with x")
    if found[3] == "+":
        values = range(low, high + 1, step)
        if len(values) > MAX_POINTS:
            raise ValueError(f"--grid: {name}: {text!r} has {len(values):,} values")
        return list(values)
    values = [low]
    while values[-1] * step <= high:
        values.append(values[-1] * step)
    return values


def grid_points(
    axes: Mapping[str, Sequence], command: str, scale: str, quick: bool, more: Mapping
) -> list[Point]:
    """Return the points of a grid: the first axis with several values is x, others make curves."""
    several = [name for name, values in axes.items() if len(values) > 1] or list(axes)[:1]
    x_name, *others = several
    fixed = {name: values[0] for name, values in axes.items() if name not in several}
    _check_ends(axes)
    base = merge(base_parameters(command, scale, quick), more)
    points = []
    for chosen in product(*(axes[name] for name in others)):
        curve = dict(zip(others, chosen, strict=True))
        name = ", ".join(f"{short_name(key)} {_word(value)}" for key, value in curve.items())
        series = Series(name or "grid", x_name, {})
        for x in axes[x_name]:
            parameters = merge(base, fixed | curve | {x_name: x})
            points.append(make_point(NAME, command, series, x, parameters))
    return points


def _check_ends(axes: Mapping[str, Sequence]) -> None:
    """Raise ValueError for a value for both ends beside one of an end."""
    for name in BOTH:
        beside = next((end for end in (f"min_{name}", f"max_{name}") if end in axes), None)
        if name in axes and beside is not None:
            raise ValueError(f"--grid: {short_name(name)} sets {beside}, too: give one of them")


def _word(value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
