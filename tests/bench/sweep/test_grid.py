"""The grammar of own sweeps: what it means, and what it refuses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbadsd.bench.sweep.commands import COMMANDS
from numbadsd.bench.sweep.grid import MAX_POINTS, grid_points, parse_grid
from numbadsd.bench.sweep.points import check_points

ISSUE = "context=1k..128k:x2,batch=1,8,32,top_k=64"
INTEGERS = ["context", "batch", "top_k", "page", "heads", "seed", "min_context_tokens", "threads"]


def points_of(text, command="dsd_bench", **more):
    """Return the points of a grid at the CPU scale."""
    return grid_points(parse_grid(text, command), command, "cpu", True, more)


def test_the_example_of_the_issue():
    assert parse_grid(ISSUE, "dsd_bench") == {
        "context_tokens": [1024 << i for i in range(8)], "batch_size": [1, 8, 32],
        "top_k_pages": [64],
    }  # fmt: skip
    points = points_of(ISSUE)
    assert len(points) == 24
    assert {p.series for p in points} == {"batch 1", "batch 8", "batch 32"}
    assert [p.x for p in points if p.series == "batch 8"] == [1024 << i for i in range(8)]
    assert {p.x_name for p in points} == {"context_tokens"}
    assert {p.parameters["top_k_pages"] for p in points} == {64}
    assert points[0].variant == "batch 1, context 1024"
    check_points(points)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("batch=3", [3]),
        ("batch=4k", [4096]),
        ("batch=1K,2M", [1024, 2 << 20]),
        ("batch=1..9:x3", [1, 3, 9]),
        ("batch=1..10:x3", [1, 3, 9]),
        ("batch=5..5:x2", [5]),
        ("batch=16..64:+16", [16, 32, 48, 64]),
        ("batch=1k..2k:+512", [1024, 1536, 2048]),
        ("batch=1,2,8..32:x2", [1, 2, 8, 16, 32]),
        ("batch = 1 , 2 ", [1, 2]),
        ("batch=0..2:+1", [0, 1, 2]),
    ],
)
def test_values_of_an_axis(text, values):
    assert parse_grid(text, "dsd_bench") == {"batch_size": values}


def test_words_switches_and_full_names():
    axes = parse_grid("kv_dtype=float16,bfloat16,fused=1,0,top_k_pages=4", "dsd_bench")
    assert axes == {
        "kv_dtype": ["float16", "bfloat16"], "fused": [True, False], "top_k_pages": [4],
    }  # fmt: skip
    points = points_of("kv_dtype=float16,bfloat16,fused=1,0,top_k_pages=4")
    assert [p.x for p in points] == ["float16", "bfloat16"] * 2
    assert [p.series for p in points] == ["fused true"] * 2 + ["fused false"] * 2
    assert points[0].argv != points[2].argv
    assert points_of("fused=1,0")[1].x == "false"
    check_points(points)


def test_a_grid_of_continuous_batching():
    points = points_of("active=1..4:x2,prompt=64,128,decode=4", "dsd_continuous_bench")
    assert [p.series for p in points] == ["prompt 64"] * 3 + ["prompt 128"] * 3
    assert points[3].parameters["prompt_tokens"] == 128
    assert "min_prompt_tokens" not in points[3].parameters
    check_points(points)


def test_one_point_is_a_sweep():
    (point,) = points_of("batch=2", seed=9)
    assert (point.series, point.x, point.x_name) == ("grid", 2, "batch_size")
    assert point.parameters["seed"] == 9 and point.experiment == "grid"


def test_ends_of_a_range_may_be_axes():
    points = points_of("max_context_tokens=64,128,min_context_tokens=32")
    assert "context_tokens" not in points[0].parameters
    assert [p.parameters["max_context_tokens"] for p in points] == [64, 128]
    check_points(points)


@given(st.data())
def test_what_is_written_is_what_is_read(data):
    names = data.draw(st.lists(st.sampled_from(INTEGERS), min_size=1, max_size=4, unique=True))
    numbers = st.integers(0, 1 << 20)
    axes = {n: data.draw(st.lists(numbers, min_size=1, max_size=4, unique=True)) for n in names}
    text = ",".join(f"{name}={','.join(map(_written, axes[name]))}" for name in names)
    assert list(parse_grid(text, "dsd_bench").values()) == list(axes.values())


def _written(value):
    return f"{value >> 10}k" if value and value % 1024 == 0 else str(value)


@given(st.text(alphabet="abt=,.:x+k0129- \tM", max_size=30))
def test_any_text_is_read_or_refused_in_one_line(text):
    try:
        axes = parse_grid(text, "dsd_bench")
    except ValueError as error:
        assert str(error).startswith("--grid: ") and "\n" not in str(error)
    else:
        assert axes and all(axes.values())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["got ''", "key=value"]),
        ("1,2", ["got '1'", "key=value"]),
        ("batch", ["got 'batch'"]),
        ("contexts=1", ["dsd_bench", "contexts", "context, batch"]),
        ("=1", ["no parameter ''"]),
        ("batch=", ["batch", "empty"]),
        ("batch=1,,2", ["batch", "empty"]),
        ("batch=1,batch=2", ["'batch'", "twice"]),
        ("batch=1,batch_size=2", ["'batch_size'", "twice"]),
        ("batch=1,2,1", ["batch", "1 twice"]),
        ("batch=one", ["batch", "'one'", "integer"]),
        ("batch=-1", ["batch", "'-1'"]),
        ("batch=1.5", ["batch", "'1.5'"]),
        ("batch=4g", ["batch", "'4g'"]),
        ("batch=1..8", ["batch", "a..b:x2"]),
        ("batch=1..8:x1", ["never ends", "2"]),
        ("batch=1..8:+0", ["never ends", "1"]),
        ("batch=8..1:x2", ["empty"]),
        ("batch=0..8:x2", ["empty"]),
        ("batch=1..8:y2", ["a..b:x2"]),
        ("batch=1..1M:+1", ["1,048,576 values"]),
        ("seed=1..40:+1,batch=1..40:+1", ["1,600 points", f"{MAX_POINTS:,}"]),
        ("fused=maybe", ["fused", "'maybe'", "1 or 0"]),
        ("clock=wall", ["clock"]),
        ("active=4", ["dsd_bench", "active"]),
        ("a=b=c", ["no parameter 'a=b'"]),
    ],
)
def test_a_grid_that_is_none_is_refused_in_one_line(text, words):
    with pytest.raises(ValueError) as error:
        parse_grid(text, "dsd_bench")
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in ["--grid", *words])


def test_a_value_for_both_ends_beside_an_end_is_refused():
    with pytest.raises(ValueError, match="context sets max_context_tokens"):
        points_of("context=64,max_context_tokens=128")


def test_a_configuration_that_is_none_names_the_point():
    with pytest.raises(ValueError, match="point 'batch 2, context 0'"):
        check_points(points_of("context=0,16,batch=2,4"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_parameter_can_be_an_axis(command):
    for name, kind in COMMANDS[command].types.items():
        value = "1" if kind is bool or "int" in str(kind) else "word"
        assert len(parse_grid(f"{name}={value}", command)[name]) == 1
