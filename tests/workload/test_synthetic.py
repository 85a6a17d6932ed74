"""Synthetic batches: the same numbers however they are read, and the structure they promise."""

import numpy as np
import pytest

from numbadsd.config import ModelConfig
from numbadsd.kernels import shared
from numbadsd.kernels.cpu import prefill
from numbadsd.workload.synthetic import (
    HEAD_KINDS,
    SINK_TOKENS,
    StructuredWorkload,
    UniformWorkload,
    draw_context_tokens,
)

CONFIG = ModelConfig(num_heads=8, num_kv_heads=2, head_dim=32)
WORKLOADS = (UniformWorkload, StructuredWorkload)


def read(workload, request, max_tokens=4096):
    """Return the keys and values of a request, [tokens, G, D] each."""
    chunks = list(workload.chunks(request, max_tokens))
    if not chunks:
        shape = (0, workload.config.num_kv_heads, workload.config.head_dim)
        return np.empty(shape, np.float32), np.empty(shape, np.float32)
    return tuple(np.concatenate(parts) for parts in zip(*chunks, strict=True))


def softmax_mass(query, keys):
    """Return the attention of one query [D] over keys [tokens, D], float64."""
    logits = keys.astype(np.float64) @ query / np.sqrt(len(query))
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def head_masses(workload, kind):
    """Yield the token masses of every head of a kind, and the request's number."""
    config = workload.config
    for request in range(len(workload.context_tokens)):
        keys, _ = read(workload, request)
        for head in range(HEAD_KINDS.index(kind), config.num_heads, len(HEAD_KINDS)):
            kv_head = head // config.group_size
            yield request, softmax_mass(workload.queries[request, head], keys[:, kv_head])


def test_context_tokens_are_uniform_with_both_ends_included():
    tokens = draw_context_tokens(4000, 3, 6, seed=7)
    assert tokens.dtype == np.int64 and tokens.shape == (4000,)
    counts = np.bincount(tokens, minlength=7)
    assert counts[:3].sum() == 0 and len(counts) == 7
    assert (counts[3:] > 850).all()  # 1000 each, standard deviation 27
    assert np.array_equal(tokens, draw_context_tokens(4000, 3, 6, seed=7))
    assert not np.array_equal(tokens, draw_context_tokens(4000, 3, 6, seed=8))


def test_one_possible_length_is_always_drawn():
    assert draw_context_tokens(5, 64, 64, seed=0).tolist() == [64] * 5


@pytest.mark.parametrize("arguments", [(0, 1, 2), (1, -1, 2), (1, 3, 2)])
def test_wrong_draws_are_refused_by_name(arguments):
    with pytest.raises(ValueError, match="batch_size|min_tokens"):
        draw_context_tokens(*arguments, seed=0)


@pytest.mark.parametrize("cls", WORKLOADS)
def test_a_batch_has_the_promised_shapes(cls):
    workload = cls(CONFIG, [5, 300, 0], seed=1)
    assert workload.queries.shape == (3, 8, 32) and workload.queries.dtype == np.float32
    assert workload.context_tokens.tolist() == [5, 300, 0]
    assert workload.context_tokens.dtype == np.int64
    for request, tokens in enumerate([5, 300, 0]):
        for array in read(workload, request):
            assert array.shape == (tokens, 2, 32) and array.dtype == np.float32
            assert np.isfinite(array).all()
    assert [len(keys) for keys, _ in workload.chunks(1, 128)] == [128, 128, 44]


@pytest.mark.parametrize("cls", WORKLOADS)
@pytest.mark.parametrize("max_tokens", [1, 7, 100, 193, 1000])
def test_the_chunk_size_never_changes_a_bit(cls, max_tokens):
    workload = cls(CONFIG, [33, 1000], seed=3)
    for request in range(2):
        whole, chunked = read(workload, request, 4096), read(workload, request, max_tokens)
        assert whole[0].tobytes() == chunked[0].tobytes()
        assert whole[1].tobytes() == chunked[1].tobytes()


