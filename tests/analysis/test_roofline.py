"""Bytes, operations and floors: the reference's formulas with numbers worked out by hand.

The batch of most tests has contexts of 3, 8 and 9 tokens on pages of 4, of which 2 are selected:
T = 20 tokens, P = 1 + 2 + 3 = 6 pages, S = (1 + 2 + 2) * 4 = 20 tokens.
"""

import numpy as np
import pytest

from numbadsd.analysis.devices import Roof
from numbadsd.analysis.roofline import (
    MODELS,
    Traffic,
    break_even_tokens,
    path_bytes,
    selected_tokens,
    step_traffic,
)
from numbadsd.config import ModelConfig

CONTEXTS = np.array([3, 8, 9])
PATH_CONTEXTS = np.array([9, 3, 0])  # 3, 1 and 0 pages of 4: tail pages of 1 and of 3 tokens
H100 = Roof(read_gbps=3350.0, fp32_gflops=67000.0)


def model(**changes):
    """Return a layer of 2 heads of 16: 32 elements a token."""
    fields = dict(num_heads=2, head_dim=16, page_size=4, top_k_pages=2)
    return ModelConfig(**(fields | changes))


def grouped(**changes):
    """Return a layer of 8 query heads on 2 kv heads of 16: 32 elements a token, groups of 4."""
    return model(num_heads=8, num_kv_heads=2, **changes)


def bytes_of(config):
    """Return the bytes of every model for CONTEXTS, in the order of MODELS."""
    return [step_traffic(config, CONTEXTS)[name].num_bytes for name in MODELS]


def flops_of(config):
    """Return the operations of every model for CONTEXTS, in the order of MODELS."""
    return [step_traffic(config, CONTEXTS)[name].flops for name in MODELS]


def test_models_come_in_the_references_order():
    assert MODELS == ("dense", "sparse_current", "sparse_target")
    assert tuple(step_traffic(model(), CONTEXTS)) == MODELS


def test_bytes_are_the_references_2t_and_t_plus_6s_and_p_plus_2s():
    # 4 bytes * 32 elements * (2 * 20, 20 + 6 * 20, 6 + 2 * 20)
    assert bytes_of(model()) == [5120, 17920, 5888]


def test_operations_are_the_references_4t_and_2p_plus_4s():
    # 32 elements * (4 * 20, 2 * 6 + 4 * 20)
    assert flops_of(model()) == [2560, 2944, 2944]


def test_the_references_default_layer_at_published_shape():
    config = ModelConfig(num_heads=32, head_dim=128, page_size=16, top_k_pages=8)
    traffic = step_traffic(config, np.full(16, 4096))  # T 65536, P 4096, S 2048, ept 4096
    assert traffic["dense"].num_bytes == 4 * 4096 * 2 * 65536
    assert traffic["sparse_current"].num_bytes == 4 * 4096 * (65536 + 6 * 2048)
    assert traffic["sparse_target"].num_bytes == 4 * 4096 * (4096 + 2 * 2048)
    assert traffic["dense"].flops == 4 * 65536 * 4096
    assert traffic["sparse_target"].flops == (2 * 4096 + 4 * 2048) * 4096


def test_grouped_queries_share_the_bytes_but_not_the_operations():
    assert bytes_of(grouped()) == [5120, 17920, 5888]
    assert flops_of(grouped()) == [4 * 2560, 4 * 2944, 4 * 2944]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_halves_the_bytes_and_leaves_the_operations(dtype):
    assert bytes_of(model(kv_dtype=dtype)) == [2560, 8960, 2944]
    assert flops_of(model(kv_dtype=dtype)) == [2560, 2944, 2944]


@pytest.mark.parametrize("summary", ["minmax", "cuboid_mean", "mean_std"])
def test_two_vectors_a_page_double_what_scoring_reads(summary):
    # sparse_target 4 * 32 * (2 * 6 + 2 * 20); sparse_current scores every key: unchanged
    assert bytes_of(model(summary=summary)) == [5120, 17920, 6656]
    assert flops_of(model(summary=summary)) == [2560, 3328, 3328]


def test_summaries_count_in_their_own_precision():
    config = model(kv_dtype="float16", summary_dtype="float32")
    # summaries 4 * 32 * 6, selected 2 * 32 * 2 * 20
    assert bytes_of(config)[2] == 768 + 2560


def test_query_heads_of_their_own_selection_read_pages_once_each():
    # 4 query heads a kv head: S counts four times
    assert bytes_of(grouped(share="query_head")) == [5120, 128 * 500, 128 * 166]
    assert flops_of(grouped(share="query_head")) == flops_of(grouped())


def test_a_shared_selection_is_read_once_whoever_shares_it():
    assert bytes_of(grouped(share="kv_head")) == bytes_of(grouped(share="request"))


def test_selecting_nothing_leaves_only_the_scoring():
    assert bytes_of(model(top_k_pages=0)) == [5120, 128 * 20, 128 * 6]
    assert flops_of(model(top_k_pages=0)) == [2560, 32 * 12, 32 * 12]


