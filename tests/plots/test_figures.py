"""Every figure: from few points, with what a reader needs, and honest about what is missing."""

from dataclasses import replace
from importlib import import_module

import pytest

from numbadsd.plots import PLOTS, draw_experiment
from tests.plots.checks import caption, faults, words_of
from tests.plots.factory import decode_point, lost, serving_point, three_rows, with_gpu

DECODE = [name for name in PLOTS if not name.startswith(("05", "06"))]


def marks_in(figure) -> int:
    """Return how many lines, bands and bars the panels hold."""
    return sum(len(ax.lines) + len(ax.collections) + len(ax.patches) for ax in figure.axes)


@pytest.mark.parametrize("name", PLOTS)
def test_three_rows_make_a_figure_with_its_labels(name):
    figure = draw_experiment(name, three_rows(name))
    words = words_of(figure)
    module = import_module(f"numbadsd.plots.{PLOTS[name]}")
    assert module.NAME == name
    assert module.TITLE in [" ".join(word.split()) for word in words]
    assert marks_in(figure) >= 6
    assert not faults(figure)
    units = [word for word in words if word.endswith((", ms", " second", ", us"))]
    assert units
    assert any(ax.get_xlabel() for ax in figure.axes)
    assert "Measured 2026-11-21 on Test Processor, 2 threads; numbadsd 0.1.0" in caption(figure)
    assert "8 query and 2 kv heads of 64" in caption(figure)


@pytest.mark.parametrize("name", PLOTS)
def test_one_row_makes_a_figure(name):
    figure = draw_experiment(name, three_rows(name)[:1])
    assert marks_in(figure) >= 4
    assert not faults(figure)


@pytest.mark.parametrize("name", DECODE)
def test_four_paths_have_room(name):
    figure = draw_experiment(name, with_gpu(three_rows(name)))
    assert not faults(figure)
    assert "Test GPU, driver 1.2" in caption(figure)
    assert "Not available" not in caption(figure)


def test_the_check_finds_planted_faults():
    figure = draw_experiment("grid", three_rows("grid"))
    figure.text(0.5, 0.5, "one", ha="left")
    figure.text(0.5, 0.5, "another", ha="left")
    figure.text(0.99, 0.2, "over the edge")
    assert {("one", "another"), ("over the edge",)} <= {*faults(figure)}


@pytest.mark.parametrize("name", PLOTS)
def test_points_that_all_failed_are_an_error_in_one_line(name):
    with pytest.raises(ValueError, match=f"^no measured point in {name}$"):
        draw_experiment(name, [lost(point) for point in three_rows(name)])


def test_no_points_at_all_are_the_same_error():
    with pytest.raises(ValueError, match="^no measured point in grid$"):
        draw_experiment("grid", [])


@pytest.mark.parametrize("name", PLOTS)
def test_failed_points_are_left_out_and_counted_in_the_caption(name):
    points = three_rows(name)
    points[1], points[2] = lost(points[1]), lost(points[2], "timed_out")
    text = caption(draw_experiment(name, points))
    assert f"1 of {len(points)} points failed: {points[1].variant}." in text
    assert f"1 of {len(points)} points timed out: {points[2].variant}." in text


def test_many_failed_points_are_counted_not_listed():
    points = [decode_point(64 << n) for n in range(8)]
    figure = draw_experiment("grid", [points[0], *(lost(point) for point in points[1:])])
    names = "; ".join(point.variant for point in points[1:3])
    assert f"7 of 8 points failed: {names}; 5 more." in caption(figure)


def test_an_unknown_experiment_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match="got 08_more, want one of 00_backend_total_time, "):
        draw_experiment("08_more", three_rows("grid"))


def test_points_of_another_command_are_not_drawn():
    with pytest.raises(ValueError, match="no measured point in 00_backend_total_time"):
        draw_experiment("00_backend_total_time", [serving_point(1)])


