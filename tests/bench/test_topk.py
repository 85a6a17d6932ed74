"""`dsd_topk_bench`: cases that are what they claim, figures that follow from each other."""

import json
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from numbadsd.bench import topk_contenders
from numbadsd.bench.record import write_record
from numbadsd.bench.topk import OWN, choose_device, run_topk_bench
from numbadsd.bench.topk_cases import LOW_BITS, TopkCase, make_case, make_lengths, make_scores
from numbadsd.bench.topk_contenders import Memory, Numpy, selections_agree
from numbadsd.bench.topk_report import render_topk
from numbadsd.config import (
    KV_DTYPES,
    TOPK_MAX_K,
    TOPK_MAX_LENGTH,
    TOPK_ORDERS,
    TOPK_VALUES,
    TopkBenchConfig,
)
from numbadsd.errors import CudaUnavailable
from numbadsd.integration.selectors import find_selectors

CONFIG = TopkBenchConfig(rows=5, length=300, k=7, seed=3, iterations=3, warmup=1)
TINY = TopkBenchConfig(rows=3, length=40, k=4, iterations=2, warmup=0, device="gpu")
ONE_CASE = replace(CONFIG, values=("normal",), lengths=("uniform",))
NO_GPU = ("no GPU was found", "plug one in")
CASE_KEYS = {
    "device", "lengths", "values", "bytes", "ms", "rows_per_s", "gbps", "floor_ms", "floors",
    "comparators",
}  # fmt: skip


class FirstIndices:
    """A contender that takes what it finds first."""

    name, version, on_gpu, reason = "first", "1.0", False, None

    def prepare(self, scores, lengths, k, order):
        """Return itself."""
        self._shape = len(scores), k
        return self

    def time_ms(self):
        """Take no time."""
        return 1e-6

    def indices(self):
        """Return the first k indices of every row."""
        return np.broadcast_to(np.arange(self._shape[1]), self._shape)


class Missing(FirstIndices):
    """A contender that cannot run here."""

    name, reason = "missing", "not installed"


class Broken(FirstIndices):
    """A contender that fails."""

    name = "broken"

    def prepare(self, scores, lengths, k, order):
        """Fail."""
        raise RuntimeError("out of luck\nand more")


@pytest.fixture(scope="module", autouse=True)
def small_caches():
    """Read little between samples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topk_contenders, "FEWEST_FLUSH_BYTES", 1 << 20)
        patch.setattr(topk_contenders, "MOST_FLUSH_BYTES", 1 << 20)
        yield


@pytest.fixture(scope="module")
def record(small_caches):
    """Return the record of one run of CONFIG beside contenders that do not do it right."""
    others = [FirstIndices(), Missing(), Broken()]
    return run_topk_bench(CONFIG, "dsd_topk_bench as tested", lambda on_gpu: others)


@pytest.fixture(scope="module")
def gpu_record(small_caches):
    """Return the record of a run in the simulator."""
    return run_topk_bench(TINY)


def cases_of(record):
    """Return the cases by their names."""
    return {(case["lengths"], case["values"]): case for case in record["cases"]}


def rows_of(report):
    """Return the rows of the report's table, split into columns."""
    table = report.split("== Time per Call ==\n")[1]
    lines = [line.split() for line in table.splitlines()]
    return [words for words in lines if words and words[0] in ("uniform", "mix")]


def test_the_limits_are_the_kernels():
    kernel = pytest.importorskip("numbadsd.kernels.topk_shape")
    assert (TOPK_MAX_K, TOPK_MAX_LENGTH) == (kernel.MAX_K, kernel.MAX_WIDTH)


