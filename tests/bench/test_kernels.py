"""Kernels under inspection: what their machine code says, budgets, the sweep and the table."""

import itertools
import json
import os
import subprocess
import sys

import pytest

from numbadsd.bench import kernels as module
from numbadsd.bench.kernels import SWEEP, faults_of, over_budget, render_kernels, run_kernels
from numbadsd.errors import CudaUnavailable
from tests.bench.kernel_records import kernel_entry, kernel_record, needs_compiler

# Four kernels whose needs are known, and the last again with too few registers.
INSPECT = """
import json, sys
from dataclasses import asdict, replace
from numbadsd.kernels.cuda.compile import compile_now
from numbadsd.kernels.cuda.inspect import read_resources
from numbadsd.kernels.cuda.launch import Kernel
from numbadsd.kernels.cuda.ops import cuda, float32

def plain(x, n):
    x[cuda.threadIdx.x] = n

def shared(x, n):
    numbers = cuda.shared.array(100, float32)
    numbers[cuda.threadIdx.x] = x[n]
    cuda.syncthreads()
    x[cuda.threadIdx.x] = numbers[n]

def indexed(x, n):
    numbers = cuda.local.array(300, float32)
    for i in range(300):
        numbers[i] = x[i]
    x[0] = numbers[n]

def hungry(x, n):
    numbers = cuda.local.array(64, float32)
    for i in range(64):
        numbers[i] = x[i * n]
    for i in range(64):
        x[i] = numbers[63 - i]

kernels = [
    Kernel(f.__name__, f, ("f32[]", "i32"), 64, 200, 4) for f in (plain, shared, indexed, hungry)
]
kernels.append(replace(kernels[-1], name="starved", max_registers=32))
arch = tuple(json.loads(sys.argv[1]))
taken = {k.name: asdict(read_resources(compile_now(k, arch), arch)) for k in kernels}
print(json.dumps(taken))
"""


@pytest.fixture(scope="module", params=[[8, 0], [9, 0], [10, 0]], ids=["sm_80", "sm_90", "sm_100"])
def taken(request):
    """Return what the kernels of INSPECT take, compiled where the simulator is off."""
    process = subprocess.run(
        [sys.executable, "-c", INSPECT, json.dumps(request.param)],
        env=os.environ | {"NUMBA_ENABLE_CUDASIM": "0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


@needs_compiler
def test_shared_memory_is_what_the_kernel_asks_for(taken):
    shared_bytes = {name: resources["shared_bytes"] for name, resources in taken.items()}
    assert shared_bytes == {"plain": 0, "shared": 400, "indexed": 0, "hungry": 0, "starved": 0}


@needs_compiler
def test_the_stack_holds_an_array_that_is_indexed_at_run_time(taken):
    assert taken["indexed"]["stack_bytes"] == 300 * 4
    assert taken["plain"]["stack_bytes"] == taken["shared"]["stack_bytes"] == 0


@needs_compiler
def test_a_spill_is_seen(taken):
    assert taken["hungry"]["registers"] > 64 and taken["hungry"]["stack_bytes"] == 0
    assert taken["starved"]["registers"] <= 32 and taken["starved"]["stack_bytes"] > 64
    assert taken["plain"]["registers"] <= 16


@pytest.mark.parametrize(
    ("changes", "faults"),
    [
        ({}, []),
        ({"registers": 128}, []),
        ({"registers": 129}, ["129 registers of 128"]),
        ({"stack_bytes": 8}, ["8 bytes of stack"]),
        ({"occupancy_fraction": 0.4375}, ["occupancy 0.438 without a reason"]),
        ({"occupancy_fraction": 0.4375, "low_occupancy": "wide loads"}, []),
        ({"occupancy_fraction": 0.0, "low_occupancy": "wide loads"}, ["no block fits"]),
        ({"registers": 200, "stack_bytes": 4}, ["200 registers of 128", "4 bytes of stack"]),
    ],
)
def test_a_kernel_over_its_budget_is_told_why(changes, faults):
    assert faults_of(kernel_entry(**changes)) == faults


def test_all_that_is_over_budget_is_one_line():
    bad = [kernel_entry(name=name, faults=["8 bytes of stack", "slow"]) for name in "ab"]
    record = kernel_record(bad[0], kernel_entry(), bad[1])
    assert over_budget(record) == "a: 8 bytes of stack, slow; b: 8 bytes of stack, slow"
    assert over_budget(kernel_record(kernel_entry())) == ""


def test_the_table_has_a_row_a_kernel_with_a_note_where_one_is_due():
    text = render_kernels(
        kernel_record(
            kernel_entry(name="fine", low_occupancy="not to be shown"),
            kernel_entry(name="low", occupancy_fraction=0.25, low_occupancy="wide loads"),
            kernel_entry(name="bad", stack_bytes=8, faults=["8 bytes of stack"]),
        )
    )
    assert "sm_90" in text.splitlines()[0] and "head_dim 128" in text.splitlines()[1]
    rows = {line.split()[0]: line.split() for line in text.splitlines() if " 128 " in line}
    assert rows["fine"] == ["fine", "128", "64", "128", "0", "2048", "0.500", "64"]
    assert rows["low"][-4:] == ["0.250", "64", "wide", "loads"]
    assert rows["bad"][-6:] == ["OVER", "BUDGET:", "8", "bytes", "of", "stack"]


def test_a_kernel_that_does_not_compile_is_a_row_without_numbers():
    names = ("registers", "stack_bytes", "shared_bytes", "occupancy_fraction")
    failed = kernel_entry(**dict.fromkeys(names), faults=["does not compile: too new"])
    row = [line for line in render_kernels(kernel_record(failed)).splitlines() if "OVER" in line]
    assert row[0].split()[:8] == ["attend", "128", "-", "128", "-", "-", "-", "64"]


@pytest.mark.parametrize(
    ("log", "first"),
    [
        ("ERROR (4)\nlog: ptxas line 9; error   : Feature A\nptxas; error   : B\n", "Feature A"),
        ("ERROR_INTERNAL (6)\nnothing more", "ERROR_INTERNAL (6)"),
    ],
)
def test_of_many_errors_the_first_is_told(log, first):
    assert module._first_error(log) == first


def test_the_sweep_has_every_value_and_nearly_every_pair_of_two():
    rows = [(c.group_size, c.head_dim, c.kv_dtype, c.summary, c.share) for c in SWEEP]
    assert [len(set(column)) for column in zip(*rows, strict=True)] == [4, 3, 3, 4, 3]
    pairs = [
        len({(row[a], row[b]) for row in rows}) for a, b in itertools.combinations(range(5), 2)
    ]
    assert sum(pairs) == 12 + 12 + 16 + 12 + 9 + 12 + 9 + 12 + 9 + 12 - 7


def test_the_simulator_compiles_nothing_and_says_so(monkeypatch):
    monkeypatch.setattr(module, "SIMULATED", True)
    with pytest.raises(CudaUnavailable, match="NUMBA_ENABLE_CUDASIM"):
        run_kernels(SWEEP[:1], "sm_90", "dsd_kernels")


@pytest.mark.parametrize(
    ("missing", "package"), [("numba_cuda", "numba-cuda"), ("elftools", "pyelftools")]
)
def test_without_a_package_the_remedy_is_named(monkeypatch, missing, package):
    monkeypatch.setattr(module, "SIMULATED", False)
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == missing else name)
    with pytest.raises(CudaUnavailable, match=rf"{package} .*pip install 'numbadsd\[cuda\]'"):
        run_kernels(SWEEP[:1], "sm_90", "dsd_kernels")
