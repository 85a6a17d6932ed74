"""Request traces: every row emitted or counted, and one line of complaint for every bad file."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbadsd.errors import NumbadsdError, TraceError
from numbadsd.workload import trace_lines
from numbadsd.workload.traces import load_trace

SAMPLES = Path(__file__).parent / "samples"
TRACES = Path(__file__).resolve().parents[3] / "shared" / "data" / "traces"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
WANTED_TIME = "2023-11-16 18:15:46.6805900"
BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


def write(tmp_path, content, name="trace"):
    """Write a file of text or bytes; return its path."""
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def mooncake(tmp_path, rows):
    """Write rows of (ms, prompt, new) as a mooncake trace; return its path."""
    keys = ("timestamp", "input_length", "output_length")
    lines = (json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows)
    return write(tmp_path, "".join(lines))


def fault_of(path, **options):
    """Return the complaint about a file, without the file's name."""
    with pytest.raises(TraceError) as caught:
        load_trace(path, **options)
    message = str(caught.value)
    assert message.startswith(str(path)) and message.isascii() and message.isprintable()
    assert len(message) < len(str(path)) + 300
    return message.removeprefix(str(path)).removeprefix(":").lstrip()


def test_an_azure_trace_keeps_seven_decimals_across_a_leap_day():
    requests = load_trace(SAMPLES / "azure.csv")
    assert requests.arrival.tolist() == [0.0, 0.5000001, 1.7499999]
    assert requests.prompt_tokens.tolist() == [700, 31, 4096]
    assert requests.new_tokens.tolist() == [12, 250, 3]
    assert requests.unit == "s" and requests.source["format"] == "azure"


def test_a_mooncake_trace_counts_milliseconds():
    requests = load_trace(SAMPLES / "mooncake.jsonl")
    assert list(requests) == [(0.0, 1100, 40), (0.0, 600, 7), (3.001, 512, 1)]
    assert requests.source["format"] == "mooncake"


def test_a_burstgpt_trace_drops_its_failures_and_says_so():
    requests = load_trace(SAMPLES / "burstgpt.csv")
    assert list(requests) == [(0.0, 120, 18), (40.0, 300, 90)]
    expected = {"format": "burstgpt", "rows_read": 3, "emitted": 2, "clipped": 0}
    assert requests.source.items() >= expected.items()
    assert requests.source["dropped"] == {"no prompt tokens": 1}


def test_columns_are_found_by_name():
    requests = load_trace(SAMPLES / "burstgpt_sessions.csv")
    assert list(requests) == [(0.0, 64, 10), (0.5, 21, 35)]


@pytest.mark.parametrize("name", ["azure.csv", "mooncake.jsonl", "burstgpt.csv"])
def test_neither_line_ends_nor_blank_lines_nor_a_mark_change_a_trace(tmp_path, name):
    expected = list(load_trace(SAMPLES / name))
    lines = (SAMPLES / name).read_text().splitlines()
    for text in (
        "\n".join(lines),
        "\r\n".join(lines) + "\r\n",
        "\ufeff" + "\n".join(lines),
        "\n \n" + "\n\n".join(lines) + "\n\n\n",
    ):
        assert list(load_trace(write(tmp_path, text))) == expected


@pytest.mark.parametrize("name", ["azure.csv", "mooncake.jsonl", "burstgpt.csv"])
def test_a_named_format_reads_its_files_and_refuses_others(name):
    own = name.split(".")[0]
    assert list(load_trace(SAMPLES / name, own)) == list(load_trace(SAMPLES / name))
    for other in {"azure", "mooncake", "burstgpt"} - {own}:
        assert fault_of(SAMPLES / name, format=other).startswith("1: got ")


def test_times_with_an_offset_are_brought_to_one_zone(tmp_path):
    times = ("2024-01-01 00:30:00+01:00", "2023-12-31T23:30:01Z", "2023-12-31 22:30:01.5-01:00")
    text = AZURE + "".join(f"{time},1,1\n" for time in times)
    assert load_trace(write(tmp_path, text)).arrival.tolist() == [0.0, 1.0, 1.5]


def test_the_source_is_a_record_of_the_file_and_the_arguments():
    path = SAMPLES / "azure.csv"
    source = json.loads(json.dumps(load_trace(str(path), limit=1, time_scale=0.5).source))
    assert source == {
        "workload": "trace",
        "file": "azure.csv",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),  # of all rows, despite the limit
        "format": "azure",
        "limit": 1,
        "time_scale": 0.5,
        "max_context": None,
        "over": "drop",
        "jitter_s": 0,
        "seed": 7,
        "rows_read": 1,
        "emitted": 1,
        "dropped": {},
        "clipped": 0,
        "unsorted_rows": 0,
    }


