"""Where the curves cross: marked at the right x, in the right words."""

import numpy as np
import pytest

from numbadsd.analysis.crossover import Crossing
from numbadsd.plots import draw_experiment
from numbadsd.plots._panels import crossing_text
from tests.plots.checks import faults, words_of
from tests.plots.factory import decode_point

NAME = "01_decode_context_length_sweep"
CONTEXTS = (64, 256, 1024, 4096, 16384)


def sweep(cross_at, series="batch 16", **changes):
    """Return points of curves that are straight in log-log and cross at a context."""
    return [
        decode_point(x, 0.5 * x / cross_at, 0.5 * (x / cross_at) ** 0.25, series=series, **changes)
        for x in CONTEXTS
    ]


def rings(ax):
    """Return the places of the rings in a panel."""
    lines = [line for line in ax.lines if line.get_markersize() == 6 and len(line.get_xdata()) == 1]
    return [(line.get_xdata()[0], line.get_ydata()[0]) for line in lines]


@pytest.mark.parametrize("cross_at", [180, 700, 9000])
def test_the_crossing_is_marked_and_said(cross_at):
    figure = draw_experiment(NAME, sweep(cross_at))
    assert f"sparse CPU from {cross_at:,} tokens" in words_of(figure)
    ((x, y),) = rings(figure.axes[0])
    assert x == pytest.approx(cross_at, rel=1e-6)
    assert y == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (0.1, "sparse CPU is faster everywhere measured"),
        (1000, "sparse CPU is slower everywhere measured"),
    ],
)
def test_curves_that_do_not_cross_are_said_to(factor, words):
    points = [decode_point(x, 0.01 * x, 0.01 * x * factor) for x in CONTEXTS]
    figure = draw_experiment(NAME, points)
    assert words in [word.replace("\n", " ") for word in words_of(figure)]
    assert not rings(figure.axes[0])


def test_curves_that_cross_back_have_no_single_crossing():
    points = [decode_point(x, 1.0, s) for x, s in zip(CONTEXTS, (2, 0.5, 2, 0.5, 0.4), strict=True)]
    assert "sparse CPU: no single crossing" in words_of(draw_experiment(NAME, points))


def test_each_series_and_each_backend_has_its_own_crossing():
    points = [p for b in (1, 4, 16, 64) for p in sweep(100 * b, f"batch {b}", gpu=True)]
    figure = draw_experiment(NAME, points)
    words = [word.replace("\n", " ") for word in words_of(figure)]
    assert {"sparse CPU from 100 tokens", "sparse CPU from 1,600 tokens"} <= {*words}
    # the GPU of these records: dense 20 times faster, sparse 10 times
    assert "sparse GPU from 252 tokens" in words
    assert not faults(figure)


def test_contexts_that_sparse_reads_whole_are_shaded():
    figure = draw_experiment(NAME, sweep(700))
    spans = [patch for patch in figure.axes[0].patches if patch.get_x() < 64]
    assert spans[0].get_x() + spans[0].get_width() == pytest.approx(8 * 16)


def test_a_point_that_is_missing_from_one_path_is_left_out_of_the_comparison():
    points = sweep(700)
    points[0] = decode_point(64, 0.01, None)
    assert "sparse CPU from 700 tokens" in words_of(draw_experiment(NAME, points))


def test_the_axis_has_tokens_in_binary_steps():
    points = [decode_point(64 << n, 1.0 + n, 0.5) for n in range(9)]
    points += [decode_point(64, 1.0, 0.5, series=f"batch {b}") for b in (1, 4)]
    figure = draw_experiment(NAME, points)
    figure.draw_without_rendering()
    ax = figure.axes[-1]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["64", "256", "1k", "4k", "16k"]
    assert ax.get_xlabel() == "context, tokens"
    assert ax.get_xscale() == figure.axes[0].get_yscale() == "log"


def test_band_floor_and_fraction_are_those_of_the_record():
    figure = draw_experiment(NAME, [decode_point(512, 2.0, 1.0), decode_point(1024, 4.0, 1.5)])
    times, fractions = figure.axes[:2]
    band = times.collections[0].get_paths()[0].vertices[:, 1]
    samples = 2.0 * np.array([0.9, 1.0, 1.0, 1.3])
    assert band.min() == pytest.approx(np.percentile(samples, 5))
    assert band.max() == pytest.approx(2 * np.percentile(samples, 95))
    drawn = [list(line.get_ydata()) for line in times.lines[:4]]
    assert drawn == [[2.0, 4.0], [1.2, 2.4], [1.0, 1.5], [0.6, pytest.approx(0.9)]]
    assert list(fractions.lines[0].get_ydata()) == [0.6, 0.6]


@pytest.mark.parametrize(
    ("crossing", "words"),
    [
        (Crossing("crosses", 180.4), "sparse from 180 tokens"),
        (Crossing("crosses", 12345.6), "sparse from 12,300 tokens"),
    ],
)
def test_a_crossing_is_said_in_three_digits(crossing, words):
    assert crossing_text(crossing) == words
