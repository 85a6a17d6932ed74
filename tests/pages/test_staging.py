"""Staging: several arrays in one copy, two buffers, nothing overwritten while it travels."""

from types import SimpleNamespace

import numpy as np
import pytest

from numbadsd.config import KV_DTYPES
from numbadsd.kernels.cuda.runtime import get_driver
from numbadsd.kernels.cuda.sim_driver import SimStream
from numbadsd.pages.staging import LARGE_BYTES, Staging, TransferStats
from tests.device import assert_same_bits
from tests.pages.checks import count_allocations, download
from tests.pages.late import LateStream


def make_staging(stream=None):
    """Return a staging, its stream and its counts."""
    stream, stats = stream or SimStream(), TransferStats()
    return SimpleNamespace(staging=Staging(get_driver(), stream, stats), stream=stream, stats=stats)


def numbers(count, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(count).astype(dtype)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, *KV_DTYPES.values()])
def test_arrays_arrive_as_they_were_sent(dtype):
    made = make_staging()
    arrays = [
        np.arange(n, dtype=np.float32).astype(dtype).reshape(shape)
        for n, shape in ((1, (1,)), (0, (0, 2, 3)), (24, (2, 3, 4)), (7, (7, 1)), (0, (0,)))
    ]
    sent = made.staging.send(*arrays)
    assert len(sent) == len(arrays)
    for array, device_array in zip(arrays, sent, strict=True):
        assert_same_bits(download(made, device_array), array)


def test_arrays_of_any_layout_arrive():
    made = make_staging()
    array = numbers(60).reshape(5, 12)
    for view in (array[::2], array[:, ::-3], array.T, np.broadcast_to(array[0], (3, 12))):
        (sent,) = made.staging.send(view)
        assert_same_bits(download(made, sent), view)


def test_every_array_starts_at_a_multiple_of_sixteen_bytes():
    sent = make_staging().staging.send(*(np.zeros(n, np.uint8) for n in (1, 15, 16, 17, 0, 3)))
    first = sent[0].address
    assert [array.address - first for array in sent] == [0, 16, 32, 48, 80, 80]


def test_several_arrays_are_one_copy_and_every_byte_is_counted():
    made = make_staging()
    made.staging.send(np.zeros(3, np.float32), np.zeros(5, np.int64), np.zeros(0, np.int32))
    assert (made.stats.h2d_calls, made.stats.h2d_bytes) == (1, 16 + 48)
    made.staging.send(np.zeros(LARGE_BYTES, np.uint8))
    assert made.stats == TransferStats(h2d_calls=2, h2d_bytes=64 + LARGE_BYTES, h2d_large_calls=1)
    made.stats.reset()
    assert made.stats == TransferStats()


def test_copies_to_the_host_are_counted_too():
    stats = TransferStats()
    stats.count_d2h(LARGE_BYTES - 1)
    stats.count_d2h(LARGE_BYTES)
    assert stats == TransferStats(d2h_bytes=2 * LARGE_BYTES - 1, d2h_calls=2, d2h_large_calls=1)


def test_two_buffers_are_used_in_turn_and_no_memory_is_taken(monkeypatch):
    made = make_staging()
    allocated = count_allocations(monkeypatch)
    addresses = [made.staging.send(numbers(100, i))[0].address for i in range(6)]
    assert addresses[0] != addresses[1]
    assert addresses == addresses[:2] * 3
    assert not allocated


def test_what_was_sent_stays_valid_until_the_call_after_the_next():
    made = make_staging()
    first, second = numbers(9, 1), numbers(9, 2)
    (sent,) = made.staging.send(first)
    made.staging.send(second)
    assert_same_bits(download(made, sent), first)
    made.staging.send(second)
    assert_same_bits(download(made, sent), second)


class Watched(LateStream):
    """Remembers what every copy carried when it was done."""

    def __init__(self):
        super().__init__()
        self.carried = []

    def upload(self, target, source):
        super().upload(target, source)
        self._do(lambda: self.carried.append(source.copy()))


def test_a_buffer_is_filled_again_only_after_its_copy_is_done():
    made = make_staging(Watched())
    arrays = [numbers(20, i) for i in range(7)]
    for index, array in enumerate(arrays):
        made.staging.send(array)
        assert made.stream.waits == max(0, index - 1)  # of the copy before the last one
    assert len(made.stream.carried) == 5  # the last two still travel
    made.stream.synchronize()
    for array, carried in zip(arrays, made.stream.carried, strict=True):
        assert_same_bits(carried.view(np.float32), array)


@pytest.mark.parametrize("num_bytes", [(1 << 16) + 1, 1 << 17, (1 << 20) + 16])
def test_a_buffer_that_is_too_small_is_replaced_when_nobody_reads_it(num_bytes):
    made = make_staging(Watched())
    small = [numbers(20, i) for i in range(2)]
    for array in small:
        made.staging.send(array)
    large = np.arange(num_bytes, dtype=np.uint8)
    (sent,) = made.staging.send(large)
    assert len(made.stream.carried) == 2  # both copies were waited for
    assert_same_bits(download(made, sent), large)
    made.staging.send(small[1])
    (again,) = made.staging.send(large)
    assert again.address == sent.address  # it was kept
    assert made.stats.h2d_calls == 5


def test_nothing_may_be_sent():
    made = make_staging()
    assert made.staging.send() == []
    (sent,) = made.staging.send(np.empty((0, 4), np.float32))
    assert sent.shape == (0, 4)
