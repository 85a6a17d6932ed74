"""How long kernels ran."""

from time import perf_counter_ns, sleep

import pytest

from numbadsd.kernels.cpu.busy import BUSY, timed


def test_the_time_of_a_call_is_added_and_its_result_returned():
    def kernel(a, b):
        sleep(0.01)
        return a + b

    before, start = BUSY.ns, perf_counter_ns()
    assert timed(kernel)(2, 3) == 5
    assert 10_000_000 <= BUSY.ns - before <= perf_counter_ns() - start


def test_what_is_not_timed_adds_nothing():
    before = BUSY.ns
    sleep(0.001)
    assert BUSY.ns == before
    with pytest.raises(ZeroDivisionError):
        timed(lambda: 1 // 0)()
