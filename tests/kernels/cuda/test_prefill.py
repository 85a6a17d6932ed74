"""fill_uniform on a device: the numbers of the CPU, bit for bit."""

import re

import numpy as np
import pytest

from numbadsd.kernels import shared
from numbadsd.kernels.cuda.prefill import fill_uniform
from tests.device import output, stream, up
from tests.kernels.cuda.cases import check_fill


@pytest.mark.parametrize("kind", [shared.QUERY, shared.KEY, shared.VALUE])
@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_numbers_are_those_of_the_cpu(seed, kind):
    check_fill((3, 2, 16), seed, kind, first_token=1000)


@pytest.mark.parametrize("shape", [(1, 1, 16), (2, 1, 128), (2, 3, 80), (2, 2, 256), (3, 33, 16)])
def test_every_shape(shape):
    check_fill(shape, 3, shared.KEY)


def test_no_tokens_fill_nothing():
    nothing = up(np.empty(0, np.int64))
    fill_uniform(output((0, 2, 16), np.float32), 1, nothing, nothing, shared.KEY, stream=stream())


def test_positions_of_over_32_bits_are_those_of_the_cpu():
    check_fill((2, 1, 16), 1, shared.VALUE, first_token=2**32 + 5)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("out", np.zeros((2, 16), np.float32), "out: got shape (2, 16), want (any, any, any)"),
        ("out", np.zeros((2, 1, 16)), "out: got dtype float64, want float32"),
        ("request_ids", np.zeros(3, np.int64), "request_ids: got shape (3,), want (2,)"),
        ("tokens", np.zeros(2, np.int32), "tokens: got dtype int32, want int64"),
    ],
)
def test_a_wrong_argument_is_a_value_error(name, value, message):
    arguments = dict(
        out=output((2, 1, 16), np.float32),
        seed=1,
        request_ids=up(np.zeros(2, np.int64)),
        tokens=up(np.zeros(2, np.int64)),
        kind=shared.KEY,
        stream=stream(),
    )
    fill_uniform(**arguments)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        fill_uniform(**(arguments | {name: up(value)}))
