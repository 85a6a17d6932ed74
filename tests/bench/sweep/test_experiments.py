"""The table of experiments: its points are valid, and the commands take them."""

from itertools import product

import pytest

from numbadsd.bench.sweep.commands import COMMANDS
from numbadsd.bench.sweep.experiments import EXPERIMENTS, find_experiments
from numbadsd.bench.sweep.points import check_points
from numbadsd.bench.sweep.series import SCALES
from tests.bench.sweep.test_commands import MODULES

NAMES = [
    "00_backend_total_time", "01_decode_context_length_sweep", "02_decode_batch_scaling_sweep",
    "03_decode_topk_sparsity_sweep", "04_decode_page_size_sweep",
    "05_continuous_batching_load_sweep", "06_continuous_runtime_options_ablation",
    "07_attention_backend_breakdown",
]  # fmt: skip
GRIDS = list(product(SCALES, (False, True)))


def points_of(name, scale="cpu", quick=False):
    """Return the points of an experiment by their curve: series -> {x: parameters}."""
    curves = {}
    for point in EXPERIMENTS[name].points(scale, quick):
        curves.setdefault(point.series, {})[point.x] = point.parameters
    return curves


def test_the_eight_experiments_are_there_in_order():
    assert list(EXPERIMENTS) == NAMES
    assert [e.code for e in EXPERIMENTS.values()] == [f"{i:02}" for i in range(8)]
    assert len({e.question for e in EXPERIMENTS.values()}) == 8


@pytest.mark.parametrize(("scale", "quick"), GRIDS)
def test_every_point_is_valid_and_has_a_name_of_its_own(scale, quick):
    for experiment in EXPERIMENTS.values():
        points = experiment.points(scale, quick)
        check_points(points)
        assert len({point.variant for point in points}) == len(points) > 0
        assert len({point.identity("code") for point in points}) == len(points)
        places = [(point.series, point.x) for point in points]
        assert len(set(places)) == len(places)
        assert all(point.x_name in point.parameters or point.x_name == "variant"
                   for point in points)  # fmt: skip


@pytest.mark.parametrize(("scale", "quick"), GRIDS)
def test_the_real_commands_accept_every_point(scale, quick):
    for experiment in EXPERIMENTS.values():
        real = MODULES[experiment.command].command
        for point in experiment.points(scale, quick):
            config = COMMANDS[point.command].config(point.parameters)
            with real.make_context(point.command, list(point.argv)) as context:
                for name in COMMANDS[point.command].positionals:
                    assert str(context.params[name]) == str(getattr(config, name))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", NAMES)
def test_a_quick_grid_is_thinner_and_takes_fewer_samples_or_requests(name, scale):
    full, quick = (EXPERIMENTS[name].points(scale, is_quick) for is_quick in (False, True))
    assert len(quick) < len(full)
    size = "iterations" if EXPERIMENTS[name].command == "dsd_bench" else "num_requests"
    assert max(p.parameters[size] for p in quick) < max(p.parameters[size] for p in full)


def test_the_gpu_scale_is_the_published_one():
    curves = points_of("01_decode_context_length_sweep", "gpu")
    assert list(curves) == ["batch 1", "batch 16", "batch 64"]
    point = curves["batch 16"][16384]
    shape = {"num_heads": 32, "head_dim": 128, "page_size": 16, "top_k_pages": 8, "seed": 7}
    assert shape.items() <= point.items() and point["batch_size"] == 16
    assert (point["iterations"], point["warmup"], point["data"]) == (20, 3, "uniform")
    assert point["paths"] == "dense_gpu,sparse_gpu"
    assert points_of("00_backend_total_time", "gpu")["batch 16"][512]["paths"].count("_") == 4


def test_the_cpu_scale_is_small_and_structured():
    for name, experiment in EXPERIMENTS.items():
        for points in points_of(name).values():
            for point in points.values():
                assert (point["num_heads"], point["head_dim"]) == (8, 64)
                if experiment.command == "dsd_bench":
                    assert point["paths"] == "dense_cpu,sparse_cpu"
                    assert point["data"] == "structured"
                else:
                    assert point["backend"] == "cpu"


def test_the_grids_are_the_published_ones_and_more():
    contexts = [64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384]
    assert all(list(c) == contexts for c in points_of(NAMES[1]).values())
    assert list(points_of(NAMES[2])["context 4096"]) == [1, 2, 4, 8, 16, 32, 64]
    assert list(points_of(NAMES[3])["context 4096"]) == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    sizes = points_of(NAMES[4])
    assert [p["top_k_pages"] for p in sizes["8 pages"].values()] == [8] * 4
    assert all(size * p["top_k_pages"] == 128 for size, p in sizes["128 tokens"].items())
    loads = points_of(NAMES[5])
    assert list(loads) == [f"prompts {1024 << i}" for i in range(4)] + ["arrivals"]
    assert list(loads["prompts 8192"]) == [1, 2, 4, 8, 16, 32, 64]
    assert list(loads["arrivals"]) == [0, 16, 64, 256, 1024]
    assert list(points_of(NAMES[7])["staged"]) == [1024, 4096, 16384]
    assert list(points_of(NAMES[7], "gpu")) == ["fused"]


def test_each_variant_of_the_ablation_turns_off_one_option():
    curves = points_of(NAMES[6], "gpu")
    assert list(curves) == ["steady", "bursty", "quick"]
    for variants in curves.values():
        best = variants["optimized"]
        changes = {
            name: {key for key in best if best[key] != values[key]}
            for name, values in variants.items()
        }
        assert len(variants) == 9 and changes.pop("optimized") == set()
        assert len(changes.pop("cpu_cache_admit")) == 3  # these go together
        assert all(len(change) == 1 for change in changes.values())


def test_the_cpu_has_no_variant_that_equals_another_there():
    names = list(points_of(NAMES[6])["steady"])
    assert names == [
        "optimized", "runtime_admit", "no_payload_precompute", "eager_release",
        "no_kernel_events", "dense_gpu_optimized",
    ]  # fmt: skip


def test_experiments_are_found_by_number_by_name_and_all_at_once():
    assert [e.code for e in find_experiments(["03", "01", NAMES[3]])] == ["01", "03"]
    assert [e.name for e in find_experiments(["05", "all"])] == NAMES
    assert find_experiments([]) == []


@pytest.mark.parametrize("name", ["8", "08", "0", "", "all ", "01_decode", "grid"])
def test_an_unknown_experiment_is_refused_by_name(name):
    with pytest.raises(ValueError, match=r"experiment: got .*want 00 \.\. 07"):
        find_experiments(["00", name])
