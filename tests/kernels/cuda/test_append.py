"""append_runs and summarise_pages on a device: the same bits as the CPU kernels."""

import re

import numpy as np
import pytest

from numbadsd.kernels.cuda.append import append_runs, summarise_pages
from tests import oracle
from tests.builders import SUMMARIES
from tests.device import down, output, stream, up
from tests.kernels.cpu.test_append import DTYPES, make_tokens, special_numbers
from tests.kernels.cuda.cases import Pool

EVERY_KIND = pytest.mark.parametrize("kind", SUMMARIES)
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES)


@EVERY_KIND
@EVERY_DTYPE
@pytest.mark.parametrize("is_stored", [False, True], ids=["float32 tokens", "stored tokens"])
def test_appends_store_what_the_cpu_stores(kind, dtype, is_stored):
    pool = Pool(dtype, kind)
    tokens = make_tokens(9)
    if is_stored:
        tokens = tokens.astype(DTYPES[dtype])
    pool.append(tokens[:, :6], [(3, 0, 4), (1, 0, 2)])
    pool.append(tokens[:, 6:], [(1, 2, 2), (4, 0, 1)])
    pool.check()
    pool.check_rebuild([4, 1, 3])


@EVERY_KIND
@pytest.mark.parametrize(
    "page_size, head_dim, dtype, summary_dtype",
    [(1, 16, "float16", "float32"), (3, 48, "float32", "bfloat16"), (16, 256, "bfloat16", None),
     (32, 80, "float16", "bfloat16")],
)  # fmt: skip
def test_every_shape_and_pair_of_dtypes(kind, page_size, head_dim, dtype, summary_dtype):
    shape = dict(page_size=page_size, head_dim=head_dim, kv_heads=3)
    pool = Pool(dtype, kind, summary_dtype=summary_dtype, **shape)
    tokens = make_tokens(page_size + 1, 3, head_dim, seed=page_size)
    pool.append(tokens, [(4, 0, page_size), (0, 0, 1)])
    pool.check()
    pool.check_rebuild([0, 4])


@EVERY_KIND
def test_summaries_equal_the_formula(kind):
    pool, tokens = Pool("float32", kind), make_tokens(4)
    pool.append(tokens, [(2, 0, 4)])
    exact, naive = (oracle.summarise(tokens[0], kind, t) for t in (np.float64, np.float32))
    oracle.assert_as_exact_as_float32(down(pool.on_device[2])[2], exact, naive)


@EVERY_KIND
def test_a_page_filled_token_by_token_has_the_summary_of_a_rebuild(kind):
    pool, tokens = Pool("bfloat16", kind), make_tokens(4, seed=3)
    for slot in range(4):
        pool.append(tokens[:, slot : slot + 1], [(2, slot, 1)])
        pool.check()
        pool.check_rebuild([2])


def test_no_tokens_change_nothing():
    pool = Pool("float32", "mean")
    pool.append(make_tokens(0), [])
    pool.check()


def test_a_run_of_no_page_writes_nothing():
    pool, tokens = Pool("float16", "mean_std"), make_tokens(1)
    pages, slots, indptr = up(np.int32([-1])), up(np.int32([0])), up(np.int64([0, 1]))
    keys, values, summaries, page_tokens = pool.on_device
    append_runs(
        up(tokens[0]), up(tokens[1]), pages, slots, indptr, keys, values, pool.kind, summaries,
        stream=stream(), page_tokens=page_tokens,
    )  # fmt: skip
    pool.check()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_numbers_are_rounded_to_nearest_even(dtype):
    numbers = special_numbers(DTYPES[dtype])
    numbers = np.random.default_rng(0).permutation(numbers)[: 64 * 256]
    pool = Pool(dtype, "minmax", page_size=64, head_dim=256, kv_heads=1)
    rows = numbers.reshape(64, 1, 256)
    pool.append(np.stack([rows, -rows]), [(1, 0, 64)])
    pool.check()


@EVERY_KIND
@EVERY_DTYPE
def test_keys_that_are_no_numbers_make_the_summaries_of_the_cpu(kind, dtype):
    pool, tokens = Pool(dtype, kind), make_tokens(4)
    tokens[0][1, 0, 5] = np.nan
    tokens[0][:, 1, 1] = [np.inf, -np.inf, 1, 2]
    tokens[0][2, 1, 2], tokens[1][3, 0, 0] = -np.inf, np.nan
    tokens[0][:, 0, 9] = [0.0, -0.0, 0.0, -0.0]
    tokens[0][:, 0, 10] = [-0.0, 0.0, -0.0, -0.0]
    pool.append(tokens, [(0, 0, 4)])
    pool.check()
    pool.check_rebuild([0])