@pytest.mark.parametrize("name", DECODE)
def test_names_on_the_x_axis_work(name):
    points = [
        replace(point, x=word, x_name="summary")
        for point, word in zip(three_rows(name), ("mean", "minmax", "cuboid_mean"), strict=False)
    ]
    figure = draw_experiment(name, points)
    assert {"mean", "minmax", "cuboid_mean"} <= {*words_of(figure)}
    assert not faults(figure)


@pytest.mark.parametrize("name", [name for name in DECODE if not name.startswith("04")])
@pytest.mark.parametrize("other", ["dense_cpu", "sparse_cpu"])
def test_one_path_alone_can_be_drawn(name, other):
    points = three_rows(name)
    for point in points:
        del point.record["paths"][other]
    figure = draw_experiment(name, points)
    assert marks_in(figure) >= 4
    figure.draw_without_rendering()


def test_page_sizes_without_a_sparse_path_are_an_error():
    name = "04_decode_page_size_sweep"
    points = [decode_point(16, 1.0, None, name=name, x_name="page_size")]
    with pytest.raises(ValueError, match=f"no measured point of a sparse path in {name}"):
        draw_experiment(name, points)


def test_paths_that_never_ran_are_named_with_the_reason_and_not_drawn():
    figure = draw_experiment("00_backend_total_time", three_rows("00_backend_total_time"))
    assert "Not available: dense GPU, sparse GPU (no GPU)." in caption(figure)
    assert "dense GPU" not in words_of(figure)


@pytest.mark.parametrize("name", ["03_decode_topk_sparsity_sweep", "04_decode_page_size_sweep"])
def test_a_panel_without_quality_says_so(name):
    points = [
        decode_point(x, 1.0, 0.5, name=name, series="8 pages", x_name="page_size", quality=None)
        for x in (8, 16)
    ]
    words = " ".join(words_of(draw_experiment(name, points)))
    assert "no quality in these records" in words


def test_the_speed_up_stands_between_the_paths():
    points = [decode_point(512, 4.0, 1.6, name="00_backend_total_time")]
    words = words_of(draw_experiment("00_backend_total_time", points))
    assert {"4.00", "1.60", "2.5x", "dense CPU", "sparse CPU"} <= {*words}


def test_torch_is_drawn_where_it_ran_and_named_where_it_did_not():
    name = "07_attention_backend_breakdown"
    points = three_rows(name)
    figure = draw_experiment(name, points)
    assert "torch SDPA" in words_of(figure)
    assert "torch 2.13.0" in caption(figure)
    for point in points:
        absent = {"available": False, "reason": "torch is not installed", "version": None}
        point.record["paths"]["torch_sdpa"] = absent
    figure = draw_experiment(name, points)
    assert "torch SDPA" not in words_of(figure)
    assert "Not available: torch SDPA (torch is not installed)." in caption(figure)


def test_reasons_and_names_are_plain_text():
    points = [decode_point(512, series="a $b^$ {c}"), decode_point(1024, series="a $b^$ {c}")]
    points[0].record["paths"]["dense_gpu"] = {"available": False, "reason": "no $x_{ driver"}
    figure = draw_experiment("grid", points)
    assert "a $b^$ {c}" in words_of(figure)
    assert "(no $x_{ driver)" in caption(figure)


def test_uncommitted_changes_and_quick_runs_are_said():
    point = replace(decode_point(512), quick=True)
    point.record["environment"] = point.record["environment"] | {"dirty": True}
    text = caption(draw_experiment("grid", [point]))
    assert "in a quick run" in text
    assert "(commit 0123456, dirty)" in text


def test_more_series_than_panels_are_named():
    points = [decode_point(x, series=f"batch {b}") for b in range(8) for x in (64, 512)]
    figure = draw_experiment("grid", points)
    assert "Not drawn, more than 6 series: batch 6; batch 7." in caption(figure)
    assert len(figure.axes) == 3 * 6  # time, bandwidth, attention mass
    assert not faults(figure)


