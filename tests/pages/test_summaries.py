"""Page summaries: right within rounding, and equal to a rebuild bit for bit, however built."""

import numpy as np
import pytest

from numbadsd.config import KV_DTYPES
from tests import oracle
from tests.builders import DTYPES, SUMMARIES, make_cache, random_tokens, small_config

T = 4
EPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def page_keys(cache, request_id):
    """Yield (physical page, its stored keys [n, G, D] float32) in logical order."""
    keys = cache.copy_keys(request_id)
    size = cache.config.page_size
    for index, page_id in enumerate(cache.request_pages(request_id)):
        yield int(page_id), keys[index * size : (index + 1) * size]


def bits(array):
    return np.ascontiguousarray(array).view(np.uint8)


@pytest.mark.parametrize("kind", SUMMARIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("page_size, head_dim", [(1, 16), (T, 80), (16, 128)])
def test_summaries_equal_the_formula(kind, dtype, page_size, head_dim):
    config = small_config(
        kv_dtype=dtype, summary=kind, page_size=page_size, head_dim=head_dim, top_k_pages=1
    )
    cache, _, _ = make_cache(config, [1, page_size, 2 * page_size + 1], seed=3)
    assert cache.summaries.dtype == KV_DTYPES[dtype]
    assert cache.summaries.ndim == (3 if kind == "mean" else 4)
    for request_id in range(3):
        for page_id, keys in page_keys(cache, request_id):
            exact = oracle.summarise(keys, kind)
            naive = oracle.summarise(keys, kind, np.float32)
            stored = naive.astype(KV_DTYPES[dtype]).astype(np.float32)
            actual = cache.summaries[page_id].astype(np.float32)
            oracle.assert_as_exact_as_float32(actual, exact, stored, eps=EPS[dtype])


@pytest.mark.parametrize("summary_dtype", DTYPES)
def test_summaries_may_be_stored_in_another_dtype_than_keys(summary_dtype):
    config = small_config(summary="minmax", kv_dtype="float16", summary_dtype=summary_dtype)
    cache, _, _ = make_cache(config, [2 * T + 1])
    assert cache.pool.keys.dtype == np.float16
    assert cache.summaries.dtype == KV_DTYPES[summary_dtype]
    for page_id, keys in page_keys(cache, 0):
        exact = oracle.summarise(keys, "minmax").astype(np.float32).astype(KV_DTYPES[summary_dtype])
        np.testing.assert_array_equal(bits(cache.summaries[page_id]), bits(exact))
    cache.check_integrity()


@pytest.mark.parametrize("kind", SUMMARIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_mixture_of_appends_gives_the_summaries_of_one_append(kind, dtype):
    config = small_config(kv_dtype=dtype, summary=kind)
    keys, values = random_tokens(config, 6 * T + 3, seed=11)
    whole, _, _ = make_cache(config, [], capacity_pages=16)
    whole.append_tokens(0, keys, values)
    mixed, _, _ = make_cache(config, [], capacity_pages=16, shuffle=5)
    position = 0
    rng = np.random.default_rng(17)
    while position < len(keys):
        count = int(min(rng.integers(1, 2 * T), len(keys) - position))
        rows = slice(position, position + count)
        match rng.integers(0, 4):
            case 0:
                mixed.append_tokens(0, keys[rows], values[rows])
            case 1 if position:
                count = 1
                mixed.append_step(
                    [0], keys[position : position + 1], values[position : position + 1]
                )
            case 2 if position % T == 0:
                count = min(count, T)
                mixed.append_page(0, keys[rows][:count], values[rows][:count])
            case _:
                count = 1
                mixed.append_token(0, keys[position], values[position])
        position += count
        mixed.check_integrity()
    a = whole.summaries[whole.request_pages(0)]
    b = mixed.summaries[mixed.request_pages(0)]
    np.testing.assert_array_equal(bits(a), bits(b))
    np.testing.assert_array_equal(mixed.copy_keys(0), whole.copy_keys(0))


@pytest.mark.parametrize("kind", SUMMARIES)
def test_the_summary_of_a_reused_page_knows_nothing_of_its_last_owner(kind):
    config = small_config(summary=kind)
    cache, keys, values = make_cache(config, [T], capacity_pages=1)
    cache.append_tokens(0, keys[0][:0], values[0][:0])
    cache.release_request(0)
    cache.append_token(1, keys[0][0] / 8, values[0][0])
    exact = oracle.summarise(keys[0][:1] / 8, kind)
    np.testing.assert_allclose(cache.summaries[0], exact, rtol=0, atol=1e-7)
    cache.check_integrity()


@pytest.mark.parametrize("kind", SUMMARIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinite_keys_rebuild_to_the_same_bits(kind, dtype):
    config = small_config(summary=kind, kv_dtype=dtype)
    keys, values = random_tokens(config, 8 * T, seed=23)
    rng = np.random.default_rng(29)
    odd_nan = np.uint32([0x7F800001, 0xFFC00001]).view(np.float32)
    special = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, *odd_nan], np.float32)
    keys = np.where(rng.random(keys.shape) < 0.3, rng.choice(special, keys.shape), keys)
    cache, _, _ = make_cache(config, [], capacity_pages=8)
    for row in range(len(keys)):
        cache.append_token(0, keys[row], values[row])
        cache.check_integrity()
    assert np.isnan(cache.summaries.astype(np.float32)).any()


@pytest.mark.parametrize("kind", SUMMARIES)
def test_equal_keys_have_no_spread(kind):
    config = small_config(summary=kind, kv_dtype="float16")
    row = random_tokens(config, 1, seed=2)[0]
    keys = np.repeat(row, T, axis=0)
    cache, _, _ = make_cache(config, [], capacity_pages=1)
    cache.append_tokens(0, keys, keys)
    stored = cache.summaries[0].astype(np.float32).reshape(-1, 2, 16)
    np.testing.assert_array_equal(stored[0], row[0])
    if kind == "minmax":
        np.testing.assert_array_equal(stored[1], row[0])
    elif kind != "mean":
        np.testing.assert_array_equal(stored[1], np.zeros((2, 16)))
