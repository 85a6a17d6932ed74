"""The kernels on a device, with the shapes that they are made for (pytest -m gpu)."""

import numpy as np
import pytest

from numbadsd.kernels import shared
from numbadsd.kernels.cuda.attend_spec import FMA, MMA
from numbadsd.kernels.cuda.runtime import get_driver
from numbadsd.kernels.cuda.switch import SIMULATED
from numbadsd.kernels.cuda.topk_tuning import TopkTuning
from numbadsd.kernels.topk_shape import MAX_K
from numbadsd.selection import topk, topk_workspace_bytes
from tests.builders import DTYPES, SHARES, SUMMARIES
from tests.device import assert_same_bits, down, stream, up
from tests.kernels.cpu.test_append import DTYPES as STORED
from tests.kernels.cpu.test_append import make_tokens
from tests.kernels.cpu.test_topk import VALUES
from tests.kernels.cuda.cases import (
    AttendCase,
    Pool,
    ScoreCase,
    check_fill,
    check_packed,
    check_repeats,
    check_same_alone,
    check_selection,
    select,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(SIMULATED, reason="these shapes are not for the simulator: use -m gpu"),
]

HEAD_DIM, PAGE_SIZE, K, RUNS = 128, 16, 64, 100
# Pages of T - 1, T, T + 1 tokens; rows at the lengths where splits get longer, and beyond.
CONTEXTS = [0, 1, 15, 16, 17, 100, 1023, 1024, 1025, 1500, 2048, 3000, 4080, 4095, 4096, 4097]
GROUPS = [(8, 8), (16, 4), (16, 2), (16, 1)]  # query heads, kv heads
SOME_ALONE = [[15], [0], [6], [9, 3, 0, 15], list(range(15, -1, -1))]

EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES)
EVERY_KIND = pytest.mark.parametrize("kind", SUMMARIES)
EVERY_SHARE = pytest.mark.parametrize("share", SHARES)
EVERY_GROUP = pytest.mark.parametrize("heads, kv_heads", GROUPS)


def attend_case(heads, kv_heads, dtype="float16", contexts=CONTEXTS, seed=0):
    """Return a batch of the real shape."""
    return AttendCase(
        contexts, heads=heads, kv_heads=kv_heads, head_dim=HEAD_DIM, page_size=PAGE_SIZE,
        dtype=dtype, seed=seed,
    )  # fmt: skip


