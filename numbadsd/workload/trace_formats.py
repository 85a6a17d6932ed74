"""Three public formats of request traces: what a row holds, and how it is told from the others.

| format   | a row                                        | time                            |
|----------|----------------------------------------------|---------------------------------|
| azure    | CSV: TIMESTAMP, ContextTokens,               | date and time, up to 9 decimals |
|          | GeneratedTokens                              |                                 |
| mooncake | a JSON object: timestamp, input_length,      | milliseconds                    |
|          | output_length                                |                                 |
| burstgpt | CSV: Timestamp, Request tokens, Response     | seconds                         |
|          | tokens                                       |                                 |

Columns and keys are found by name; others may stand between them and are not read. A time becomes
a whole or fractional number of the format's ticks, so that no digit is lost before the difference
of two times is taken.
"""

import csv
import json
import re
from collections.abc import Callable
from datetime import date
from functools import lru_cache
from typing import NamedTuple

from numbadsd.workload.arrivals import MAX_TOKENS
from numbadsd.workload.trace_lines import shown

MAX_TICKS = 2**53  # a float64 still tells neighbours apart
_INTEGER = re.compile(r"-?[0-9]{1,10}")
_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]{1,3})?")
_DATE_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[ T]([01]\d|2[0-3]):([0-5]\d):([0-5]\d)"
    r"(?:\.(\d{1,9}))?(?:Z|([+-])([01]\d|2[0-3]):([0-5]\d))?",
    re.ASCII,
)

Row = tuple[float, int, int]  # time in ticks, prompt tokens, new tokens
RowParser = Callable[[str], Row]


class RowFault(Exception):
    """What a line holds and what it should; the loader adds the file and the row."""

    def __init__(self, got: str, want: str):
        super().__init__(f"got {got}, want {want}")


class TraceFormat(NamedTuple):
    """How one format writes a request."""

    names: tuple[str, str, str]  # of time, prompt tokens, new tokens
    ticks_per_second: int
    parse_time: Callable[[str, object], float]  # name and value of the field


def _number_time(name: str, value: object) -> float:
    """A time that is a number already, or its text."""
    number = value
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        number = float(value)
    if type(number) not in (int, float) or not 0 <= number < MAX_TICKS:  # NaN is not
        raise RowFault(f"{name} {shown(value)}", f"a number in [0, {MAX_TICKS})")
    return number


@lru_cache(maxsize=64)
def _seconds_of(day: str) -> int:
    """Seconds before a day; ValueError for one that no calendar has."""
    return date.fromisoformat(day).toordinal() * 86400


def _date_time(name: str, value: object) -> int:
    """A date and time, in nanoseconds; one without an offset is taken for UTC."""
    match = _DATE_TIME.fullmatch(value)
    try:
        if not match:
            raise ValueError
        day, hour, minute, second, decimals, sign, off_hour, off_minute = match.groups()
        seconds = _seconds_of(day)
    except ValueError:
        raise RowFault(
            f"{name} {shown(value)}", "a time like 2023-11-16 18:15:46.6805900"
        ) from None
    seconds += int(hour) * 3600 + int(minute) * 60 + int(second)
    if sign:
        offset = int(off_hour) * 3600 + int(off_minute) * 60
        seconds -= -offset if sign == "-" else offset
    return seconds * 10**9 + int((decimals or "").ljust(9, "0"))


FORMATS = {
    "azure": TraceFormat(("TIMESTAMP", "ContextTokens", "GeneratedTokens"), 10**9, _date_time),
    "mooncake": TraceFormat(("timestamp", "input_length", "output_length"), 1000, _number_time),
    "burstgpt": TraceFormat(("Timestamp", "Request tokens", "Response tokens"), 1, _number_time),
}
JSON_FORMAT = "mooncake"


def recognise_format(first_line: str) -> str:
    """Name the format of a file by its first line, or raise RowFault."""
    if first_line.lstrip().startswith("{"):
        return JSON_FORMAT
    columns = set(_column_names(first_line))
    for name, known in FORMATS.items():
        if name != JSON_FORMAT and columns.issuperset(known.names):
            return name
    raise RowFault(shown(first_line), "; ".join(map(_described, FORMATS)))


def row_parser(name: str, first_line: str) -> tuple[RowParser, bool]:
    """Make what reads a row of the format; and tell whether the first line is a header."""
    if name == JSON_FORMAT:
        return _json_parser(FORMATS[name]), False
    columns = _column_names(first_line)
    if any(columns.count(wanted) != 1 for wanted in FORMATS[name].names):
        raise RowFault(shown(first_line), f"{_described(name)}, each once")
    return _csv_parser(FORMATS[name], columns), True


def _described(name: str) -> str:
    kind = "a JSON object with" if name == JSON_FORMAT else "the columns"
    return f"{kind} {', '.join(FORMATS[name].names)} ({name})"


def _column_names(line: str) -> list[str]:
    return [column.strip() for column in _fields(line)]


def _fields(line: str) -> list[str]:
    """The fields of a line of CSV; a quoted one ends on its own line."""
    if '"' not in line:
        return line.split(",")
    try:
        (fields,) = csv.reader([line], strict=True)
    except (csv.Error, ValueError):
        raise RowFault(shown(line), "quotes that are closed on the same line") from None
    return fields


def _csv_parser(known: TraceFormat, columns: list[str]) -> RowParser:
    """Make what reads a row of CSV under these columns."""
    time_name, prompt_name, new_name = known.names
    time, prompt, new = map(columns.index, known.names)

    def parse(line: str) -> Row:
        fields = _fields(line)
        if len(fields) != len(columns):
            raise RowFault(f"{len(fields)} fields, {shown(line)}", f"{len(columns)} as the header")
        return (
            known.parse_time(time_name, fields[time].strip()),
            _tokens(prompt_name, _integer(fields[prompt])),
            _tokens(new_name, _integer(fields[new])),
        )

    return parse


def _integer(text: str) -> int | str:
    """The integer that a field holds, or the field itself where it holds none that is allowed."""
    text = text.strip()
    return int(text) if _INTEGER.fullmatch(text) else text


def _tokens(name: str, value: object) -> int:
    """A number of tokens; negative ones pass, since the loader counts them."""
    if type(value) is not int or abs(value) > MAX_TOKENS:
        raise RowFault(f"{name} {shown(value)}", f"an integer up to {MAX_TOKENS}")
    return value


def _json_parser(known: TraceFormat) -> RowParser:
    """Make what reads a row that is a JSON object."""
    time_name, prompt_name, new_name = known.names

    def parse(line: str) -> Row:
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            raise RowFault(shown(line), "a JSON object on one line") from None
        if not isinstance(fields, dict) or not fields.keys() >= set(known.names):
            raise RowFault(shown(line), _described(JSON_FORMAT))
        return (
            known.parse_time(time_name, fields[time_name]),
            _tokens(prompt_name, fields[prompt_name]),
            _tokens(new_name, fields[new_name]),
        )

    return parse
