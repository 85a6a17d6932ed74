"""append_runs and summarise_pages: what is written, what is left alone, how numbers are rounded."""

import ml_dtypes
import numpy as np
import pytest

from numbadsd.kernels.cpu.append import append_runs, summarise_pages
from tests import oracle
from tests.builders import SUMMARIES

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
PAGES, HEADS, T, D = 5, 2, 4, 32
MARK = 77.0


def make_pool(dtype="float32", kind="mean", page_size=T, head_dim=D, kv_heads=HEADS):
    """Return keys, values and summaries that hold a mark everywhere."""
    shape = (PAGES, kv_heads, page_size, head_dim)
    vectors = () if kind == "mean" else (2,)
    summaries = np.full((PAGES, *vectors, kv_heads, head_dim), MARK, DTYPES[dtype])
    return np.full(shape, MARK, DTYPES[dtype]), np.full(shape, MARK, DTYPES[dtype]), summaries


def make_tokens(count, kv_heads=HEADS, head_dim=D, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((2, count, kv_heads, head_dim)).astype(np.float32)


def append(pool, tokens, runs, kind="mean"):
    """Store tokens in runs of (page, first slot, count)."""
    pages, slots, counts = zip(*runs, strict=True) if runs else ((), (), ())
    indptr = np.cumsum([0, *counts]).astype(np.int64)
    append_runs(
        tokens[0], tokens[1], np.array(pages, np.int32), np.array(slots, np.int32), indptr,
        pool[0], pool[1], kind, pool[2],
    )  # fmt: skip


def bits(array):
    return np.ascontiguousarray(array).view(np.uint8)


@pytest.mark.parametrize("kind", SUMMARIES)
def test_tokens_land_in_their_slots_and_nothing_else_changes(kind):
    pool, tokens = make_pool(kind=kind), make_tokens(5)
    append(pool, tokens, [(3, 0, T), (1, 0, 1)], kind)
    for storage, new in zip(pool[:2], tokens, strict=True):
        np.testing.assert_array_equal(storage[3], new[:T].swapaxes(0, 1))
        np.testing.assert_array_equal(storage[1, :, 0], new[T])
        assert np.all(storage[1, :, 1:] == MARK)
        assert np.all(storage[[0, 2, 4]] == MARK)
    assert np.all(pool[2][[0, 2, 4]] == MARK)
    for page, rows in ((3, tokens[0][:T]), (1, tokens[0][T:])):
        exact = oracle.summarise(rows, kind)
        naive = oracle.summarise(rows, kind, np.float32)
        oracle.assert_as_exact_as_float32(pool[2][page], exact, naive)


def test_no_tokens_change_nothing():
    pool = make_pool()
    append(pool, make_tokens(0), [])
    assert all(np.all(array == MARK) for array in pool)


@pytest.mark.parametrize("kind", SUMMARIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_page_filled_token_by_token_has_the_summary_of_a_rebuild(dtype, kind):
    pool, tokens = make_pool(dtype, kind), make_tokens(T, seed=3)
    rebuilt = np.zeros_like(pool[2][:1])
    for slot in range(T):
        append(pool, tokens[:, slot : slot + 1], [(2, slot, 1)], kind)
        page_ids, counts = np.array([2], np.int32), np.array([slot + 1], np.int32)
        summarise_pages(pool[0], page_ids, counts, kind, rebuilt)
        np.testing.assert_array_equal(bits(rebuilt[0]), bits(pool[2][2]))
    whole = make_pool(dtype, kind)
    append(whole, tokens, [(2, 0, T)], kind)
    np.testing.assert_array_equal(bits(whole[2][2]), bits(pool[2][2]))
    np.testing.assert_array_equal(bits(whole[0][2]), bits(pool[0][2]))


@pytest.mark.parametrize("kind", SUMMARIES)
@pytest.mark.parametrize("page_size, head_dim", [(1, 16), (8, 80), (16, 256), (64, 96)])
def test_summaries_of_every_shape_equal_the_formula(kind, page_size, head_dim):
    pool = make_pool(kind=kind, page_size=page_size, head_dim=head_dim, kv_heads=3)
    tokens = make_tokens(2 * page_size, 3, head_dim, seed=page_size)
    append(pool, tokens, [(4, 0, page_size), (0, 0, page_size)], kind)
    for page, rows in ((4, tokens[0][:page_size]), (0, tokens[0][page_size:])):
        exact = oracle.summarise(rows, kind)
        naive = oracle.summarise(rows, kind, np.float32)
        oracle.assert_as_exact_as_float32(pool[2][page], exact, naive)


def special_numbers(dtype):
    """Return float32 numbers around every way of rounding to dtype."""
    rng = np.random.default_rng(0)
    every = np.arange(2**16, dtype=np.uint16).view(dtype).astype(np.float32)
    bits32 = every[np.isfinite(every)].view(np.uint32)
    low = {np.float16: 13, ml_dtypes.bfloat16: 16}[dtype]
    half = np.uint32(1 << (low - 1))  # halfway between two neighbours, for normal numbers
    around = [bits32 + half, bits32 + half - np.uint32(1), bits32 + half + np.uint32(1)]
    any_bits = rng.integers(0, 2**32, 40_000, dtype=np.uint64).astype(np.uint32)
    numbers = np.concatenate([bits32, *around, any_bits]).view(np.float32)
    tiny = rng.uniform(-(2.0**-13), 2.0**-13, 20_000).astype(np.float32)
    special = np.float32([0.0, -0.0, np.inf, -np.inf, 65504, 65519.99, 65520, 1e-8, 3.4e38])
    numbers = np.concatenate([numbers, tiny, special])
    return numbers[~np.isnan(numbers)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_numbers_are_rounded_to_nearest_even(dtype):
    numbers = special_numbers(DTYPES[dtype])
    numbers = np.concatenate([numbers, np.zeros(-len(numbers) % D, np.float32)])
    rows = numbers.reshape(-1, 1, D)
    keys = np.zeros((1, 1, len(rows), D), DTYPES[dtype])
    values, summaries = keys.copy(), np.zeros((1, 1, D), DTYPES[dtype])
    append((keys, values, summaries), [rows, rows], [(0, 0, len(rows))])
    with np.errstate(over="ignore"):
        expected = numbers.astype(DTYPES[dtype])
    for stored in (keys, values):
        np.testing.assert_array_equal(stored.reshape(-1).view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_are_stored_as_they_are(dtype):
    pool, tokens = make_pool(dtype), make_tokens(T)
    odd_nan = np.uint32([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF]).view(np.float32)
    tokens[0][:, 0, 0] = odd_nan
    tokens[0][:, 1, 1] = [np.inf, -np.inf, 1, 2]
    append(pool, tokens, [(0, 0, T)])
    assert np.all(np.isnan(pool[0][0, 0, :, 0].astype(np.float32)))
    assert pool[0][0, 1, :, 1].astype(np.float32).tolist() == [np.inf, -np.inf, 1, 2]


@pytest.mark.parametrize("kind", SUMMARIES)
@pytest.mark.parametrize("slot", range(T))
def test_a_nan_key_makes_the_summary_of_its_channel_nan(kind, slot):
    pool, tokens = make_pool(kind=kind), make_tokens(T)
    tokens[0][slot, 1, 5] = np.nan
    append(pool, tokens, [(0, 0, T)], kind)
    is_nan = np.isnan(pool[2][0])
    assert np.all(is_nan[..., 1, 5])
    assert is_nan.sum() == (1 if kind == "mean" else 2)


@pytest.mark.parametrize(
    "change",
    [
        {"new_keys": np.zeros((2, 3, D), np.float32)},
        {"new_keys": np.zeros((2, HEADS, D - 16), np.float32)},
        {"new_values": np.zeros((1, HEADS, D), np.float32)},
        {"new_values": np.zeros((2, HEADS, D), np.float16)},
    ],
    ids=["head count", "head_dim", "value rows", "value dtype"],
)
def test_a_wrong_argument_is_a_value_error(change):
    keys, values, summaries = make_pool()
    arguments = dict(
        new_keys=np.zeros((2, HEADS, D), np.float32),
        new_values=np.zeros((2, HEADS, D), np.float32),
        page_ids=np.array([0], np.int32),
        first_slots=np.array([0], np.int32),
        token_indptr=np.array([0, 2], np.int64),
        keys=keys,
        values=values,
        summary="mean",
        summaries=summaries,
    )
    with pytest.raises(ValueError, match="(?s)got .*want"):
        append_runs(**(arguments | change))
    assert np.all(keys == MARK)