@pytest.mark.parametrize("length", [1, 31, 65536])
@pytest.mark.parametrize(("rows", "num_full"), [(1, 1), (4, 1), (10, 1), (32, 3), (100, 10)])
def test_the_mix_has_one_full_row_in_ten(rows, num_full, length):
    lengths = make_lengths("mix", rows, length, np.random.default_rng(0))
    assert lengths.dtype == np.int32 and len(lengths) == rows
    assert np.count_nonzero(lengths == length) == (rows if length == 1 else num_full)
    assert set(lengths) <= {length, max(1, length // 32)}


def test_full_rows_of_the_mix_stand_anywhere():
    lengths = make_lengths("mix", 200, 64, np.random.default_rng(0))
    assert 0 < np.count_nonzero(lengths[100:] == 64) < 20


def test_uniform_rows_are_full():
    assert make_lengths("uniform", 3, 9, np.random.default_rng(0)).tolist() == [9, 9, 9]


@pytest.mark.parametrize("dtype", KV_DTYPES)
@pytest.mark.parametrize("name", TOPK_VALUES)
def test_scores_are_finite_and_of_the_type(name, dtype):
    scores = make_scores(name, 3, 1000, dtype, np.random.default_rng(0))
    assert scores.dtype == KV_DTYPES[dtype] and scores.shape == (3, 1000)
    assert scores.flags.c_contiguous and np.isfinite(scores.astype(np.float32)).all()


@pytest.mark.parametrize("dtype", KV_DTYPES)
def test_values_are_what_they_claim(dtype):
    def make(name):
        scores = make_scores(name, 2, 5000, dtype, np.random.default_rng(0))
        return scores.astype(np.float32)

    normal = make("normal")
    assert abs(normal.mean()) < 0.05 and abs(normal.std() - 1) < 0.05
    assert len(np.unique(make("equal"))) == 1
    ascending = make("ascending")
    assert (np.diff(ascending) >= 0).all() and ascending[0, 0] < ascending[0, -1]
    np.testing.assert_array_equal(make("descending"), ascending[:, ::-1])


def test_ascending_float32_scores_differ_even_in_the_longest_row():
    scores = make_scores("ascending", 1, TOPK_MAX_LENGTH, "float32", np.random.default_rng(0))
    assert (np.diff(scores[0]) > 0).all()


@pytest.mark.parametrize("dtype", KV_DTYPES)
def test_low_bits_differ_in_the_lowest_mantissa_bits_only(dtype):
    scores = make_scores("low_bits", 2, 5000, dtype, np.random.default_rng(0))
    words = scores.view(f"u{scores.dtype.itemsize}")
    low = (1 << LOW_BITS[dtype]) - 1
    assert len(np.unique(words & ~words.dtype.type(low))) == 1
    assert (words & low).min() == 0 and (words & low).max() == low
    assert scores.astype(np.float32).min() == 1.5


def test_the_same_seed_gives_the_same_case():
    scores = make_case(CONFIG, "mix", "normal").scores
    np.testing.assert_array_equal(scores, make_case(CONFIG, "mix", "normal").scores)
    other = make_case(replace(CONFIG, seed=4), "mix", "normal").scores
    assert not np.array_equal(scores, other)


def test_bytes_are_those_of_the_scores_that_count():
    case = make_case(replace(CONFIG, dtype="float16"), "mix", "normal")
    assert case.num_bytes == 2 * int(case.lengths.sum()) < case.scores.nbytes


@pytest.mark.parametrize(
    ("chosen", "cases"),
    [
        ({}, ["uniform normal", "mix normal", "uniform equal", "uniform ascending",
              "uniform descending", "uniform low_bits"]),
        ({"lengths": ("mix",)}, ["mix normal"]),
        ({"values": ("equal", "low_bits")}, ["uniform equal", "uniform low_bits"]),
        ({"values": ("normal",)}, ["uniform normal", "mix normal"]),
        ({"lengths": ("mix",), "values": ("normal", "equal")}, ["mix normal", "mix equal"]),
    ],
    ids=str,
)  # fmt: skip
def test_cases_are_chosen_by_name(chosen, cases):
    assert [" ".join(names) for names in TopkBenchConfig(**chosen).cases] == cases


def test_the_record_has_every_key(record):
    want = {"schema_version", "command", "config", "environment", "bandwidth", "cases"}
    assert set(record) == want and record["schema_version"] == 1
    assert record["command"] == "dsd_topk_bench as tested"
    assert record["config"]["rows"] == 5 and record["config"]["order"] == "position"
    assert record["config"]["threads"] == record["environment"]["num_threads"]
    assert record["environment"]["first"] == "1.0" and record["environment"]["gpu"] is None
    assert list(cases_of(record)) == [tuple(names) for names in record["config"]["cases"]]
    for case in record["cases"]:
        assert set(case) == CASE_KEYS and case["device"] == "cpu"
        assert list(case["comparators"]) == ["numpy", "first", "missing", "broken"]


def test_figures_follow_from_each_other(record, gpu_record):
    for each, rows, length, memory in (
        (record, 5, 300, "read_gbps"),
        (gpu_record, 3, 40, "copy_gbps"),
    ):
        gbps = each["bandwidth"][memory]["median"]
        for case in each["cases"]:
            ms, num_bytes = case["ms"], case["bytes"]
            assert len(ms["samples"]) == each["config"]["iterations"]
            assert ms["min"] <= ms["median"] == np.median(ms["samples"]) <= ms["p95"]
            assert case["gbps"] == pytest.approx(num_bytes / (ms["median"] * 1e-3) / 1e9)
            assert case["rows_per_s"] == pytest.approx(rows / (ms["median"] * 1e-3))
            assert case["floor_ms"] == pytest.approx(num_bytes / (gbps * 1e9) * 1e3)
            assert case["floors"] == pytest.approx(ms["median"] / case["floor_ms"])
            assert (num_bytes == 4 * rows * length) == (case["lengths"] == "uniform")
            numpy = case["comparators"]["numpy"]
            assert numpy["speedup"] == pytest.approx(numpy["ms"]["median"] / ms["median"])


def test_memory_is_measured_before_every_sample(record, gpu_record):
    cpu, gpu = record["bandwidth"], gpu_record["bandwidth"]
    timed = 3 * (6 + 6 + 2)  # ours, NumPy, and twice the one that is seldom right
    assert len(cpu["read_gbps"]["samples"]) == timed and cpu["copy_gbps"] is None
    assert len(gpu["read_gbps"]["samples"]) == len(gpu["copy_gbps"]["samples"]) == 6 * 2


def test_numpy_agrees_everywhere(record, gpu_record):
    for case in record["cases"] + gpu_record["cases"]:
        numpy = case["comparators"]["numpy"]
        assert numpy["available"] and numpy["agrees"] and numpy["reason"] is None


def test_a_wrong_selection_is_found_and_has_no_time(record):
    agrees = {names: case["comparators"]["first"] for names, case in cases_of(record).items()}
    right = {("uniform", "equal"), ("uniform", "descending")}  # the first are the best there
    for names, first in agrees.items():
        assert first["agrees"] is (names in right) and first["available"]
        assert (first["ms"] is None) == (first["speedup"] is None) == (names not in right)


def test_a_contender_that_cannot_run_says_why(record):
    for case in record["cases"]:
        missing, broken = (case["comparators"][name] for name in ("missing", "broken"))
        assert (missing["available"], missing["reason"]) == (False, "not installed")
        assert (broken["available"], broken["reason"]) == (False, "RuntimeError: out of luck")
        assert missing["ms"] is missing["agrees"] is broken["ms"] is broken["agrees"] is None


def with_times(record, *medians_ms):
    """Return a copy of a record in which the cases took these times, one after the other."""
    copy = json.loads(json.dumps(record))
    for case, ms in zip(copy["cases"], medians_ms, strict=True):
        case["ms"] |= {"median": ms, "p95": 2 * ms, "min": ms / 2}
    return copy


def test_the_report_shows_the_record(record):
    record = with_times(record, 0.0123, 0.5, 0.25, 0.125, 0.999, 0.0625)
    report = render_topk(record)
    lines = report.splitlines()
    for words, case in zip(rows_of(report), record["cases"], strict=True):
        assert words[:2] == [case["lengths"], case["values"]]
        # all under a millisecond: in microseconds, with one digit
        times = [case["ms"][key] * 1e3 for key in ("median", "p95", "min")]
        assert [float(word) for word in words[2:5]] == pytest.approx(times, abs=0.06)
        assert int(words[5]) == round(case["rows_per_s"])
        assert float(words[6]) == pytest.approx(case["gbps"], abs=6e-3)
        assert float(words[8]) == pytest.approx(case["floors"], abs=6e-3)
        numpy = case["comparators"]["numpy"]
        assert float(words[9]) == pytest.approx(numpy["ms"]["median"] * 1e3, abs=0.06)
        assert float(words[10].rstrip("x")) == pytest.approx(numpy["speedup"], abs=6e-3)
    assert "missing: not installed" in lines
    assert lines.count("broken: RuntimeError: out of luck") == 1
    wrong = "uniform/normal, mix/normal, uniform/ascending, uniform/low_bits"
    assert f"first DIFFERS at {wrong}: it selects other scores than we do" in lines
    assert report.count("DIFFERS") == 5
    assert len(report.split("== Reading Guide ==\n")[1].splitlines()) == 2


def test_long_calls_are_told_in_milliseconds(record):
    report = render_topk(with_times(record, 12.3456, 0.1, 0.1, 0.1, 0.1, 0.1))
    assert "Call(ms)" in report and rows_of(report)[0][2] == "12.346"
    assert "Call(us)" in render_topk(with_times(record, *[0.9] * 6))


def test_the_record_survives_json(record, tmp_path):
    write_record(record, tmp_path / "record.json")
    again = json.loads((tmp_path / "record.json").read_text())
    assert again["cases"] == record["cases"]
    assert render_topk(again) == render_topk(record)


def test_the_simulator_is_named_in_the_report(gpu_record):
    report = render_topk(gpu_record)
    assert gpu_record["environment"]["gpu"] == "simulator"
    assert {case["device"] for case in gpu_record["cases"]} == {"gpu"}
    assert "simulator: its times mean nothing" in report and "copies, read and written" in report


@pytest.mark.parametrize("order", TOPK_ORDERS)
@pytest.mark.parametrize("dtype", KV_DTYPES)
def test_numpy_and_both_processors_agree_in_every_type_and_order(dtype, order):
    for device in ("cpu", "gpu"):
        config = replace(TINY, dtype=dtype, order=order, device=device, iterations=1)
        cases = run_topk_bench(config)["cases"]
        assert [case["comparators"]["numpy"]["agrees"] for case in cases] == [True] * 6


@pytest.mark.parametrize(("length", "k"), [(1, 1), (1, 9), (8, 8), (8, 2048)])
def test_rows_no_longer_than_k_are_selected_whole(length, k):
    cases = run_topk_bench(replace(CONFIG, length=length, k=k, iterations=1))["cases"]
    assert all(case["comparators"]["numpy"]["agrees"] for case in cases)


def selection(*rows):
    """Return rows of indices, padded with -1."""
    width = max(map(len, rows))
    return np.array([[*row, *[-1] * (width - len(row))] for row in rows], np.int32)


AGREEMENT = TopkCase(
    "", "", np.array([[3, 1, 3, 2, 3], [5, 4, 9, 9, 9]], np.float32), np.array([5, 2], np.int32)
)


@pytest.mark.parametrize(
    ("theirs", "agrees"),
    [
        (selection([0, 2, 4], [0, 1]), True),
        (selection([4, 0, 2], [1, 0]), True),
        (selection([0, 2, 3], [0, 1]), False),  # a lower score
        (selection([0, 2, 2], [0, 1]), False),  # one of them twice
        (selection([0, 2], [0, 1]), False),  # one too few
        (selection([0, 2, 4, 3], [0, 1]), False),  # one too many
        (selection([0, 2, 4], [0]), False),
        (selection([0, 2, 4], [0, 1, 4]), True),  # beyond the row's length is padding
        (selection([0, 2, 4], [0, 4]), False),
        (selection([0, 2, 9], [0, 1]), False),  # out of range
    ],
)
def test_selections_agree_when_their_scores_do(theirs, agrees):
    ours = selection([0, 2, 4], [0, 1])
    assert selections_agree(AGREEMENT, 3, ours, theirs) is agrees
    assert selections_agree(AGREEMENT, 3, theirs, ours) is agrees


def test_either_break_of_a_tie_agrees():
    case = TopkCase("", "", np.array([[1, 1, 1, 0]], np.float32), np.array([4], np.int32))
    assert selections_agree(case, 2, selection([0, 1]), selection([2, 1]))
    assert not selections_agree(case, 2, selection([0, 1]), selection([0, 3]))


def test_a_wrong_selection_of_ours_is_found_by_numpy(monkeypatch):
    def first(scores, lengths, k, *, sorted, out):
        out[:] = np.arange(k)

    monkeypatch.setattr("numbadsd.topk", first)
    [case] = run_topk_bench(ONE_CASE)["cases"]
    assert case["comparators"]["numpy"]["agrees"] is False


@pytest.mark.parametrize("order", TOPK_ORDERS)
def test_numpys_scores_descend_where_they_are_to(order):
    case = make_case(replace(CONFIG, rows=20), "mix", "normal")
    work = Numpy().prepare(case.scores, case.lengths, 12, order)
    work.time_ms()
    for row, length, chosen in zip(case.scores, case.lengths, work.indices(), strict=True):
        best = np.sort(row[:length])[::-1][:12]
        got = row[chosen[chosen >= 0]]
        np.testing.assert_array_equal(got if order == "score" else np.sort(got)[::-1], best)


def test_auto_is_a_gpu_that_is_usable_and_never_the_simulator(monkeypatch):
    assert [choose_device(name) for name in ("auto", "cpu", "gpu")] == ["cpu", "cpu", "gpu"]
    monkeypatch.setattr("numbadsd.bench.topk.SIMULATED", False)
    assert [choose_device(name) for name in ("auto", "cpu", "gpu")] == ["gpu", "cpu", "gpu"]
    monkeypatch.setattr("numbadsd.bench.topk.why_unavailable", lambda: NO_GPU)
    assert [choose_device(name) for name in ("auto", "cpu")] == ["cpu", "cpu"]
    with pytest.raises(CudaUnavailable, match="no GPU was found; plug one in"):
        choose_device("gpu")


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("2048K", 64 << 20), ("102400K", 100 << 20), ("2G", 512 << 20)]
)
def test_what_is_read_between_samples_outgrows_the_caches(monkeypatch, tmp_path, text, num_bytes):
    (tmp_path / "index0").mkdir()
    (tmp_path / "index0/size").write_text(f"{text}\n")
    monkeypatch.setattr(topk_contenders, "_CACHES", tmp_path)
    monkeypatch.setattr(topk_contenders, "FEWEST_FLUSH_BYTES", 64 << 20)
    monkeypatch.setattr(topk_contenders, "MOST_FLUSH_BYTES", 512 << 20)
    assert topk_contenders.flush_bytes() == num_bytes