@pytest.mark.parametrize("cls", WORKLOADS)
def test_the_seed_decides_everything_and_requests_differ(cls):
    first, again, other = (cls(CONFIG, [200, 200], seed=s) for s in (4, 4, 5))
    assert first.queries.tobytes() == again.queries.tobytes()
    assert read(first, 1)[0].tobytes() == read(again, 1)[0].tobytes()
    assert not np.array_equal(first.queries, other.queries)
    assert not np.array_equal(read(first, 0)[0], read(other, 0)[0])
    assert not np.array_equal(read(first, 0)[0], read(first, 1)[0])
    assert not np.array_equal(*read(first, 0))
    assert not np.array_equal(first.queries[0], first.queries[1])


@pytest.mark.parametrize("cls", WORKLOADS)
def test_a_request_does_not_depend_on_its_batch(cls):
    alone, batch = cls(CONFIG, [250], seed=6), cls(CONFIG, [250, 90, 1], seed=6)
    assert alone.queries[0].tobytes() == batch.queries[0].tobytes()
    assert read(alone, 0)[0].tobytes() == read(batch, 0)[0].tobytes()


@pytest.mark.parametrize("cls", WORKLOADS)
@pytest.mark.parametrize("tokens", [[], [-1], [1.5], [[1]], 3])
def test_wrong_context_tokens_are_refused(cls, tokens):
    with pytest.raises(ValueError, match="context_tokens"):
        cls(CONFIG, tokens, seed=0)


@pytest.mark.parametrize("cls", WORKLOADS)
def test_wrong_chunk_arguments_are_refused_before_the_first_chunk(cls):
    workload = cls(CONFIG, [4], seed=0)
    for request, max_tokens in ((1, 4), (-1, 4), (0, 0)):
        with pytest.raises(ValueError, match="request_index|max_tokens"):
            workload.chunks(request, max_tokens)


def test_uniform_data_is_the_counter_based_stream():
    workload = UniformWorkload(CONFIG, [70, 70], seed=9)
    expected = np.empty((70, 2, 32), np.float32)
    request_ids, tokens = np.ones(70, np.int64), np.arange(70)
    for part, kind in enumerate((shared.KEY, shared.VALUE)):
        prefill.fill_uniform(expected, 9, request_ids, tokens, kind)
        assert np.array_equal(read(workload, 1)[part], expected)
    query = np.empty((1, 8, 32), np.float32)
    prefill.fill_uniform(query, 9, request_ids[:1], tokens[:1], shared.QUERY)
    assert np.array_equal(workload.queries[1], query[0])
    assert workload.needle_pages is None
    assert expected.min() >= -1 and expected.max() < 1 and abs(expected.mean()) < 0.05


@pytest.mark.parametrize("head_dim", [16, 32, 80, 128])
def test_the_scale_of_keys_and_logits_does_not_depend_on_head_dim(head_dim):
    config = ModelConfig(num_heads=4, num_kv_heads=1, head_dim=head_dim)
    workload = StructuredWorkload(config, [4096] * 2, seed=11)
    for request in range(2):
        keys, _ = read(workload, request)
        assert 0.9 < keys.std() < 1.2
        logits = keys[:, 0] @ workload.queries[request].T / np.sqrt(head_dim)
        assert (logits.std(axis=0) > 1).all() and (logits.std(axis=0) < 6).all()


@pytest.mark.parametrize("head_dim", [32, 128])
def test_heads_concentrate_on_pages_as_trained_ones_do(head_dim):
    config = ModelConfig(num_heads=8, num_kv_heads=2, head_dim=head_dim)
    workload = StructuredWorkload(config, [4096] * 6, seed=12)
    expected = {"retrieval": (0.8, 1), "topic": (0.55, 0.97), "local": (0.8, 1)}
    expected["diffuse"] = (0.2, 0.75)
    for kind, (low, high) in expected.items():
        pages = [mass.reshape(-1, 16).sum(axis=1) for _, mass in head_masses(workload, kind)]
        best_8 = np.mean([np.sort(page)[-8:].sum() for page in pages])
        assert low < best_8 <= high, kind


def test_uniform_data_has_no_such_concentration():
    workload = UniformWorkload(CONFIG, [4096], seed=12)
    for kind in HEAD_KINDS:
        for _, mass in head_masses(workload, kind):
            assert np.sort(mass.reshape(-1, 16).sum(axis=1))[-8:].sum() < 0.06


