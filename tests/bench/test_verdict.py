"""The verdict: one sentence that is right for every kind of record."""

import pytest

from numbadsd.analysis.roofline import break_even_tokens
from numbadsd.bench.verdict import decide
from numbadsd.config import ModelConfig
from tests.bench.records import decode_record, missing_path, path_record

MODEL = ModelConfig(top_k_pages=8, page_size=16)  # breaks even at 8 * 16 * 32 / 31 tokens


def verdict_of(dense=None, sparse=None, model=MODEL, **paths):
    """Return the verdict on a record with these CPU paths and any others."""
    dense, sparse = dense or path_record(4.0), sparse or path_record(1.0)
    return decide(decode_record(dense_cpu=dense, sparse_cpu=sparse, **paths), model)


def assert_is_one_sentence(verdict):
    """Fail unless the sentence is one line and every number in it is one."""
    sentence = verdict["sentence"]
    assert "\n" not in sentence and sentence.endswith(".") and sentence[0].isupper()
    assert "nan" not in sentence and "inf " not in sentence


def test_sparse_wins_with_both_times_and_the_ratio():
    verdict = verdict_of(path_record(4.0), path_record(1.0))
    assert verdict["winner"] == "sparse" and verdict["speedup"] == 4.0
    assert verdict["sentence"].startswith("Sparse wins here by 4.00x on the CPU (1 ms against 4 ms")
    assert_is_one_sentence(verdict)


def test_sparse_loses_with_how_much_slower_it_is():
    verdict = verdict_of(path_record(1.0), path_record(2.5))
    assert verdict["winner"] == "dense" and verdict["speedup"] == 0.4
    start = "Sparse loses here: it is 2.50x slower on the CPU (2.5 ms against 1 ms)"
    assert verdict["sentence"].startswith(start)
    assert_is_one_sentence(verdict)


@pytest.mark.parametrize("sparse_ms", [0.96, 1.0, 1.04])
def test_less_than_five_percent_is_no_difference(sparse_ms):
    verdict = verdict_of(path_record(1.0), path_record(sparse_ms))
    assert verdict["winner"] is None
    assert verdict["sentence"].startswith("Sparse and dense are equal here on the CPU, within 5 %")
    assert_is_one_sentence(verdict)


@pytest.mark.parametrize(("sparse_ms", "winner"), [(0.94, "sparse"), (1.06, "dense")])
def test_more_than_five_percent_is_a_difference(sparse_ms, winner):
    assert verdict_of(path_record(1.0), path_record(sparse_ms))["winner"] == winner


@pytest.mark.parametrize(
    ("sparse", "largest", "words"),
    [
        (path_record(1.0, attend=0.6, score=0.3, topk=0.1), "attend", "60% of the sparse step is"),
        (path_record(1.0, attend=0.2, score=0.7, topk=0.1), "score", "70% of the sparse step is"),
        (path_record(1.0, attend=0.1, gather=0.9), "gather", "90% of the sparse step is"),
        (
            path_record(1.0, attend=0.3, overheads={"malloc": 0.4, "page_table": 0.3}),
            "overheads",
            "70% of the sparse step is",
        ),
    ],
)
def test_the_largest_part_of_the_sparse_step_is_named(sparse, largest, words):
    verdict = verdict_of(sparse=sparse)
    assert verdict["largest_part"] == largest
    assert f"{words} {largest}" in verdict["sentence"]
    assert_is_one_sentence(verdict)


def test_what_choosing_pages_costs_is_said_once():
    attend = verdict_of(sparse=path_record(1.0, attend=0.6, score=0.3, topk=0.1))["sentence"]
    assert "and 40% is choosing the pages" in attend
    score = verdict_of(sparse=path_record(1.0, attend=0.2, score=0.7, topk=0.1))["sentence"]
    assert "choosing the pages" not in score


@pytest.mark.parametrize("fraction", [0.7, 0.95, 1.2])
def test_dense_near_its_limit_is_a_fair_opponent(fraction):
    verdict = verdict_of(path_record(4.0, fraction=fraction))
    assert verdict["dense_near_limit"] is True
    assert f"dense reads at {fraction:.2f} of the bandwidth measured here" in verdict["sentence"]
    assert "flatters" not in verdict["sentence"]


