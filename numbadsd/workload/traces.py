"""Request traces of real services, as workloads: no row is lost without a count.

Every row of a trace is emitted or dropped for a reason that `source` counts; requests are sorted
by arrival, and seconds count from the earliest one that is emitted. Files come from anywhere:
whatever is wrong with one raises TraceError.
"""

from array import array
from collections import Counter
from math import isfinite
from os import PathLike
from pathlib import PurePath

import numpy as np

from numbadsd.config import check, check_integer
from numbadsd.workload.arrivals import MAX_SEED, MAX_TOKENS, RequestList
from numbadsd.workload.trace_formats import (
    FORMATS,
    RowFault,
    recognise_format,
    row_parser,
)
from numbadsd.workload.trace_lines import TraceLines

OVER = ("drop", "clip")


def load_trace(
    path: str | PathLike,
    format: str = "auto",
    limit: int | None = None,
    time_scale: float = 1.0,
    max_context: int | None = None,
    over: str = "drop",
    jitter_s: float = 0,
    seed: int = 7,
) -> RequestList:
    """Read a trace of request arrivals and lengths.

    Parameters
    ----------
    path : str or PathLike
        A file of one of the formats in `trace_formats`.
    format : {"auto", "azure", "mooncake", "burstgpt"}
        "auto" goes by the first line.
    limit : int, optional
        Requests emitted at most: the first ones of the file that are not dropped.
    time_scale : float
        Factor of every gap between arrivals: 0.5 doubles the load, 0 lets all arrive at once.
    max_context : int, optional
        Largest prompt_tokens + new_tokens; `over` says what happens to a request of more.
    over : {"drop", "clip"}
        Drop it, or shorten its prompt until it fits (and drop it where new_tokens alone do not).
    jitter_s : float
        Each arrival moves by a uniform time in [0, jitter_s) seconds, after the scaling.
    seed : int
        Of the jitter.

    Returns
    -------
    RequestList
        Arrivals in seconds, 0 for the earliest request emitted (before the jitter). Its `source`
        holds the arguments, and

        - ``file``, ``sha256``: name of the file, without its folder, and hash of all its bytes;
        - ``format``: the one that was read;
        - ``rows_read == emitted + sum(dropped.values())``: rows up to the limit;
        - ``dropped``: how many, by reason ("negative length", "no prompt tokens", "no new
          tokens", "over max_context"), the first of these that holds;
        - ``clipped``: emitted requests with a shortened prompt;
        - ``unsorted_rows``: emitted requests that were earlier than the one before in the file.

    Raises
    ------
    TraceError
        In one line: the file, the number of the line where there is one, got and want.
    ValueError
        Naming the argument, what it got and what it wants.
    """
    source = {"workload": "trace"} | locals()
    _check_options(format, limit, time_scale, max_context, over, jitter_s, seed)
    rows = _Rows(limit, max_context, over)
    with TraceLines(path) as lines:
        source["format"] = _read_rows(lines, format, rows)
        source["sha256"] = lines.sha256()
    source["file"] = PurePath(source.pop("path")).name
    arrival, order = _timed(rows.seconds, time_scale, jitter_s, seed)
    prompt_tokens, new_tokens = rows.prompt_tokens[order], rows.new_tokens[order]
    return RequestList(arrival, prompt_tokens, new_tokens, "s", source | rows.counts())


def _check_options(format, limit, time_scale, max_context, over, jitter_s, seed) -> None:
    known = ("auto", *FORMATS)
    check(format in known, "format", format, "one of " + ", ".join(known))
    if limit is not None:
        check_integer("limit", limit, 1)
    if max_context is not None:
        check_integer("max_context", max_context, 2)  # one token of each kind
    for name, value in (("time_scale", time_scale), ("jitter_s", jitter_s)):
        check(isfinite(value) and value >= 0, name, value, "a finite number, not below 0")
    check(over in OVER, "over", over, "one of " + ", ".join(OVER))
    check_integer("seed", seed, 0, MAX_SEED)


