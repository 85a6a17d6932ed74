"""The look of figures: greyscale, sizes, and the words that fit."""

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb

from numbadsd.plots._labels import spread
from numbadsd.plots._panels import count_text, three_digits, times_text
from numbadsd.plots._style import (
    CAPTION_PT,
    PATH_LOOKS,
    STAGE_LOOKS,
    WIDTH_IN,
    house_style,
    luminance,
    text_width_in,
    wrap,
)

PATHS = ("dense_cpu", "sparse_cpu", "dense_gpu", "sparse_gpu")


def luma(color: str) -> float:
    """Return how light a colour is where a program drops the colours without more ado."""
    return sum(w * part for w, part in zip((0.299, 0.587, 0.114), to_rgb(color), strict=True))


@pytest.mark.parametrize("looks", [[PATH_LOOKS[path] for path in PATHS], [*STAGE_LOOKS.values()]])
@pytest.mark.parametrize(("lightness", "gap"), [(luminance, 0.08), (luma, 0.12)])
def test_colours_of_one_group_differ_in_greyscale(looks, lightness, gap):
    values = sorted(lightness(look.color) for look in looks)
    assert min(b - a for a, b in zip(values, values[1:], strict=False)) > gap


def test_paths_differ_in_marker_and_dense_from_sparse_in_line():
    assert len({PATH_LOOKS[path].marker for path in PATHS}) == len(PATHS)
    for backend in ("cpu", "gpu"):
        assert PATH_LOOKS[f"dense_{backend}"].line != PATH_LOOKS[f"sparse_{backend}"].line


@pytest.mark.parametrize("look", [*PATH_LOOKS.values(), *STAGE_LOOKS.values()])
def test_names_can_be_read_on_white(look):
    contrast = 1.05 / (luminance(look.ink) + 0.05)
    assert contrast >= 4.5  # WCAG 2, level AA


def test_the_users_settings_come_back():
    with matplotlib.rc_context({"font.size": 31, "svg.fonttype": "none"}):
        with house_style():
            assert matplotlib.rcParams["font.size"] == 9
        assert matplotlib.rcParams["font.size"] == 31
        assert matplotlib.rcParams["svg.fonttype"] == "none"


def test_lines_fit_and_no_word_is_lost_or_alone():
    text = "measured on a processor of this name " * 9
    lines = wrap(text, CAPTION_PT)
    assert " ".join(lines) == text.strip()
    assert all(text_width_in(line, CAPTION_PT) < WIDTH_IN for line in lines)
    assert len(lines[-1].split()) > 3


def test_a_word_longer_than_a_line_is_kept():
    assert wrap(f"a {'b' * 400} c", CAPTION_PT) == ["a", "b" * 400, "c"]
    assert wrap("", CAPTION_PT) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.sampled_from((0.02, 0.1)))
def test_labels_keep_their_distance_and_their_order(wanted, gap):
    places = spread(wanted, gap)
    ordered = sorted(places)
    assert all(b - a >= gap - 1e-9 for a, b in zip(ordered, ordered[1:], strict=False))
    assert 0 <= ordered[0] and ordered[-1] <= 1 + 1e-9
    for a, b in zip(range(len(wanted)), range(1, len(wanted)), strict=False):
        if wanted[a] != wanted[b]:
            assert (wanted[a] < wanted[b]) == (places[a] < places[b])


def test_labels_with_room_stay_where_they_are_wanted():
    assert spread([0.5, 0.1, 0.9], 0.1) == pytest.approx([0.5, 0.1, 0.9])
    assert spread([0.5, 0.5], 0.1) == pytest.approx([0.55, 0.45])


@pytest.mark.parametrize(
    ("value", "text"),
    [(64, "64"), (1000, "1,000"), (1024, "1k"), (1536, "1.5k"), (16384, "16k"), (1 << 20, "1M"),
     (0, "0"), ("mean", "mean")],
)  # fmt: skip
def test_counts_are_short(value, text):
    assert count_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1.3, "1.30"), (35.37, "35.4"), (352.1, "352"), (1234.5, "1,230")]
)
def test_times_have_three_digits(value, text):
    assert three_digits(value) == text


@pytest.mark.parametrize(
    ("ratio", "text"), [(0.971, "0.97x"), (1.02, "1.02x"), (1.61, "1.6x"), (19.05, "19x")]
)
def test_speed_ups_have_the_digits_that_matter(ratio, text):
    assert times_text(ratio) == text
