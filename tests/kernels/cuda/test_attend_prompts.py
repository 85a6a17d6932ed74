"""attend_prompts on a device against float64 causal attention, at every seam."""

import numpy as np
import pytest

from numbadsd.kernels.cuda.attend_prompts import attend_prompts
from numbadsd.kernels.cuda.prompt_step import TILE_TOKENS, WARP_ROWS
from numbadsd.kernels.cuda.prompt_tiles import BLOCK_ROWS
from numbadsd.kernels.cuda.switch import SIMULATED
from tests.device import assert_same_bits, output, stream, up, written
from tests.kernels.cpu.test_attend_prompts import WRONG, Prompts, good_arguments

DTYPES = ("float32", "float16", "bfloat16")


class DevicePrompts(Prompts):
    """The same prompts, attended to on the device."""

    def launch(self, *arguments):
        """Return outputs and lse of a launch."""
        arrays = [up(a) if isinstance(a, np.ndarray) else a for a in arguments]
        shape = arguments[0].shape
        outputs, lse = output(shape, np.float32), output(shape[:2], np.float32)
        attend_prompts(*arrays, outputs, lse, stream=stream())
        return written(outputs), written(lse)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("page_size", [1, 5, 16])
def test_prompts_at_the_seams_of_pages(page_size, dtype):
    tokens = [1, page_size, page_size + 1, 2 * page_size - 1, 0]
    DevicePrompts(tokens, page_size=page_size, dtype=dtype, heads=2).check()


@pytest.mark.parametrize("tokens", [TILE_TOKENS - 1, TILE_TOKENS, TILE_TOKENS + 1])
def test_prompts_at_the_seams_of_tiles(tokens):
    DevicePrompts([tokens], heads=1, kv_heads=1).check()