class _Rows:
    """The rows read so far, 24 bytes for each one that is kept, and why the others are not."""

    def __init__(self, limit: int | None, max_context: int | None, over: str):
        self._limit = limit
        self._max_context = 2 * MAX_TOKENS if max_context is None else max_context
        self._clips = over == "clip"
        self._dropped = Counter()
        self._clipped = self._read = 0
        self._columns = array("d"), array("q"), array("q")

    @property
    def is_full(self) -> bool:
        """Whether the limit is reached."""
        return len(self._columns[0]) == self._limit

    def add(self, seconds: float, prompt_tokens: int, new_tokens: int) -> None:
        """Keep a row, whole or with its prompt clipped, or count why not."""
        self._read += 1
        room = self._max_context - new_tokens
        reason = _why_unusable(prompt_tokens, new_tokens)
        if not reason and prompt_tokens > room:
            if self._clips and room >= 1:
                prompt_tokens = room
                self._clipped += 1
            else:
                reason = "over max_context"
        if reason:
            self._dropped[reason] += 1
            return
        for column, value in zip(self._columns, (seconds, prompt_tokens, new_tokens), strict=True):
            column.append(value)

    @property
    def seconds(self) -> np.ndarray:
        """Seconds since the file's first row, in the file's order, [N] float64."""
        return np.array(self._columns[0], np.float64)

    @property
    def prompt_tokens(self) -> np.ndarray:
        """[N] int64."""
        return np.array(self._columns[1], np.int64)

    @property
    def new_tokens(self) -> np.ndarray:
        """[N] int64."""
        return np.array(self._columns[2], np.int64)

    def counts(self) -> dict:
        """What became of every row, for the record."""
        return {
            "rows_read": self._read,
            "emitted": len(self._columns[0]),
            "dropped": dict(self._dropped),
            "clipped": self._clipped,
            "unsorted_rows": int(np.count_nonzero(np.diff(self.seconds) < 0)),
        }


def _why_unusable(prompt_tokens: int, new_tokens: int) -> str | None:
    """Why no engine can serve a row; None where one can."""
    if prompt_tokens < 0 or new_tokens < 0:
        return "negative length"
    if prompt_tokens == 0:
        return "no prompt tokens"
    return "no new tokens" if new_tokens == 0 else None


def _read_rows(lines: TraceLines, name: str, rows: _Rows) -> str:
    """Read rows until the file or the limit ends; return the name of the format."""
    parse = first_ticks = None
    try:
        for line in lines:
            if parse is None:
                name = recognise_format(line) if name == "auto" else name
                parse, is_header = row_parser(name, line)
                if is_header:
                    continue
            ticks, prompt_tokens, new_tokens = parse(line)
            first_ticks = ticks if first_ticks is None else first_ticks
            seconds = (ticks - first_ticks) / FORMATS[name].ticks_per_second
            rows.add(seconds, prompt_tokens, new_tokens)
            if rows.is_full:
                break
    except RowFault as fault:
        raise lines.refuse(str(fault)) from None
    if first_ticks is None:
        end = "got the end of the file, want a row" if lines.number else "the file is empty"
        raise lines.refuse(end)
    return name


def _timed(
    seconds: np.ndarray, time_scale: float, jitter_s: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:  # [N] float64, [N] int64
    """Arrivals in ascending order, from 0 before the jitter, and the row that each belongs to."""
    order = np.argsort(seconds, kind="stable")  # equal times stay in the file's order
    seconds = seconds[order]
    with np.errstate(over="ignore"):  # found just below
        seconds = (seconds - seconds[:1]) * time_scale
    finite = bool(np.isfinite(seconds).all())
    check(finite, "time_scale", time_scale, "a factor that leaves the arrivals finite")
    if jitter_s:
        rng = np.random.Generator(np.random.PCG64(seed))
        seconds = seconds + rng.uniform(0, jitter_s, len(seconds))
        again = np.argsort(seconds, kind="stable")
        seconds, order = seconds[again], order[again]
    return seconds, order