def test_warm_up_is_measured_and_not_kept():
    memory = Memory(uses_gpu=True)
    for on_gpu in (False, True):
        memory.measure(on_gpu, is_kept=False)
    assert memory.read_gbps == memory.copy_gbps == []
    memory.measure(True, is_kept=True)
    assert memory.read_gbps == [] and len(memory.copy_gbps) == 1


@pytest.mark.parametrize(("on_gpu", "names"), [(False, ["torch"]), (True, ["torch", "cupy"])])
def test_libraries_that_are_not_installed_say_so(monkeypatch, on_gpu, names):
    monkeypatch.setattr("numbadsd.integration.selectors.find_spec", lambda name: None)
    selectors = find_selectors(on_gpu)
    assert [(s.name, s.reason, s.on_gpu) for s in selectors] == [
        (name, "not installed", on_gpu) for name in names
    ]


@pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")
@pytest.mark.parametrize("order", TOPK_ORDERS)
@pytest.mark.parametrize("dtype", KV_DTYPES)
def test_torch_agrees_on_every_case(dtype, order):
    for k in (7, 2048):
        config = replace(CONFIG, dtype=dtype, order=order, k=k, iterations=1)
        for case in run_topk_bench(config, other_contenders=find_selectors)["cases"]:
            assert case["comparators"]["torch"]["agrees"], case["comparators"]["torch"]["reason"]


def test_our_own_name_is_no_comparators(record):
    assert all(OWN not in case["comparators"] for case in record["cases"])