def test_dense_far_from_its_limit_flatters_sparse():
    verdict = verdict_of(path_record(4.0, fraction=0.125))
    assert verdict["dense_near_limit"] is False
    assert verdict["dense_bandwidth_fraction"] == 0.125
    assert (
        "dense reads at 0.12 of the bandwidth measured here, so the ratio flatters sparse"
        in (verdict["sentence"])
    )
    assert_is_one_sentence(verdict)


def test_a_tiny_batch_is_told_from_a_slow_dense_path():
    verdict = verdict_of(path_record(0.5, fraction=0.125), path_record(0.1))
    assert "so small that fixed costs of a step show" in verdict["sentence"]
    assert "flatters" not in verdict["sentence"]


def test_the_break_even_context_stands_beside_the_mean_one():
    verdict = verdict_of()
    assert verdict["break_even_context_tokens"] == break_even_tokens(MODEL)
    end = "breaks even at a context of 132 tokens (mean context here: 2,000)."
    assert verdict["sentence"].endswith(end)


def test_summaries_as_large_as_the_cache_never_break_even():
    verdict = verdict_of(model=ModelConfig(page_size=1, summary="minmax"))
    assert verdict["break_even_context_tokens"] == float("inf")
    assert verdict["sentence"].endswith(
        "by bytes sparse never breaks even: the summaries outweigh what it saves."
    )
    assert_is_one_sentence(verdict)


@pytest.mark.parametrize("unsteady", ["dense", "sparse"])
def test_samples_that_scatter_are_said_to(unsteady):
    verdict = verdict_of(**{unsteady: path_record(1.0, spread=1.75)})
    assert verdict["sentence"].endswith(
        ". The samples are unsteady (p95 is 1.8x the median): measure again when idle."
    )
    assert "unsteady" not in verdict_of(path_record(1.0, spread=1.5))["sentence"]


@pytest.mark.parametrize(
    "paths",
    [
        {"dense_cpu": path_record(1.0)},
        {"sparse_cpu": path_record(1.0)},
        {"dense_cpu": path_record(1.0), "sparse_gpu": path_record(1.0)},
        {"dense_gpu": missing_path(), "sparse_gpu": missing_path()},
        {"dense_cpu": path_record(1.0), "sparse_cpu": missing_path()},
    ],
)
def test_there_is_no_verdict_without_a_pair_of_one_backend(paths):
    verdict = decide(decode_record(**paths), MODEL)
    assert verdict["winner"] is verdict["speedup"] is None
    assert verdict["sentence"].startswith("No verdict")
    assert_is_one_sentence(verdict)


def test_a_gpu_pair_that_ran_is_judged_before_the_cpu_pair():
    verdict = verdict_of(dense_gpu=path_record(3.0), sparse_gpu=path_record(6.0))
    assert verdict["backend"] == "gpu" and verdict["winner"] == "dense"
    assert "2.00x slower on the GPU" in verdict["sentence"]


def test_a_simulated_gpu_pair_is_not_judged():
    gpu_paths = {"dense_gpu": path_record(3.0), "sparse_gpu": path_record(1.0)}
    verdict = decide(decode_record("simulator", **gpu_paths), MODEL)
    assert verdict["winner"] is verdict["speedup"] is None
    assert verdict["sentence"].startswith("No verdict")
    assert "the simulator mean nothing" in verdict["sentence"]
    assert_is_one_sentence(verdict)


def test_a_simulated_gpu_pair_leaves_the_cpu_pair():
    cpu_paths = {"dense_cpu": path_record(1.0), "sparse_cpu": path_record(2.0)}
    gpu_paths = {"dense_gpu": path_record(3.0), "sparse_gpu": path_record(1.0)}
    verdict = decide(decode_record("simulator", **cpu_paths, **gpu_paths), MODEL)
    assert verdict["backend"] == "cpu" and verdict["winner"] == "dense"


def test_a_gpu_pair_that_is_missing_leaves_the_cpu_pair():
    verdict = verdict_of(dense_gpu=missing_path(), sparse_gpu=missing_path())
    assert verdict["backend"] == "cpu" and verdict["winner"] == "sparse"