def test_floors_are_bytes_and_operations_over_the_rates_of_the_machine():
    bandwidth_us, compute_us = Traffic(num_bytes=3_350_000, flops=134_000_000).floors_us(H100)
    assert bandwidth_us == pytest.approx(1.0)  # 3.35e6 bytes at 3.35e12 a second
    assert compute_us == pytest.approx(2.0)


def test_intensity_is_operations_a_byte_and_zero_of_nothing():
    assert Traffic(num_bytes=200, flops=100).intensity == 0.5
    assert Traffic(num_bytes=0, flops=0).intensity == 0.0


def test_a_dense_path_moves_every_token_that_is_there_and_no_more():
    # 12 tokens, K and V, 2 kv heads of 16 float32
    assert path_bytes(grouped(), PATH_CONTEXTS, None) == 12 * 256


def test_a_fused_path_moves_summaries_and_selected_tokens():
    selected = np.array([[[0, 2]], [[0, -1]], [[-1, -1]]], np.int32)
    # pages 0 (4 tokens) and 2 (the tail: 1 token) of the first, the only page (3) of the second
    assert selected_tokens(grouped(), PATH_CONTEXTS, selected).tolist() == [[5], [3], [0]]
    summaries = (3 + 1 + 0) * 128
    assert path_bytes(grouped(), PATH_CONTEXTS, selected) == summaries + 8 * 256


def test_a_staged_path_moves_selected_tokens_three_times():
    selected = np.array([[[0, 2]], [[0, -1]], [[-1, -1]]], np.int32)
    assert path_bytes(grouped(), PATH_CONTEXTS, selected, fused=False) == 512 + 3 * 8 * 256


def test_a_dense_path_stages_nothing():
    assert path_bytes(grouped(), PATH_CONTEXTS, None, fused=False) == 12 * 256


@pytest.mark.parametrize(("share", "units"), [("kv_head", 2), ("query_head", 8)])
def test_units_of_one_head_move_one_heads_share_of_a_page(share, units):
    selected = np.full((3, units, 2), -1, np.int32)
    selected[0, :, 0] = 1
    selected[0, 0] = 0, 2
    selected[1, -1, 0] = 0
    # unit 0 of the first: 4 + 1 tokens, its others 4 each; the last unit of the second: 3
    tokens = 5 + 4 * (units - 1) + 3
    config = grouped(share=share, kv_dtype="float16", summary="minmax", summary_dtype="float32")
    summaries = 4 * 2 * 2 * 16 * 4
    token_bytes = 2 * 16 * 2
    assert path_bytes(config, PATH_CONTEXTS, selected) == summaries + tokens * token_bytes


def test_selecting_whole_pages_everywhere_agrees_with_the_model():
    contexts = np.array([8, 16])
    selected = np.array([[[0, 1]], [[1, 3]]], np.int32)
    assert path_bytes(model(), contexts, selected) == (
        step_traffic(model(), contexts)["sparse_target"].num_bytes
    )


CONFIGS = [
    model(),
    model(summary="minmax", page_size=2),
    grouped(share="query_head", top_k_pages=5),
    grouped(kv_dtype="bfloat16", summary="mean_std", summary_dtype="float32", top_k_pages=7),
    ModelConfig(num_heads=32, num_kv_heads=8, head_dim=128, top_k_pages=64, summary="minmax"),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_break_even_solves_its_own_equation(config):
    tokens = break_even_tokens(config)
    elements = config.num_kv_heads * config.head_dim
    element_bytes = 4 if config.kv_dtype == "float32" else 2
    summary_bytes = 4 if config.summary_dtype == "float32" else 2
    vectors = 1 if config.summary == "mean" else 2
    readers = config.num_heads // config.num_kv_heads if config.share == "query_head" else 1
    selected = config.top_k_pages * config.page_size
    dense = 2 * tokens * elements * element_bytes
    sparse = tokens / config.page_size * vectors * elements * summary_bytes
    sparse += 2 * selected * elements * element_bytes * readers
    assert dense == pytest.approx(sparse, rel=1e-12)


@pytest.mark.parametrize("config", CONFIGS)
def test_break_even_is_where_the_models_cross(config):
    tokens = break_even_tokens(config)
    first = config.top_k_pages * config.page_size  # below, k pages are not there to select
    for context in first + config.page_size * np.arange(4 * config.top_k_pages * config.group_size):
        traffic = step_traffic(config, np.array([context]))
        sparse_is_less = traffic["sparse_target"].num_bytes < traffic["dense"].num_bytes
        assert sparse_is_less == (context > tokens)


def test_sparse_never_breaks_even_when_summaries_weigh_as_much_as_the_cache():
    assert break_even_tokens(model(page_size=1, summary="minmax")) == float("inf")
    config = model(page_size=1, kv_dtype="float16", summary_dtype="float32")
    assert break_even_tokens(config) == float("inf")


def test_sparse_breaks_even_at_once_when_it_selects_nothing():
    assert break_even_tokens(model(top_k_pages=0)) == 0.0
