"""Quality of a selection: cases computed by hand, and an independent loop over tokens."""

import math

import numpy as np
import pytest

from numbadsd.analysis.quality import Quality, measure_quality
from tests import oracle
from tests.builders import SHARES, make_cache, random_queries, small_config

UNITS = {"request": 1, "kv_head": 2, "query_head": 4}


def cache_of_logits(logits, **changes):
    """Return a cache of one request whose token t has logit `logits[t]`, and the query for it.

    One head of 16 channels; the first channel of a key holds the logit, sm_scale is 1/4.
    """
    fields = dict(num_heads=1, num_kv_heads=1, page_size=2, top_k_pages=2)
    cache, _, _ = make_cache(small_config(**(fields | changes)), [], capacity_pages=16)
    keys = np.zeros((len(logits), 1, 16), np.float32)
    keys[:, 0, 0] = logits
    cache.append_tokens(0, keys, keys)
    queries = np.zeros((1, 1, 16), np.float32)
    queries[0, 0, 0] = 4
    return cache, queries


def quality_of(cache, queries, selected, dense=None, sparse=None, **options):
    """Measure with outputs that agree unless they are given."""
    dense = np.ones_like(queries) if dense is None else dense
    sparse = dense if sparse is None else sparse
    selected = np.asarray(selected, np.int32)
    ids = list(range(len(queries)))
    return measure_quality(cache, queries, ids, selected, dense, sparse, **options)


def random_selection(rng, table, units, k):
    """Return ascending random pages for every unit, [B, S, k], -1 at the tail."""
    selected = np.full((table.num_requests, units, k), -1, np.int32)
    for request, pages in enumerate(table.page_counts):
        for unit in range(units):
            count = rng.integers(0, min(k, pages) + 1)
            chosen = np.sort(rng.choice(pages, count, replace=False))
            selected[request, unit, :count] = chosen
    return selected