def legal(function):
    """Return arguments of a launch that is right."""
    shape = (3, 2, 4, 16)
    common = dict(
        keys=up(np.zeros(shape, np.float16)),
        page_ids=up(np.array([1], np.int32)),
        summary="mean",
        summaries=output((3, 2, 16), np.float16),
        stream=stream(),
    )
    if function is summarise_pages:
        counts = up(np.array([2], np.int32))
        return common | dict(page_tokens=counts, summaries=output((1, 2, 16), np.float16))
    return common | dict(
        new_keys=up(np.zeros((2, 2, 16), np.float32)),
        new_values=up(np.zeros((2, 2, 16), np.float32)),
        first_slots=up(np.array([0], np.int32)),
        token_indptr=up(np.array([0, 2], np.int64)),
        values=up(np.zeros(shape, np.float16)),
        page_tokens=output(3, np.int32),
    )


@pytest.mark.parametrize(
    "name, value, message",
    [
        (
            "new_keys",
            np.zeros((2, 3, 16), np.float32),
            "new_keys: got shape (2, 3, 16), want (any, 2",
        ),
        ("new_keys", np.zeros((2, 2, 16)), "new_values: got dtype float32, want float64"),
        (
            "new_values",
            np.zeros((1, 2, 16), np.float32),
            "new_values: got shape (1, 2, 16), want (2,",
        ),
        (
            "new_values",
            np.zeros((2, 2, 16), np.float16),
            "new_values: got dtype float16, want float32",
        ),
        ("page_ids", np.array([1]), "page_ids: got dtype int64, want int32"),
        ("first_slots", np.array([0, 1], np.int32), "first_slots: got shape (2,), want (1,)"),
        ("token_indptr", np.array([0, 2], np.int32), "token_indptr: got dtype int32, want int64"),
        (
            "keys",
            np.zeros((3, 2, 16), np.float16),
            "keys: got shape (3, 2, 16), want (any, any, any,",
        ),
        (
            "keys",
            np.zeros((3, 2, 4, 16)),
            "keys: got dtype float64, want float32, float16 or bfloat16",
        ),
        (
            "values",
            np.zeros((2, 2, 4, 16), np.float16),
            "values: got shape (2, 2, 4, 16), want (3, 2,",
        ),
        ("summary", "median", "summary: got 'median', want one of mean, minmax, cuboid_mean"),
        ("summary", "minmax", "summaries: got shape (3, 2, 16), want (3, 2, 2, 16)"),
        (
            "summaries",
            np.zeros((2, 2, 16), np.float16),
            "summaries: got shape (2, 2, 16), want (3, 2",
        ),
        (
            "summaries",
            np.zeros((3, 2, 16)),
            "summaries: got dtype float64, want float32, float16 or",
        ),
        ("page_tokens", np.zeros(2, np.int32), "page_tokens: got shape (2,), want (3,)"),
    ],
)
def test_a_wrong_argument_of_an_append_is_a_value_error(name, value, message):
    append_runs(**legal(append_runs))
    changed = up(value) if isinstance(value, np.ndarray) else value
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        append_runs(**(legal(append_runs) | {name: changed}))


def test_tokens_of_another_half_precision_are_a_value_error():
    wrong = up(np.zeros((2, 2, 16), DTYPES["bfloat16"]))
    with pytest.raises(ValueError, match="^new_keys: got dtype bfloat16, want float32 or float16"):
        append_runs(**(legal(append_runs) | dict(new_keys=wrong, new_values=wrong)))


@pytest.mark.parametrize(
    "name, value, message",
    [
        (
            "keys",
            np.zeros((3, 2, 16), np.float16),
            "keys: got shape (3, 2, 16), want (any, any, any,",
        ),
        ("page_ids", np.array([1]), "page_ids: got dtype int64, want int32"),
        ("page_tokens", np.zeros(2, np.int32), "page_tokens: got shape (2,), want (1,)"),
        ("summary", "median", "summary: got 'median', want one of mean, minmax, cuboid_mean"),
        (
            "summaries",
            np.zeros((3, 2, 16), np.float16),
            "summaries: got shape (3, 2, 16), want (1, 2",
        ),
    ],
)
def test_a_wrong_argument_of_a_rebuild_is_a_value_error(name, value, message):
    summarise_pages(**legal(summarise_pages))
    changed = up(value) if isinstance(value, np.ndarray) else value
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        summarise_pages(**(legal(summarise_pages) | {name: changed}))