def test_rows_out_of_order_are_sorted_counted_and_kept(tmp_path):
    path = mooncake(tmp_path, [(5000, 1, 1), (1000, 2, 1), (5000, 3, 1), (0, 4, 1), (9000, 5, 1)])
    requests = load_trace(path)
    assert requests.arrival.tolist() == [0.0, 1.0, 5.0, 5.0, 9.0]
    assert requests.prompt_tokens.tolist() == [4, 2, 1, 3, 5]  # equal times: the file's order
    assert requests.source["unsorted_rows"] == 2


def test_the_limit_counts_requests_that_are_emitted(tmp_path):
    path = mooncake(tmp_path, [(0, 0, 1), (1, 1, 1), (2, 2, 0), (3, 3, 1), (4, 4, 1)])
    source = load_trace(path, limit=2).source
    assert (source["rows_read"], source["emitted"]) == (4, 2)
    assert source["dropped"] == {"no prompt tokens": 1, "no new tokens": 1}
    assert len(load_trace(path, limit=10**6)) == 3


def test_what_comes_after_the_limit_is_hashed_but_not_read(tmp_path):
    path = write(tmp_path, AZURE + "2023-01-01 00:00:00,1,1\n" + "\0\xff broken\n" * 200_000)
    source = load_trace(path, limit=1).source
    assert source["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert fault_of(path, limit=2) == "3: got a NUL byte, want text"


def test_lengths_that_nobody_can_serve_are_dropped_by_reason(tmp_path):
    lengths = [(0, 0), (0, 5), (5, 0), (-1, 5), (5, -1), (0, -1), (-1, 0), (1, 1)]
    requests = load_trace(mooncake(tmp_path, [(9, *pair) for pair in lengths]))
    assert list(requests) == [(0.0, 1, 1)]
    expected = {"no prompt tokens": 2, "no new tokens": 1, "negative length": 4}
    assert requests.source["dropped"] == expected


def test_a_trace_without_a_usable_row_is_an_empty_list(tmp_path):
    requests = load_trace(mooncake(tmp_path, [(0, 0, 0)] * 3), jitter_s=1.0)
    assert len(requests) == 0 and requests.source["dropped"] == {"no prompt tokens": 3}


def test_requests_over_the_context_are_dropped_or_clipped(tmp_path):
    path = mooncake(tmp_path, [(0, 90, 10), (1, 91, 10), (2, 5000, 99), (3, 1, 100), (4, 1, 99)])
    dropped = load_trace(path, max_context=100)
    assert list(dropped) == [(0.0, 90, 10), (0.004, 1, 99)]
    assert dropped.source["dropped"] == {"over max_context": 3}
    clipped = load_trace(path, max_context=100, over="clip")
    assert clipped.prompt_tokens.tolist() == [90, 90, 1, 1]
    assert clipped.new_tokens.tolist() == [10, 10, 99, 99]
    assert clipped.source["dropped"] == {"over max_context": 1}  # nothing is left to clip
    assert clipped.source["clipped"] == 2


def test_the_earliest_request_emitted_arrives_at_zero(tmp_path):
    path = mooncake(tmp_path, [(1000, 0, 0), (5000, 1, 1), (4000, 1, 1)])
    assert load_trace(path).arrival.tolist() == [0.0, 1.0]


def test_the_time_scale_multiplies_gaps(tmp_path):
    path = mooncake(tmp_path, [(7000, 1, 1), (8000, 1, 1), (10000, 1, 1)])
    assert load_trace(path, time_scale=0.25).arrival.tolist() == [0.0, 0.25, 0.75]
    assert load_trace(path, time_scale=0).arrival.tolist() == [0.0, 0.0, 0.0]


def test_jitter_stays_in_its_bounds_and_moves_whole_rows(tmp_path):
    rows = [(3000 * (i // 50), i + 1, 2 * i + 1) for i in range(500)]  # batches of 50, 3 s apart
    path = mooncake(tmp_path, rows)
    requests = load_trace(path, jitter_s=4.0)
    row = requests.prompt_tokens - 1
    moved = requests.arrival - 3.0 * (row // 50)
    assert (moved >= 0).all() and (moved < 4).all() and len(np.unique(moved)) == 500
    assert moved.mean() == pytest.approx(2, abs=0.25)
    assert (np.diff(requests.arrival) >= 0).all() and (np.diff(row) < 0).any()
    assert np.array_equal(requests.new_tokens, 2 * row + 1)
    assert requests.source["unsorted_rows"] == 0
    assert list(requests) == list(load_trace(path, jitter_s=4.0, seed=7))
    assert list(requests) != list(load_trace(path, jitter_s=4.0, seed=8))
    assert 3.9 < load_trace(path, jitter_s=4.0, time_scale=0).arrival.max() < 4  # it is not scaled


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 5), st.integers(-1, 12), st.integers(-1, 12)), min_size=1
    ),
    limit=st.none() | st.integers(1, 8),
    max_context=st.none() | st.integers(2, 20),
    over=st.sampled_from(["drop", "clip"]),
    jitter_s=st.sampled_from([0, 0.002]),
)
def test_every_row_read_is_emitted_or_counted(
    tmp_path_factory, rows, limit, max_context, over, jitter_s
):
    path = mooncake(tmp_path_factory.getbasetemp(), rows)
    requests = load_trace(path, limit=limit, max_context=max_context, over=over, jitter_s=jitter_s)
    source = requests.source
    assert source["rows_read"] == source["emitted"] + sum(source["dropped"].values())
    assert source["emitted"] == len(requests) <= (limit or len(rows))
    assert all(source["dropped"].values())
    reached_limit = source["emitted"] == limit
    assert source["rows_read"] == len(rows) or (reached_limit and source["rows_read"] < len(rows))
    read = [(p, n) for _, p, n in rows[: source["rows_read"]] if p > 0 and n > 0]
    room = max_context or 100
    fits = [(p, n) for p, n in read if p + n <= room]
    if over == "clip":
        fits = [(min(p, room - n), n) for p, n in read if n < room]
    assert sorted((p, n) for _, p, n in requests) == sorted(fits)
    assert source["clipped"] == (over == "clip") * sum(p + n > room > n for p, n in read)


BAD_ROWS = {
    "too few fields": (
        "5,ChatGPT,1,1,2",
        "2: got 5 fields, '5,ChatGPT,1,1,2', want 6 as the header",
    ),
    "too many fields": ("5,ChatGPT,1,1,2,log,", "2: got 7 fields,"),
    "cut in a number": ("5,C,1,1,2,log\n6,C,1", "3: got 3 fields, '6,C,1', want 6 as the header"),
    "words": ("5,C,many,1,2,log", "2: got Request tokens 'many', want an integer up to 2147483647"),
    "empty": ("5,C,1,,2,log", "2: got Response tokens '', want an integer"),
    "fraction": ("5,C,1.0,1,2,log", "2: got Request tokens '1.0', want an integer"),
    "underscore": ("5,C,1_0,1,2,log", "2: got Request tokens '1_0', want an integer"),
    "other digits": ("5,C,\u0665,1,2,log", "2: got Request tokens '\\u0665', want an integer"),
    "2**31 tokens": ("5,C,2147483648,1,2,log", "2: got Request tokens 2147483648, want"),
    "-2**31 tokens": ("5,C,1,-2147483648,2,log", "2: got Response tokens -2147483648, want"),
    "5000 digits": ("5,C," + "9" * 5000 + ",1,2,log", "2: got Request tokens '999999999"),
    "NaN": ("nan,C,1,1,2,log", "2: got Timestamp 'nan', want a number in [0, 9007199254740992)"),
    "infinity": ("inf,C,1,1,2,log", "2: got Timestamp 'inf', want a number"),
    "overflow": ("1e999,C,1,1,2,log", "2: got Timestamp '1e999', want a number"),
    "no time": (",C,1,1,2,log", "2: got Timestamp '', want a number"),
    "before the start": ("-1,C,1,1,2,log", "2: got Timestamp '-1', want a number"),
    "open quote": ('5,"C,1,1,2,log\n', "2: got '5,\"C,1,1,2,log', want quotes that are closed"),
    "escape codes": ("5,C,\x1b[31m,1,2,log", "2: got Request tokens '\\x1b[31m', want an integer"),
    "NUL": ("5,C,1,1,2,\0", "2: got a NUL byte, want text"),
    "no row": ("", "1: got the end of the file, want a row"),
}

BAD_DATES = (
    "2023-02-29 00:00:00", "2023-13-01 00:00:00", "2023-01-01 24:00:00", "2023-01-01 00:60:00",
    "2023-01-01", "2023-01-01 00:00:00.", "2023-01-01 00:00:00.1234567890", "0000-01-01 00:00:00",
    "2023-01-01 00:00:00+1", "nan", "1700000000", "",
)  # fmt: skip

ROW = {"timestamp": 1, "input_length": 2, "output_length": 3}
BAD_OBJECTS = {
    "cut": ('{"timestamp": 1, "input_le', "want a JSON object on one line"),
    "list": ("[1, 2, 3]", "want a JSON object with timestamp, input_length, output_length"),
    "number": ("17", "want a JSON object with"),
    "no length": (json.dumps({"timestamp": 1, "input_length": 2}), "want a JSON object with"),
    "text": (json.dumps(ROW | {"input_length": "2"}), "got input_length '2', want an integer"),
    "fraction": (json.dumps(ROW | {"input_length": 2.0}), "got input_length 2.0, want"),
    "truth": (json.dumps(ROW | {"output_length": True}), "got output_length True, want"),
    "null": (json.dumps(ROW | {"timestamp": None}), "got timestamp None, want a number"),
    "NaN": (json.dumps(ROW | {"timestamp": np.nan}), "got timestamp nan, want a number"),
    "infinity": (json.dumps(ROW | {"timestamp": np.inf}), "got timestamp inf, want a number"),
    "2**53 ms": (json.dumps(ROW | {"timestamp": 2**53}), "got timestamp 9007199254740992, want"),
    "400 digits": (json.dumps(ROW | {"timestamp": 10**400}), "got timestamp 1000000"),
    "absurd": (json.dumps(ROW | {"input_length": 10**12}), "got input_length 1000000000000, want"),
    "nested": ("[" * 100_000, "got '[[[[["),
    "surrogate": ('{"timestamp": "\\ud800"}', "got '{\"timestamp\""),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_of_csv_is_refused_with_its_number(tmp_path, case):
    rows, fault = BAD_ROWS[case]
    assert fault_of(write(tmp_path, BURSTGPT + rows)).startswith(fault)


@pytest.mark.parametrize("time", BAD_DATES)
def test_a_time_that_no_clock_shows_is_refused(tmp_path, time):
    path = write(tmp_path, f"{AZURE}2023-01-01 00:00:00,1,1\r\n{time},1,1\r\n")
    assert fault_of(path) == f"3: got TIMESTAMP {time!r}, want a time like {WANTED_TIME}"


@pytest.mark.parametrize("case", BAD_OBJECTS)
def test_a_bad_row_of_json_is_refused_with_its_number(tmp_path, case):
    row, fault = BAD_OBJECTS[case]
    message = fault_of(write(tmp_path, f"{json.dumps(ROW)}\n\n{row}\n"))
    assert message.startswith("3: got ") and fault in message


def test_headers_of_other_files_are_refused_with_what_is_known(tmp_path):
    message = fault_of(write(tmp_path, "time,prompt,new\n1,2,3\n"))
    assert message.startswith("1: got 'time,prompt,new', want the columns TIMESTAMP, ")
    assert all(f"({name})" in message for name in ("azure", "mooncake", "burstgpt"))
    twice = write(tmp_path, "TIMESTAMP,ContextTokens,GeneratedTokens,ContextTokens\n")
    assert fault_of(twice).endswith("GeneratedTokens (azure), each once")
    assert fault_of(write(tmp_path, AZURE.replace("\n", "\r") * 9)).startswith("1: got 'TIMESTAMP")


def test_files_that_are_not_text_are_refused(tmp_path):
    fault = "1: got byte 0x8b at 1 of the line, want UTF-8 text"
    assert fault_of(write(tmp_path, b"\x1f\x8b\x08\0gzip")) == fault
    latin = write(tmp_path, (BURSTGPT + "5,C,1,1,2,log\n5,\xe9,1,1,2,log\n").encode("latin-1"))
    assert fault_of(latin) == "3: got byte 0xe9 at 2 of the line, want UTF-8 text"
    assert fault_of(write(tmp_path, AZURE.encode("utf-16-le"))) == "1: got a NUL byte, want text"


def test_a_path_without_a_trace_is_refused(tmp_path):
    assert fault_of(tmp_path / "none.csv") == "no such file"
    assert fault_of(tmp_path) == "a directory, not a file"
    assert fault_of(write(tmp_path, "")) == "the file is empty"
    assert fault_of(write(tmp_path, "\n\r\n  \n")) == "3: got the end of the file, want a row"
    os.mkfifo(tmp_path / "pipe")
    assert fault_of(tmp_path / "pipe") == "not a regular file"
    with pytest.raises(TraceError, match="null"):
        load_trace("trace\0.csv")
    assert issubclass(TraceError, NumbadsdError) and issubclass(TraceError, ValueError)


def test_a_line_without_end_is_never_read_whole(tmp_path, monkeypatch):
    asked = []

    def read(self, method, num_bytes):
        asked.append(num_bytes)
        return method(num_bytes)

    monkeypatch.setattr(trace_lines.TraceLines, "_read", read)
    path = tmp_path / "endless"
    with open(path, "wb") as file:
        file.write(AZURE.encode() + b"2")
        file.truncate(1 << 33)  # a hole: the disk holds one block
    assert fault_of(path) == "2: got more than 1048576 bytes, want a shorter line"
    assert asked == [trace_lines.MAX_LINE_BYTES + 1] * 2


def test_a_line_of_the_longest_length_is_read(tmp_path):
    row = json.dumps(ROW)
    padding = " " * (trace_lines.MAX_LINE_BYTES - len(row) - 1)
    assert len(load_trace(write(tmp_path, row + padding + "\n"))) == 1
    fault = "1: got more than 1048576 bytes, want a shorter line"
    assert fault_of(write(tmp_path, row + padding + " \n")) == fault


@given(data=st.binary(max_size=60), name=st.sampled_from(["azure.csv", "mooncake.jsonl"]))
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path_factory, data, name):
    whole = (SAMPLES / name).read_bytes()
    cut = len(whole) * len(data) // 60
    path = write(tmp_path_factory.getbasetemp(), whole[:cut] + data)
    try:
        requests = load_trace(path)
    except TraceError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
    else:
        source = requests.source
        assert source["rows_read"] == source["emitted"] + sum(source["dropped"].values())


@pytest.mark.parametrize(
    "argument, value",
    [
        ("format", "csv"),
        ("limit", 0),
        ("limit", 1.5),
        ("time_scale", -1.0),
        ("time_scale", np.nan),
        ("time_scale", np.inf),
        ("max_context", 1),
        ("over", "split"),
        ("jitter_s", -0.1),
        ("jitter_s", np.inf),
        ("seed", -1),
    ],
)
def test_wrong_arguments_are_refused(argument, value):
    with pytest.raises(ValueError, match=f"^{argument}: got ") as caught:
        load_trace(SAMPLES / "azure.csv", **{argument: value})
    assert not isinstance(caught.value, TraceError)


def test_a_time_scale_that_leaves_the_numbers_is_refused(tmp_path):
    path = mooncake(tmp_path, [(0, 1, 1), (10**9, 1, 1)])
    with pytest.raises(ValueError, match="^time_scale: got 1e[+]306, want a factor"):
        load_trace(path, time_scale=1e306)


@pytest.mark.skipif(not TRACES.is_dir(), reason="the traces of services are not on this machine")
@pytest.mark.parametrize(
    "name, known, rows, emitted, rate, prompt_mean, new_mean",
    [
        ("AzureLLMInferenceTrace_conv.csv", "azure", 19366, 19366, 5.5, 1155, 211),
        ("mooncake_synthetic_trace.jsonl", "mooncake", 3993, 3993, 3.9, 15326, 149),
        ("BurstGPT_1.first400.csv", "burstgpt", 400, 383, 0.01, 544, 289),
    ],
)
def test_the_traces_of_services_are_read_whole(
    name, known, rows, emitted, rate, prompt_mean, new_mean
):
    requests = load_trace(TRACES / name)
    source = requests.source
    assert (source["format"], source["rows_read"], len(requests)) == (known, rows, emitted)
    assert source["dropped"] == ({"no prompt tokens": 17} if known == "burstgpt" else {})
    assert source["sha256"] == hashlib.sha256((TRACES / name).read_bytes()).hexdigest()
    assert source["unsorted_rows"] == source["clipped"] == 0
    assert emitted / requests.arrival[-1] == pytest.approx(rate, rel=0.05)
    assert requests.prompt_tokens.mean() == pytest.approx(prompt_mean, abs=1)
    assert requests.new_tokens.mean() == pytest.approx(new_mean, abs=1)