def slow_quality(config, keys, queries, selected, dense, sparse, needles):
    """Compute Quality token by token, from the definition."""
    dense, sparse = dense.astype(np.float64), sparse.astype(np.float64)
    sums = {name: [] for name in Quality.__dataclass_fields__}
    for b, tokens in enumerate(len(k) for k in keys):
        for head in range(config.num_heads if tokens else 0):
            unit = head * selected.shape[1] // config.num_heads
            chosen = {int(page) for page in selected[b, unit] if page >= 0}
            logits = [
                sum(float(q) * float(k) for q, k in zip(queries[b, head], row, strict=True))
                / math.sqrt(config.head_dim)
                for row in keys[b][:, head // config.group_size]
            ]
            weights = [math.exp(logit - max(logits)) for logit in logits]
            pages = -(-tokens // config.page_size)
            mass = [0.0] * pages
            for token, weight in enumerate(weights):
                mass[token // config.page_size] += weight / sum(weights)
            order = sorted(range(pages), key=lambda page: (-mass[page], page))
            truth = set(order[: min(selected.shape[2], pages)])
            sinks = set(range(config.num_sink_pages))
            forced = sinks | set(range(pages - config.num_recent_pages, pages))
            read = sum(1 for token in range(tokens) if token // config.page_size in chosen)
            error = np.linalg.norm(sparse[b, head] - dense[b, head])
            sums["page_recall"].append(len(chosen & truth) / len(truth))
            sums["attention_mass"].append(sum(mass[page] for page in chosen))
            sums["candidate_mass"].append(sum(mass[page] for page in chosen - forced))
            sums["output_relative_error"].append(error / np.linalg.norm(dense[b, head]))
            sums["density"].append(read / tokens)
            wanted = set(needles[b].tolist())
            if wanted:
                sums["needle_recall"].append(len(wanted & chosen) / len(wanted))
    return Quality(**{name: float(np.mean(values)) for name, values in sums.items()})


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kv_dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("sinks, recents", [(0, 0), (1, 2)])
def test_quality_is_what_a_slow_loop_over_tokens_says(share, kv_dtype, sinks, recents):
    forced = dict(num_sink_pages=sinks, num_recent_pages=recents)
    config = small_config(share=share, kv_dtype=kv_dtype, top_k_pages=4, **forced)
    cache, keys, values = make_cache(config, [37, 0, 1, 24, 8], seed=3, shuffle=5)
    queries = random_queries(config, 5, seed=4) * 2
    rng = np.random.default_rng(6)
    selected = random_selection(rng, cache.page_table(range(5)), UNITS[share], 4)
    dense, sparse = rng.standard_normal((2, 5, 4, 16)).astype(np.float32)
    needles = [np.array(pages, np.int64) for pages in ([2, 7], [], [], [5], [0, 1])]
    actual = measure_quality(cache, queries, range(5), selected, dense, sparse, needles)
    expected = slow_quality(config, keys, queries, selected, dense, sparse, needles)
    for name in Quality.__dataclass_fields__:
        assert getattr(actual, name) == pytest.approx(getattr(expected, name), rel=1e-9), name


def test_a_case_by_hand():
    # Weights 1 2 | 3 4 | 5: pages of mass 3/15, 7/15, 5/15; the best two are pages 1 and 2.
    cache, queries = cache_of_logits(np.log([1, 2, 3, 4, 5]))
    dense = np.zeros((1, 1, 16), np.float32)
    dense[0, 0, :2] = 3, 4
    sparse = dense.copy()
    sparse[0, 0, 5] = 0.5
    quality = quality_of(cache, queries, [[[0, 2]]], dense, sparse, needle_pages=[np.array([2])])
    assert quality.page_recall == 0.5
    assert quality.attention_mass == pytest.approx(8 / 15, abs=1e-6)
    assert quality.candidate_mass == quality.attention_mass
    assert quality.output_relative_error == pytest.approx(0.1)
    assert quality.density == pytest.approx(3 / 5)
    assert quality.needle_recall == 1.0
    assert all(type(value) is float for value in vars(quality).values())


def test_forced_pages_are_no_candidates():
    forced = dict(num_sink_pages=1, num_recent_pages=1, top_k_pages=3)
    cache, queries = cache_of_logits(np.log([1, 2, 3, 4, 5]), **forced)
    quality = quality_of(cache, queries, [[[0, 1, 2]]])
    assert quality.attention_mass == pytest.approx(1)
    assert quality.candidate_mass == pytest.approx(7 / 15, abs=1e-6)


@pytest.mark.parametrize("sinks, recents", [(3, 0), (0, 5), (2, 2), (5, 5)])
def test_no_candidates_are_left_when_every_page_is_forced(sinks, recents):
    forced = dict(num_sink_pages=sinks, num_recent_pages=recents, top_k_pages=10)
    cache, queries = cache_of_logits(np.log([1, 2, 3, 4, 5]), **forced)
    quality = quality_of(cache, queries, [[[0, 1, 2] + [-1] * 7]])
    assert quality.candidate_mass == 0
    assert quality.attention_mass == pytest.approx(1)


def test_pages_of_equal_mass_rank_by_lower_position():
    cache, queries = cache_of_logits([0.3] * 22)
    assert quality_of(cache, queries, [[[0, 1]]]).page_recall == 1
    assert quality_of(cache, queries, [[[1, 2]]]).page_recall == 0.5
    assert quality_of(cache, queries, [[[9, 10]]]).page_recall == 0


@pytest.mark.parametrize("page_size, tokens", [(16, 16 * 600), (3, 5000)])
@pytest.mark.parametrize("head_dim, heads", [(80, 3), (128, 8)])
def test_ties_survive_blocks_sorting_and_odd_sizes(page_size, tokens, head_dim, heads):
    shape = dict(num_heads=heads, num_kv_heads=1, head_dim=head_dim, share="query_head")
    config = small_config(page_size=page_size, top_k_pages=5, **shape)
    cache, _, _ = make_cache(config, [], capacity_pages=-(-tokens // page_size))
    rng = np.random.default_rng(7)
    kinds = rng.standard_normal((3, 1, head_dim)).astype(np.float32)  # a page repeats one key
    kind_of_page = rng.integers(0, 3, size=tokens // page_size)
    kind_of_page = np.append(kind_of_page, [0])  # the tail page, if there is one
    keys = kinds[np.repeat(kind_of_page, page_size)[:tokens]]
    cache.append_tokens(0, keys, keys)
    queries = random_queries(config, 1, 8)
    best_kinds = np.argmax(queries[0].astype(np.float64) @ kinds[:, 0].T, axis=1)
    selected = np.stack([np.flatnonzero(kind_of_page == kind)[:5] for kind in best_kinds])
    assert quality_of(cache, queries, selected[None]).page_recall == 1


def test_fewer_pages_than_k_are_all_the_truth():
    cache, queries = cache_of_logits(np.log([1, 2, 3]), top_k_pages=6)
    quality = quality_of(cache, queries, [[[0, 1, -1, -1, -1, -1]]])
    assert (quality.page_recall, quality.density) == (1, 1)
    assert quality.attention_mass == pytest.approx(1)
    assert quality_of(cache, queries, [[[1, -1, -1, -1, -1, -1]]]).page_recall == 0.5


def test_k_0_keeps_nothing_and_has_no_recall():
    cache, queries = cache_of_logits(np.log([1, 2, 3]), top_k_pages=0)
    zeros = np.zeros_like(queries)
    quality = quality_of(cache, queries, np.empty((1, 1, 0)), sparse=zeros)
    assert math.isnan(quality.page_recall)
    assert (quality.attention_mass, quality.candidate_mass, quality.density) == (0, 0, 0)
    assert quality.output_relative_error == 1


def test_empty_contexts_are_left_out_of_every_mean():
    config = small_config(top_k_pages=1)
    queries = random_queries(config, 3, 1)
    outputs = np.ones_like(queries)
    cache, _, _ = make_cache(config, [0, 9, 0])
    selected = np.array([[[-1]], [[2]], [[-1]]], np.int32)
    needles = [np.array([], np.int64), np.array([2]), np.array([], np.int64)]
    mixed = measure_quality(cache, queries, [0, 1, 2], selected, outputs, outputs * 2, needles)
    alone = measure_quality(
        cache, queries[1:2], [1], selected[1:2], outputs[1:2], outputs[1:2] * 2, needles[1:2]
    )
    assert mixed == alone and mixed.needle_recall == 1 and mixed.density == pytest.approx(1 / 9)
    nothing = measure_quality(cache, queries[:1], [0], selected[:1], outputs[:1], outputs[:1])
    assert nothing.needle_recall is None
    assert all(math.isnan(v) for n, v in vars(nothing).items() if n != "needle_recall")


def test_outputs_of_zero_agree_with_zero_and_with_nothing_else():
    cache, queries = cache_of_logits([0, 0])
    zeros = np.zeros_like(queries)
    assert quality_of(cache, queries, [[[0, -1]]], dense=zeros).output_relative_error == 0
    quality = quality_of(cache, queries, [[[0, -1]]], dense=zeros, sparse=zeros + 1)
    assert quality.output_relative_error == math.inf


@pytest.mark.parametrize("share", SHARES)
def test_each_head_finds_the_needle_through_its_unit(share):
    config = small_config(share=share, top_k_pages=1)
    cache, _, _ = make_cache(config, [16])
    queries = random_queries(config, 1, 2)
    # The first unit selects page 3, the others page 0; the needle is in page 3.
    selected = np.zeros((1, UNITS[share], 1), np.int32)
    selected[0, 0] = 3
    needle = [np.array([3])]
    quality = quality_of(cache, queries, selected, needle_pages=needle)
    assert quality.needle_recall == {"request": 1, "kv_head": 0.5, "query_head": 0.25}[share]
    quality = quality_of(cache, queries, selected, needle_pages=needle, needle_heads=[0])
    assert quality.needle_recall == 1
    quality = quality_of(cache, queries, selected, needle_pages=needle, needle_heads=[3])
    assert quality.needle_recall == (share == "request")


def test_without_needles_there_is_no_needle_recall():
    cache, queries = cache_of_logits([0, 0])
    empty = [np.array([], np.int64)]
    assert quality_of(cache, queries, [[[0, -1]]]).needle_recall is None
    assert quality_of(cache, queries, [[[0, -1]]], needle_pages=empty).needle_recall is None


def test_the_truth_comes_from_keys_as_stored():
    # In bfloat16 1.001 rounds to 1, the key of the page before it: a tie, so the lower page leads.
    logits = [1, 0, 1.001, 0]
    for kv_dtype, best_page in (("bfloat16", 0), ("float32", 1)):
        cache, queries = cache_of_logits(logits, kv_dtype=kv_dtype, top_k_pages=1)
        assert quality_of(cache, queries, [[[best_page]]]).page_recall == 1


def test_nan_and_infinite_logits_rank_as_in_the_selection():
    cache, queries = cache_of_logits([0, 0, 1, 1, 2, 2], top_k_pages=1)
    ids = cache.request_pages(0)
    cache.pool.keys[ids[2], 0, :, 0] = np.nan  # logit NaN: as -inf
    quality = quality_of(cache, queries, [[[1]]])
    assert quality.page_recall == 1
    assert quality.attention_mass == pytest.approx(1 / (1 + math.exp(-1)))
    cache.pool.keys[ids[0], 0, :, 0] = np.inf  # takes all the mass
    quality = quality_of(cache, queries, [[[0]]])
    assert (quality.page_recall, quality.attention_mass) == (1, 1)


def test_a_context_of_nan_alone_is_attended_evenly():
    cache, queries = cache_of_logits([0, 0, 0], top_k_pages=1)
    cache.pool.keys[:, 0, :, 0] = np.nan
    assert quality_of(cache, queries, [[[0]]]).attention_mass == pytest.approx(2 / 3)


def test_huge_logits_do_not_overflow():
    cache, queries = cache_of_logits([-3e4, 3e4, 3e4, 3e4], top_k_pages=1)
    quality = quality_of(cache, queries, [[[1]]])
    assert quality.attention_mass == pytest.approx(2 / 3) and quality.page_recall == 1


def test_slots_after_the_last_token_do_not_count():
    cache, queries = cache_of_logits([-3e4, -3e4, -3e4], top_k_pages=1)
    tail_page = cache.request_pages(0)[1]
    for stale in (0, 3e4, np.nan):  # a page that was used before
        cache.pool.keys[tail_page, 0, 1, 0] = stale
        quality = quality_of(cache, queries, [[[0]]])
        assert quality.attention_mass == pytest.approx(2 / 3) and quality.page_recall == 1


@pytest.mark.parametrize(
    "argument, shape",
    [
        ("queries", (1, 3, 16)),
        ("dense_outputs", (2, 4, 16)),
        ("sparse_outputs", (1, 4, 8)),
        ("selected_pages", (1, 2, 2)),
        ("selected_pages", (2, 1, 2)),
        ("selected_pages", (1, 2)),
    ],
)
def test_wrong_shapes_are_refused_by_name(argument, shape):
    cache, _, _ = make_cache(small_config(), [8])
    full = np.zeros((1, 4, 16), np.float32)
    arrays = dict(queries=full, dense_outputs=full, sparse_outputs=full)
    arrays |= dict(selected_pages=np.zeros((1, 1, 2), np.int32))
    arrays |= {argument: np.zeros(shape, arrays[argument].dtype)}
    with pytest.raises(ValueError, match=f"{argument}: got"):
        measure_quality(cache, request_ids=[0], **arrays)


def test_pages_outside_the_context_are_refused():
    cache, queries = cache_of_logits([0] * 4)
    for page in (2, -2):
        with pytest.raises(ValueError, match="selected_pages"):
            quality_of(cache, queries, [[[0, page]]])
    for page in (2, -1):
        with pytest.raises(ValueError, match="needle_pages"):
            quality_of(cache, queries, [[[0, 1]]], needle_pages=[np.array([page])])


def test_a_whole_selection_is_perfect_and_half_of_one_is_not():
    config = small_config(share="query_head", top_k_pages=2)
    cache, keys, values = make_cache(config, [40], seed=9)
    queries = random_queries(config, 1, 10)
    selected = np.tile(np.arange(10, dtype=np.int32), (1, 4, 1))
    dense, _ = oracle.attention(queries[0], keys[0], values[0], config.sm_scale)
    every = quality_of(cache, queries, selected, dense[None], dense[None])
    assert every.output_relative_error == 0 and every.page_recall == 1 and every.density == 1
    half = selected[:, :, :5]
    sparse, _ = oracle.attention_over_pages(
        queries[0], keys[0], values[0], half[0], config.page_size, config.sm_scale
    )
    part = quality_of(cache, queries, half, dense[None], sparse[None])
    assert 0 < part.output_relative_error and part.attention_mass < 1 and part.density == 0.5