def score_case(kind, dtype="float16", heads=16, kv_heads=4, seed=0):
    """Return pages of a batch of the real shape."""
    pages = [-(-tokens // PAGE_SIZE) for tokens in CONTEXTS]
    return ScoreCase(
        pages, kind=kind, heads=heads, kv_heads=kv_heads, head_dim=HEAD_DIM, dtype=dtype, seed=seed
    )


# ---- attend


@EVERY_DTYPE
@EVERY_GROUP
def test_dense_attention_equals_the_oracle(heads, kv_heads, dtype):
    attend_case(heads, kv_heads, dtype).check()


@EVERY_GROUP
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("way", [FMA, MMA])
def test_every_way_to_multiply_equals_the_oracle(way, dtype, heads, kv_heads):
    case = attend_case(heads, kv_heads, dtype)
    case.launch = way
    case.check()
    alone = case.run(selected=case.first_pages(heads, 257), k=257)
    assert_same_bits(alone, case.run())


@EVERY_DTYPE
@EVERY_SHARE
@pytest.mark.parametrize("k", [1, K, 200])
def test_attention_over_selected_pages_equals_the_oracle(k, share, dtype):
    case = attend_case(16, 4, dtype)
    case.check(case.random_pages({"request": 1, "kv_head": 4, "query_head": 16}[share], k))


@EVERY_DTYPE
@EVERY_GROUP
def test_selecting_every_page_gives_the_bits_of_dense(heads, kv_heads, dtype):
    case = attend_case(heads, kv_heads, dtype)
    dense = case.run()
    for units in {1, kv_heads, heads}:
        for k in (257, 300):
            assert_same_bits(case.run(selected=case.first_pages(units, k), k=k), dense)


@EVERY_DTYPE
@EVERY_GROUP
def test_a_request_attends_alike_alone_and_in_any_batch(heads, kv_heads, dtype):
    case = attend_case(heads, kv_heads, dtype)
    for units in (None, kv_heads, heads):
        selected = None if units is None else case.random_pages(units, K)
        check_same_alone(case, SOME_ALONE, lambda case, rows: case.run(rows, selected))  # noqa: B023


@EVERY_DTYPE
@EVERY_GROUP
def test_attention_has_the_same_bits_in_every_run(heads, kv_heads, dtype):
    case = attend_case(heads, kv_heads, dtype)
    check_repeats(case.runs(), RUNS)
    check_repeats(case.runs(selected=case.random_pages(heads, K)), RUNS)


def test_long_contexts_equal_the_oracle():
    attend_case(4, 1, contexts=[32768, 8192, 20_001]).check()


# ---- score


@EVERY_KIND
@EVERY_SHARE
@EVERY_DTYPE
def test_scores_equal_the_formula(kind, share, dtype):
    score_case(kind, dtype).check(share)


@EVERY_SHARE
@EVERY_GROUP
def test_scores_of_every_group_equal_the_formula(heads, kv_heads, share):
    score_case("cuboid_mean", "bfloat16", heads, kv_heads).check(share)


@EVERY_KIND
@EVERY_SHARE
def test_scores_have_the_same_bits_in_every_run_and_batch(kind, share):
    case = score_case(kind)
    check_repeats(case.runs(share), RUNS)
    check_same_alone(case, SOME_ALONE, lambda case, rows: [case.run(share, rows)])


# ---- select

LIMITS = [64, 256, 512, 2048, 8192, 32_768]  # where a row may go another way
SEAMS = sorted({n + d for n in (K, *LIMITS) for d in (-3, -1, 0, 1, 3)} | {0, 1, -1, 100_000})
WAYS = {
    "as tuned": None,
    "by a warp": TopkTuning(warp_length=10**6, block_length=10**6),
    "by a block": TopkTuning(warp_length=0, block_length=10**6),
    "by parts": TopkTuning(0, 0, part_length=1000, blocks_a_multiprocessor=16),
    "mixed": TopkTuning(500, 2000, part_length=3000, blocks_a_multiprocessor=16),
}
EVERY_WAY = pytest.mark.parametrize("launch", WAYS.values(), ids=WAYS)


def every_value(width):
    """Return scores [2, S, width]: every kind of values, twice."""
    rng = np.random.default_rng(width)
    scores = np.stack([np.asarray(make(rng, width), np.float32) for make in VALUES.values()])
    return np.stack([scores, scores[::-1]])


@EVERY_WAY
@pytest.mark.parametrize("width", [65, 1000, 4096, 8193, 20_000, 163_840])
def test_the_selection_equals_a_sort(width, launch):
    scores = every_value(width)
    for k in {1, K, min(MAX_K, width - 1)}:
        check_selection(scores, k, [width, width // 2], launch=launch)
    check_selection(scores, K, sink=1, recent=2, launch=launch)


@EVERY_WAY
def test_rows_of_all_lengths_in_one_call(launch):
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((len(SEAMS), 1, 100_000)).astype(np.float32)
    for row, length in zip(scores, SEAMS, strict=True):
        row[:, max(0, length) :] = np.inf  # is not looked at
    for k in (K, MAX_K):
        check_selection(scores, k, SEAMS, launch=launch)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["position", "score"])
def test_both_sides_select_alike(dtype, order):
    rng = np.random.default_rng(1)
    scores = rng.standard_normal((40, 30_001)).astype(STORED[dtype])
    lengths = rng.integers(-1, 30_002, 40).astype(np.int32)
    for k in (1, 100, MAX_K):
        expected = topk(scores, lengths, k, sorted=order)
        got = topk(up(scores), up(lengths), k, sorted=order)
        get_driver().stream_of(0).synchronize()  # the default one: ours does not wait for it
        np.testing.assert_array_equal(down(got), expected)


def test_the_longest_row():
    scores = np.random.default_rng(2).standard_normal((1, 1, 1 << 20)).astype(np.float32)
    check_selection(scores, MAX_K)


@EVERY_WAY
def test_the_selection_is_the_same_in_every_run(launch):
    scores = np.random.default_rng(0).integers(-9, 9, (16, 2, 4096)).astype(np.float32)
    first = select(scores, K, launch=launch)
    for _ in range(RUNS - 1):
        assert_same_bits(select(scores, K, launch=launch), first)


def test_one_graph_is_replayed_for_changing_lengths():
    """Short, long and wrong lengths by turns: nothing of the replay before is left."""
    rng = np.random.default_rng(3)
    scores = rng.standard_normal((8, 200_000)).astype(np.float32)
    device, lengths = up(scores), up(np.zeros(8, np.int32))
    out = get_driver().empty((8, K), np.int32)
    workspace = get_driver().empty(topk_workspace_bytes(8, 200_000), np.uint8)
    assert workspace.size > 0

    def call():
        topk(device, lengths, K, out=out, workspace=workspace, stream=stream())

    call()
    graph = stream().capture(call)
    for turn in range(30):
        now = np.array(rng.permutation([200_000, 40_000, 33_000, 2048, 300, K, 3, -1]), np.int32)
        stream().upload(lengths, now)
        stream().fill(out, turn)
        stream().replay(graph)
        np.testing.assert_array_equal(down(out), topk(scores, now, K))


def test_torch_tensors_are_selected_from_in_its_stream():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA")
    with torch.cuda.stream(torch.cuda.Stream()) as _:
        number = torch.cuda.current_stream().cuda_stream
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            scores = torch.randn(16, 5000, device="cuda").to(dtype)
            lengths = torch.full((16,), 4000, dtype=torch.int32, device="cuda")
            out = torch.empty((16, K), dtype=torch.int32, device="cuda")
            topk(scores, lengths, K, sorted="score", out=out, stream=number)
            chosen = torch.gather(scores.float(), 1, out.long())
            expected = torch.topk(scores[:, :4000].float(), K).values
            assert torch.equal(chosen, expected)


# ---- append, prefill, tables


@EVERY_KIND
@EVERY_DTYPE
@pytest.mark.parametrize("is_stored", [False, True], ids=["float32 tokens", "stored tokens"])
def test_appends_store_what_the_cpu_stores(kind, dtype, is_stored):
    pool = Pool(dtype, kind, page_size=PAGE_SIZE, head_dim=HEAD_DIM, kv_heads=8)
    tokens = make_tokens(4 * PAGE_SIZE + 3, 8, HEAD_DIM)
    if is_stored:
        tokens = tokens.astype(STORED[dtype])
    t, first = PAGE_SIZE, 2 * PAGE_SIZE + 3
    pool.append(tokens[:, :first], [(3, 0, t), (1, 0, t), (4, 0, 3)])
    pool.append(tokens[:, first:], [(4, 3, t - 3), (0, 0, t), (2, 0, 3)])
    pool.check()
    pool.check_rebuild([2, 4, 0, 1, 3])


@pytest.mark.parametrize("kind", [shared.QUERY, shared.KEY, shared.VALUE])
def test_synthetic_tokens_are_those_of_the_cpu(kind):
    check_fill((5000, 8, HEAD_DIM), 2**32 - 1, kind, first_token=2**31)


def test_tables_of_large_batches_are_packed():
    rng = np.random.default_rng(0)
    row_pages = rng.integers(0, 10**6, (1000, 300)).astype(np.int32)
    row_tokens = rng.integers(0, 300 * PAGE_SIZE + 1, 1000).astype(np.int32)
    for batch in (1, 255, 256, 257, 1000):
        check_packed(
            rng.permutation(1000)[:batch].astype(np.int32), row_pages, row_tokens, PAGE_SIZE
        )


# ---- a step


@EVERY_KIND
@EVERY_SHARE
def test_the_stages_of_a_step_fit_together(kind, share):
    """Scores that a device made, selected on it, are the pages that the oracle selects of them."""
    case = score_case(kind)
    scores = case.run(share)
    check_selection(scores, K, case.pages, sink=1, recent=2)
