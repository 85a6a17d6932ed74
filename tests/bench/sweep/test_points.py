"""What makes a point the same point; what a change of code makes of it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import numbadsd
from numbadsd.bench.sweep import points as points_module
from numbadsd.bench.sweep.points import check_points, code_version
from tests.bench.sweep.builders import CODE, make_point

ROOT = Path(__file__).parents[3]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Return a copy of the sources, laid out as in a checkout, whose version is asked for."""
    for folder in ("numbadsd", "cli"):
        shutil.copytree(ROOT / folder, tmp_path / folder,
                        ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    places = {"": tmp_path / "numbadsd", "cli/": tmp_path / "cli"}
    monkeypatch.setattr(points_module, "_folders", lambda: places)
    return tmp_path


def test_an_identity_is_16_hex_digits_and_always_the_same():
    identity = make_point().identity(CODE)
    assert len(identity) == 16 and set(identity) <= set("0123456789abcdef")
    assert identity == make_point().identity(CODE) == "65b04f8ed267f429"


def test_the_order_of_the_parameters_does_not_matter():
    point = make_point()
    turned = replace(point, parameters=dict(reversed(point.parameters.items())))
    assert list(turned.parameters) != list(point.parameters)
    assert turned.identity(CODE) == point.identity(CODE)


def test_an_identity_survives_json():
    point = make_point(paths="dense_cpu,sparse_cpu", fused=False)
    copy = replace(point, parameters=json.loads(json.dumps(point.parameters)))
    assert copy.identity(CODE) == point.identity(CODE)


@pytest.mark.parametrize(
    "change",
    [
        {"experiment": "01_decode_context_length_sweep"},
        {"variant": "another"},
        {"command": "dsd_continuous_bench"},
        {"parameters": {"batch_size": 2, "context_tokens": 17}},
        {"parameters": {"batch_size": 2, "context_tokens": 16, "seed": 7}},
        {"parameters": {"batch_size": 2, "context_tokens": "16"}},
        {"parameters": {"batch_size": 2}},
    ],
)
def test_every_change_makes_another_point(change):
    assert replace(make_point(), **change).identity(CODE) != make_point().identity(CODE)
    assert make_point().identity(CODE) != make_point().identity("ba9876543210")


def test_a_point_has_a_name_for_a_file():
    assert make_point(4096).slug == "batch_2_context_4096"
    long = [replace(make_point(), variant="x" * 300 + end) for end in "ab"]
    assert long[0].slug != long[1].slug and max(len(p.slug) for p in long) < 200
    assert replace(make_point(), variant="../a/..b ").slug == "a_..b"


def test_a_point_that_its_command_would_refuse_is_named():
    with pytest.raises(ValueError, match=r"point 'batch 2, context 0'.*min_context_tokens.*0"):
        check_points([make_point(16), make_point(0)])
    twin = replace(make_point(), variant="batch 2 / context 16")
    with pytest.raises(ValueError, match="same file name"):
        check_points([make_point(), twin])


def test_the_code_version_is_12_hex_digits_and_always_the_same(checkout):
    version = code_version()
    assert len(version) == 12 and set(version) <= set("0123456789abcdef")
    assert code_version() == version


@pytest.mark.parametrize(
    "file",
    [
        "numbadsd/kernels/cpu/score.py", "numbadsd/bench/decode.py", "numbadsd/bench/record.py",
        "numbadsd/serving/engine.py", "numbadsd/kernels/cuda/topk_tuning.json", "cli/dsd_bench.py",
        "cli/dsd_continuous_bench.py", "cli/_arguments.py", "numbadsd/__init__.py",
    ],
)  # fmt: skip
def test_code_that_measures_counts(checkout, file):
    before = code_version()
    with open(checkout / file, "a") as source:
        source.write("\n")
    assert code_version() != before


@pytest.mark.parametrize(
    "file",
    [
        "numbadsd/bench/report.py", "numbadsd/bench/sweep/run.py", "numbadsd/bench/demo.py",
        "numbadsd/report/__init__.py", "numbadsd/integration/dask.py", "cli/dsd_sweep.py",
        "cli/dsd_demo.py",
    ],
)  # fmt: skip
def test_code_that_tells_of_measurements_does_not_count(checkout, file):
    before = code_version()
    with open(checkout / file, "a") as source:
        source.write("\n")
    assert code_version() == before


def test_new_renamed_and_lost_sources_count(checkout):
    versions = [code_version()]
    file = checkout / "numbadsd" / "kernels" / "new.py"
    for change in (file.touch, lambda: file.rename(file.with_stem("other")),
                   (checkout / "numbadsd" / "selection.py").unlink):  # fmt: skip
        change()
        versions.append(code_version())
    assert len(set(versions)) == 4


def test_a_wheel_has_the_version_of_its_checkout(checkout, monkeypatch):
    version = code_version()
    shutil.move(checkout / "cli", checkout / "numbadsd" / "cli")
    shutil.copytree(ROOT / "plots", checkout / "numbadsd" / "plots")
    package = checkout / "numbadsd"
    monkeypatch.setattr(points_module, "_folders", lambda: {"": package, "cli/": package / "cli"})
    assert code_version() == version


def test_the_sources_that_count_are_found_here():
    sources = points_module._sources()
    assert {"__init__.py", "cli/dsd_bench.py", "kernels/cpu/attend.py"} <= set(sources)
    assert sources["__init__.py"] == Path(numbadsd.__file__)
    assert not any("test" in name.split("/")[0] for name in sources)