def test_retrieval_heads_look_at_the_needle_page_and_only_they():
    workload = StructuredWorkload(CONFIG, [2048] * 8, seed=13)
    assert workload.needle_heads.tolist() == [0, 4]
    for kind in HEAD_KINDS:
        masses = []
        for request, mass in head_masses(workload, kind):
            (page,) = workload.needle_pages[request]
            masses.append(mass[page * 16 : page * 16 + 16].sum())
        assert np.mean(masses) > 0.7 if kind == "retrieval" else np.mean(masses) < 0.1, kind


def test_every_head_gives_the_sink_far_more_than_its_share():
    workload = StructuredWorkload(CONFIG, [4096] * 4, seed=14)
    for kind in HEAD_KINDS:
        sink = [mass[:SINK_TOKENS].sum() for _, mass in head_masses(workload, kind)]
        assert np.mean(sink) > 10 * SINK_TOKENS / 4096, kind


def test_local_heads_look_at_the_last_tokens():
    workload = StructuredWorkload(CONFIG, [3000] * 4, seed=15)
    recent = [mass[-32:].sum() for _, mass in head_masses(workload, "local")]
    assert np.mean(recent) > 0.7


def test_topic_heads_of_a_kv_head_ask_for_different_topics():
    config = ModelConfig(num_heads=64, num_kv_heads=1, head_dim=32)
    queries = StructuredWorkload(config, [8192], seed=21).queries[0, 1 :: len(HEAD_KINDS)]
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    cosines = (queries @ queries.T)[np.triu_indices(len(queries), k=1)]
    assert 0.1 < np.mean(cosines) < 0.4  # they share the sink; one topic too would make it 0.7


def test_neighbouring_pages_share_a_segment_and_far_ones_do_not():
    keys, _ = read(StructuredWorkload(CONFIG, [8192], seed=16), 0)
    pages = (keys - keys.mean(axis=0))[:, 0].reshape(-1, 8, 32).mean(axis=1)
    pages /= np.linalg.norm(pages, axis=1, keepdims=True)
    near, far = (np.mean(np.sum(pages[lag:] * pages[:-lag], axis=1)) for lag in (1, 50))
    assert near > 0.6 and abs(far) < 0.1


def test_needles_follow_the_page_size_and_the_data_does_not():
    small, large = (
        StructuredWorkload(
            ModelConfig(num_heads=4, num_kv_heads=2, head_dim=16, page_size=size), [900, 60], 17
        )
        for size in (4, 64)
    )
    assert read(small, 0)[0].tobytes() == read(large, 0)[0].tobytes()
    assert small.queries.tobytes() == large.queries.tobytes()
    for fine, coarse in zip(small.needle_pages, large.needle_pages, strict=True):
        assert len(fine) == len(coarse) == 1 and fine[0] * 4 // 64 == coarse[0]


@pytest.mark.parametrize("tokens", range(1, 17))
def test_a_context_within_one_page_has_its_needle_in_page_0(tokens):
    workload = StructuredWorkload(CONFIG, [tokens] * 3, seed=18)
    assert [pages.tolist() for pages in workload.needle_pages] == [[0]] * 3
    assert np.isfinite(workload.queries).all() and len(read(workload, 2)[0]) == tokens


@pytest.mark.parametrize("page_size", [1, 3, 16])
def test_needle_pages_lie_within_the_context(page_size):
    config = ModelConfig(num_heads=4, num_kv_heads=4, head_dim=16, page_size=page_size)
    tokens = np.arange(1, 120)
    workload = StructuredWorkload(config, tokens, seed=19)
    for pages, count in zip(workload.needle_pages, tokens, strict=True):
        assert 1 <= len(pages) <= 2 and pages.min() >= 0
        assert pages.max() < -(-count // page_size)


def test_an_empty_context_has_no_needle():
    workload = StructuredWorkload(CONFIG, [0, 20], seed=20)
    assert [len(pages) for pages in workload.needle_pages] == [0, 1]
    assert list(workload.chunks(0, 16)) == []
