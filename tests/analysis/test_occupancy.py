"""Occupancy: the blocks that NVIDIA's own `cuda_occupancy.h` computes, and what must hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbadsd.analysis.occupancy import MULTIPROCESSORS

THREADS = st.integers(1, 32).map(lambda warps: 32 * warps)
REGISTERS = st.integers(8, 255)
SHARED_BYTES = st.integers(0, 47 * 1024)
ARCHITECTURES = st.sampled_from(sorted(MULTIPROCESSORS))


# threads, registers, shared bytes -> blocks, as cudaOccMaxActiveBlocksPerMultiprocessor (CUDA 13.0)
@pytest.mark.parametrize(
    ("arch", "num_threads", "registers", "shared_bytes", "blocks"),
    [
        ("sm_90", 128, 128, 11584, 4),
        ("sm_90", 128, 40, 0, 12),
        ("sm_90", 128, 41, 0, 10),  # 41 x 32 registers of a warp become 1536
        ("sm_90", 96, 32, 0, 21),
        ("sm_90", 32, 16, 0, 32),
        ("sm_90", 1024, 64, 0, 1),
        ("sm_90", 1024, 65, 0, 0),
        ("sm_90", 160, 255, 0, 1),
        ("sm_90", 288, 255, 0, 0),  # 9 warps count as 12
        ("sm_90", 256, 24, 33832, 6),
        ("sm_80", 256, 32, 19968, 8),
        ("sm_80", 256, 32, 19969, 7),  # with 1024 that the system keeps
        ("sm_75", 256, 32, 21760, 3),
        ("sm_75", 256, 32, 21761, 2),  # without, in steps of 256
        ("sm_86", 256, 32, 20352, 4),
        ("sm_89", 32, 16, 0, 24),
        ("sm_100", 512, 48, 0, 2),
        ("sm_110", 64, 128, 0, 8),
        ("sm_120", 256, 64, 0, 4),
    ],
)
def test_blocks_are_those_of_the_cuda_runtime(arch, num_threads, registers, shared_bytes, blocks):
    found = MULTIPROCESSORS[arch].resident_blocks(num_threads, registers, shared_bytes)
    assert found == blocks


@pytest.mark.parametrize(
    ("arch", "num_threads", "registers", "fraction"),
    [
        ("sm_90", 256, 32, 1.0),
        ("sm_90", 128, 128, 0.25),
        ("sm_90", 1024, 65, 0.0),
        ("sm_89", 32, 16, 0.5),
        ("sm_75", 1024, 64, 1.0),
        ("sm_90", 100, 32, 1.0),  # 100 threads take four warps
    ],
)
def test_occupancy_is_of_the_threads_of_this_architecture(arch, num_threads, registers, fraction):
    assert MULTIPROCESSORS[arch].occupancy_fraction(num_threads, registers, 0) == fraction


def test_every_architecture_has_its_own_name_and_holds_a_block_of_any_size():
    for name, limits in MULTIPROCESSORS.items():
        assert name == "sm_{}{}".format(*limits.compute_capability)
        assert limits.resident_blocks(1024, 32, 0) >= 1


@given(ARCHITECTURES, THREADS, REGISTERS, SHARED_BYTES)
def test_what_is_resident_fits(arch, num_threads, registers, shared_bytes):
    limits = MULTIPROCESSORS[arch]
    blocks = limits.resident_blocks(num_threads, registers, shared_bytes)
    assert 0 <= blocks <= limits.max_blocks
    assert blocks * num_threads <= limits.max_threads
    assert blocks * num_threads * registers <= 65536
    assert blocks * (shared_bytes + limits.reserved_shared_bytes) <= limits.shared_bytes


@given(ARCHITECTURES, THREADS, REGISTERS, SHARED_BYTES, st.integers(0, 64))
def test_taking_more_never_fits_more(arch, num_threads, registers, shared_bytes, more):
    blocks = MULTIPROCESSORS[arch].resident_blocks
    here = blocks(num_threads, registers, shared_bytes)
    assert blocks(num_threads, registers + more, shared_bytes) <= here
    assert blocks(num_threads, registers, shared_bytes + more) <= here