@pytest.mark.parametrize("rows", [1, WARP_ROWS - 1, WARP_ROWS + 1, BLOCK_ROWS, BLOCK_ROWS + 1])
def test_chunks_at_the_seams_of_warps_and_blocks(rows):
    DevicePrompts([40], heads=1, kv_heads=1).check([(0, 40 - rows, 40)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [16, 32, 48, 64, 80, 96, 128, 256])
def test_every_head_dim(head_dim, dtype):
    DevicePrompts([12], head_dim=head_dim, dtype=dtype, heads=1, kv_heads=1).check()


@pytest.mark.parametrize("heads, kv_heads", [(3, 3), (4, 1), (6, 2), (16, 1), (40, 1)])
def test_every_group_size(heads, kv_heads):
    DevicePrompts([7], heads=heads, kv_heads=kv_heads, page_size=4).check()


def test_chunks_that_start_anywhere_in_a_page_packed():
    case = DevicePrompts([40, 20, 0], heads=2)
    chunks = [(0, 17, 18), (1, 0, 20), (0, 9, 9), (0, 31, 40), (2, 0, 0)]
    case.check(chunks)
    case.check_packed(chunks)


def test_no_chunks_and_no_tokens():
    case = DevicePrompts([20, 0])
    assert case.run([]) == []
    assert [len(outputs) for outputs, _ in case.run([(0, 5, 5), (1, 0, 0)])] == [0, 0]


@pytest.mark.parametrize("sizes", [[1, 1, 30], [7, 26]])
@pytest.mark.parametrize("heads, kv_heads, dtype", [(1, 1, "float32"), (3, 1, "bfloat16")])
def test_a_prompt_has_the_same_bits_in_chunks_of_any_size(heads, kv_heads, dtype, sizes):
    DevicePrompts([36], heads=heads, kv_heads=kv_heads, dtype=dtype).check_chunked(sizes)


def test_positions_may_be_int64():
    case = DevicePrompts([20], heads=2)
    queries, cu_seqlens, first, *rest = case.arguments([(0, 15, 20)])
    wide = case.launch(queries, cu_seqlens, first.astype(np.int64), *rest)
    assert_same_bits(wide, case.run([(0, 15, 20)])[0])


def test_physical_pages_do_not_change_the_bits():
    first, second = (DevicePrompts([40], heads=1, kv_heads=1, order=order) for order in (1, 2))
    assert not np.array_equal(first.pages[0], second.pages[0])
    assert_same_bits(first.run(first.whole())[0], second.run(second.whole())[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("first", [1, 20, 32])
def test_a_token_reaches_none_before_it(first, bad):
    case = DevicePrompts([36], heads=1, kv_heads=1)
    clean = case.run([(0, 0, 36)])[0]
    case.store(case.pool_keys, 0, range(first, 36), bad)
    case.store(case.pool_values, 0, range(first, 36), bad)
    with_bad = case.run([(0, 0, 36)])[0]
    assert_same_bits([a[:first] for a in with_bad], [a[:first] for a in clean])


@pytest.mark.parametrize("scale", [1e-4, 1000.0, -1000.0])
def test_large_and_small_logits_neither_overflow_nor_vanish(scale):
    case = DevicePrompts([40], heads=1, kv_heads=1)
    case.queries = [queries * np.float32(scale) for queries in case.queries]
    case.check()


@pytest.mark.parametrize("hidden", [range(1), range(36), range(30, 34)])
def test_tokens_of_logit_minus_infinity_weigh_nothing(hidden):
    case = DevicePrompts([40], heads=1, kv_heads=1)
    case.queries = [np.abs(queries) for queries in case.queries]
    case.store(case.pool_keys, 0, hidden, -np.inf)
    case.keys[0][list(hidden)] = -np.inf
    case.check()


def on_device(arguments):
    """Return arguments with their arrays on the device."""
    return {n: up(a) if isinstance(a, np.ndarray) else a for n, a in arguments.items()}


def test_the_arguments_that_wrong_ones_are_made_of_are_right():
    attend_prompts(**on_device(good_arguments()), stream=stream())


@pytest.mark.parametrize("name, value, message", WRONG)
def test_a_wrong_argument_is_a_value_error(name, value, message):
    with pytest.raises(ValueError) as error:
        attend_prompts(**on_device(good_arguments() | {name: value}), stream=stream())
    assert str(error.value).startswith(message)


# ---- on a device, with the shapes that they are made for

GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(SIMULATED, reason="these shapes are not for the simulator: use -m gpu"),
]
PROMPTS = [1, 15, 16, 17, 31, 32, 33, 100, 0, 333, 1000]


def gpu_test(function):
    """Mark a test that a device runs."""
    for mark in GPU:
        function = mark(function)
    return function


@gpu_test
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads, kv_heads", [(8, 8), (16, 4), (16, 1), (6, 2)])
@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
def test_packed_prompts_equal_the_oracle(head_dim, heads, kv_heads, dtype):
    DevicePrompts(
        PROMPTS[:-1], heads=heads, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype
    ).check()


@gpu_test
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads, kv_heads", [(8, 8), (16, 4), (16, 1), (6, 2)])
def test_chunks_and_packs_have_the_bits_of_one_shot(heads, kv_heads, dtype):
    case = DevicePrompts(PROMPTS, heads=heads, kv_heads=kv_heads, head_dim=128, dtype=dtype)
    case.check_packed(case.whole())
    case.check_packed([(10, 7, 1000), (9, 300, 333), (7, 99, 100), (10, 999, 1000), (4, 0, 31)])
    for sizes in ([1] * 40, [17] * 20, [64] * 15, [256] * 3):
        case.check_chunked(sizes)


@gpu_test
def test_prompts_have_the_same_bits_in_every_run():
    case = DevicePrompts(PROMPTS, heads=16, kv_heads=4, head_dim=128, dtype="float16")
    first = case.run(case.whole())
    for _ in range(20):
        for a, b in zip(first, case.run(case.whole()), strict=True):
            assert_same_bits(a, b)