def test_an_own_sweep_has_long_names_of_its_series_and_says_what_is_kept():
    names = [f"summary {s}, share {u}" for s in ("mean", "minmax") for u in ("request", "kv_head")]
    points = [decode_point(x, series=name) for name in names for x in (64, 512, 1024)]
    figure = draw_experiment("grid", points)
    assert [ax.get_title(loc="left").replace("\n", " ") for ax in figure.axes[:4]] == names
    assert figure.axes[8].get_ylabel() == "attention mass\nkept, 0 to 1"
    assert len(figure.axes[8].lines[0].get_xdata()) == 3
    assert not faults(figure)


def test_throughput_is_shown_both_ways():
    figure = draw_experiment("05_continuous_batching_load_sweep",
                             three_rows("05_continuous_batching_load_sweep"))  # fmt: skip
    words = words_of(figure)
    assert "decoded by sparse CPU;" in caption(figure)
    assert {"loop only", "all included", "p50", "p95", "speed-up, times"} <= {*words}
    rates = figure.axes[0].lines[:2]
    assert [line.get_ydata()[-1] for line in rates] == [3200, 1600]
    assert rates[0].get_linestyle() == "-" != rates[1].get_linestyle()


def test_runs_without_a_serial_one_have_no_speed_up():
    points = [serving_point(x, name="grid", serial=False) for x in (1, 4)]
    assert "not measured" in words_of(draw_experiment("grid", points))


def test_dense_and_sparse_runs_of_one_series_are_two_lines():
    points = [serving_point(1, 900, name="grid"), serving_point(4, 950, name="grid")]
    dense = dict(name="grid", label="continuous_dense_cpu")
    points += [serving_point(1, 500, **dense), serving_point(4, 550, **dense)]
    words = words_of(draw_experiment("grid", points))
    assert {"sparse CPU, loop only", "dense CPU, all included"} <= {*words}


def test_a_run_that_its_backend_refused_is_counted():
    refused = serving_point(4, name="grid")
    refused.record["results"] = {"backend": "gpu", "continuous_sparse_available": 0}
    text = caption(draw_experiment("grid", [serving_point(1, name="grid"), refused]))
    assert "1 of 2 points are not in this figure" in text


def test_the_parts_of_the_loop_end_where_the_loop_does():
    name = "06_continuous_runtime_options_ablation"
    figure = draw_experiment(name, three_rows(name))
    (key, panel) = figure.axes
    assert panel.get_xlabel() == "time, ms"
    parts = [text.get_text() for text in key.get_legend().get_texts()]
    assert {"decode", "admission", "other", "before: prompts"} <= {*parts}
    assert "prefill" not in parts
    bars = [bar for bar in panel.patches if bar.get_y() < 0.5]
    hatched = [bar for bar in bars if bar.get_x() >= 100 - 1e-9]
    assert max(bar.get_x() + bar.get_width() for bar in bars) == pytest.approx(150)
    assert [bool(bar.get_hatch()) for bar in hatched] == [True, True]
    assert {"1,000", "500", "optimized", "runtime admit"} <= {*words_of(figure)}


def test_a_condition_of_much_shorter_bars_has_a_scale_of_its_own():
    name = "06_continuous_runtime_options_ablation"
    points = three_rows(name)
    short = replace(serving_point("optimized", name=name, x_name="variant"), series="quick")
    results = short.record["results"]
    results |= {key: value / 10 for key, value in results.items() if key.endswith("_ms")}
    _, long_panel, short_panel = draw_experiment(name, [*points, short]).axes
    assert short_panel.get_title(loc="left") == "quick (a scale of its own)"
    assert long_panel.get_xlim()[1] == pytest.approx(153)
    assert short_panel.get_xlim()[1] == pytest.approx(15.3)
    assert all(tick.label1.get_visible() for tick in long_panel.xaxis.get_major_ticks())
