"""Measuring the machine: what is counted, and that the clock sees the work."""

import itertools
from time import perf_counter

import numba
import numpy as np
import pytest

from numbadsd.analysis import devices
from numbadsd.kernels.cpu.probe import multiply_add, read_sweep
from numbadsd.kernels.cuda import sim_driver
from numbadsd.kernels.cuda.sim_driver import SimDriver

MAX_CHUNKS = 64  # of a sweep; each may leave less than one word


@pytest.fixture
def one_second_a_call(monkeypatch):
    """Make every pair of clock readings one second apart."""
    ticks = itertools.count()
    monkeypatch.setattr(devices, "perf_counter", lambda: float(next(ticks)))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8])
@pytest.mark.parametrize("size", [1, 7, 511, 512, 513, 100_001])
def test_a_sweep_reads_nearly_every_byte_and_none_twice(size, dtype):
    array = np.ones(size, dtype)
    assert array.nbytes - 8 * MAX_CHUNKS <= read_sweep(array) <= array.nbytes


def test_bandwidth_is_the_bytes_of_all_arrays_over_the_time(one_second_a_call):
    arrays = [np.zeros((4, 1024, 16), np.float32), np.zeros((2, 1024, 16), np.float32)]
    assert devices.measure_read_gbps(*arrays) == pytest.approx(6 * 65536 / 1e9)


def test_operations_count_a_multiply_and_an_add_of_every_lane_of_two_chains():
    assert multiply_add(10, 3) == 2 * 2 * 64 * 10 * 3


def test_the_rate_is_the_best_of_all_threads_together(one_second_a_call, num_threads):
    num_threads(1)
    one = devices.measure_fp32_gflops()
    if numba.config.NUMBA_NUM_THREADS > 1:
        num_threads(2)
        assert devices.measure_fp32_gflops() == pytest.approx(2 * one)
    assert one > 0


def test_a_rate_is_measured_over_milliseconds_not_over_the_start_of_threads(num_threads):
    # Starting threads costs microseconds on an idle machine and milliseconds on a busy one; work
    # as short as that would be reported as a slow processor. A slower machine only takes longer.
    num_threads(1)
    multiply_add(1, 1)
    times_ms = []
    for _ in range(5):
        start = perf_counter()
        multiply_add(devices._FMA_ROUNDS, 1)
        times_ms.append((perf_counter() - start) * 1e3)
    assert min(times_ms) > 1.0


@pytest.fixture
def one_second_an_event(monkeypatch):
    """Make every event of the simulator one second after the one before."""
    ticks = itertools.count()
    monkeypatch.setattr(sim_driver, "perf_counter", lambda: float(next(ticks)))


def test_a_copy_counts_what_it_reads_and_what_it_writes(one_second_an_event):
    assert devices.CopyProbe().measure_gbps() == pytest.approx(2 * 65536 / 1e9)


def test_a_copy_is_made_of_every_byte(monkeypatch):
    driver = SimDriver()
    monkeypatch.setattr(devices, "get_driver", lambda: driver)
    probe = devices.CopyProbe()
    copied = np.zeros(65536, np.uint8)
    driver.stream().download(copied, probe._target)
    assert (copied == 1).all()


def test_copies_leave_most_of_the_memory_of_a_device_free(monkeypatch, one_second_an_event):
    monkeypatch.setattr(sim_driver, "MEMORY_BYTES", 8000)
    assert devices.CopyProbe().measure_gbps() == pytest.approx(2 * 1000 / 1e9)


def test_copies_on_a_device_are_far_larger_than_its_caches(monkeypatch):
    class Device(SimDriver):
        is_simulated = False

        def empty(self, shape, dtype):
            sizes.append(shape)
            return super().empty(16, dtype)

    sizes = []
    monkeypatch.setattr(devices, "get_driver", Device)
    monkeypatch.setattr(sim_driver, "MEMORY_BYTES", 80 << 30)
    devices.CopyProbe()
    assert sizes == [1 << 30, 1 << 30]


def test_transfers_are_counted_in_both_directions(one_second_an_event):
    rates = devices.measure_transfer_gbps()
    assert rates == {way: pytest.approx(65536 / 1e9) for way in ("h2d", "d2h")}
