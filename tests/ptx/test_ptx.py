"""What the compiler makes of the kernels, run as translated PTX; and the translator itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from numbadsd.kernels.cuda import sim
from tests.bench.kernel_records import needs_compiler
from tests.ptx.machine import LoadedProgram, Memory
from tests.ptx.translate import translate

ROOT = Path(__file__).parents[2]
NAMES = "num_heads", "num_kv_heads", "head_dim", "page_size", "kv_dtype", "summary", "share"
SHAPES = [
    (4, 1, 32, 16, "float16", "minmax", "kv_head"),
    (2, 2, 48, 4, "float32", "mean", "request"),
    (6, 2, 16, 3, "bfloat16", "mean_std", "query_head"),
    (8, 1, 128, 8, "float16", "cuboid_mean", "kv_head"),
]
TRANSLATED = [  # in addition, and not run
    (2, 2, 64, 7, "bfloat16", "cuboid_mean", "request"),
    (1, 1, 32, 5, "float32", "minmax", "query_head"),
]


@pytest.fixture(scope="module")
def run_check(tmp_path_factory):
    """Return a function that runs check.py where numba-cuda compiles; gives its last line."""
    folder = str(tmp_path_factory.mktemp("ptx"))

    def run_one(what, asked):
        script = [sys.executable, "-W", "error", "-m", "tests.ptx.check"]
        process = subprocess.run(
            [*script, what, json.dumps(asked), folder],
            env=os.environ | {"NUMBA_ENABLE_CUDASIM": "0"},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert process.returncode == 0, process.stderr
        return process.stdout.splitlines()[-1]

    return run_one


def fields(shape):
    """Return a shape as the fields of a configuration."""
    return dict(zip(NAMES, shape, strict=True))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)))
def test_compiled_kernels_give_what_the_cpu_gives(shape, run_check):
    assert run_check("run", fields(shape)) == "checked"


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_compiled_topk_gives_what_the_cpu_gives(dtype, run_check):
    assert run_check("topk", dtype) == "checked"


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_compiled_attention_equals_the_oracle_in_every_way(dtype, run_check):
    assert run_check("attend", dtype) == "checked"


@needs_compiler
@pytest.mark.slow
def test_every_kernel_of_the_catalog_can_be_translated(run_check):
    answer = run_check("translate", [fields(shape) for shape in SHAPES + TRANSLATED])
    assert answer.endswith("kernels translated") and int(answer.split()[0]) > 40


# ---- the translator, on PTX written here


def entry(body, shared=""):
    """Return PTX of a kernel with the parameters out and n, its registers left undeclared."""
    parameters = ".param .u64 entry_out,\n.param .u32 entry_n"
    start = "ld.param.u64 %rd1, [entry_out];\nld.param.u32 %r1, [entry_n];"
    return f"{shared}\n.visible .entry entry(\n{parameters}\n)\n{{\n{start}\n{body}\nret;\n}}\n"


def run(body, n=0, *, out=None, shared="", num_threads=32):
    """Run statements over an array; return the array."""
    out = np.zeros(64, np.uint32) if out is None else out
    memory = Memory()
    memory.add(out.ctypes.data, out.nbytes, out)
    program = LoadedProgram(translate(entry(body, shared)))
    program.run_grid(memory, 1, num_threads, [out.ctypes.data, n & 0xFFFFFFFF])
    return out


def result(body, n=0, dtype=np.uint32):
    """Return the number that statements leave in %r2, or in %rd2 for a dtype of 64 bits."""
    dtype = np.dtype(dtype)
    value = "%rd2" if dtype.itemsize == 8 else "%r2"
    store = f"st.global.u{8 * dtype.itemsize} [%rd1], {value};"
    return run(f"{body}\n{store}", n).view(dtype)[0]


def aligned(num_words):
    """Return words whose first is aligned to 16 bytes."""
    words = np.arange(num_words + 4, dtype=np.uint32)
    start = -words.ctypes.data % 16 // 4
    return words[start : start + num_words]


@pytest.mark.parametrize(
    ("instruction", "n", "expected"),
    [
        ("shr.s32 %r2, %r1, 1", -8, 0xFFFFFFFC),
        ("shr.u32 %r2, %r1, 1", -8, 0x7FFFFFFC),
        ("shr.s32 %r2, %r1, 40", -8, 0xFFFFFFFF),
        ("shr.u32 %r2, %r1, 40", -8, 0),
        ("shl.b32 %r2, %r1, 31", 3, 0x80000000),
        ("shl.b32 %r2, %r1, 32", 3, 0),
        ("add.s32 %r2, %r1, -1", 0, 0xFFFFFFFF),
        ("sub.s32 %r2, 1, %r1", 3, 0xFFFFFFFE),
        ("mul.hi.s32 %r2, %r1, 2", -1, 0xFFFFFFFF),
        ("mul.hi.u32 %r2, %r1, 2", -1, 1),
        ("mad.lo.s32 %r2, %r1, %r1, 7", -3, 16),
        ("div.s32 %r2, %r1, 2", -7, 0xFFFFFFFD),
        ("rem.s32 %r2, %r1, 2", -7, 0xFFFFFFFF),
        ("div.u32 %r2, %r1, 2", -7, 0x7FFFFFFC),
        ("max.s32 %r2, %r1, 1", -1, 1),
        ("max.u32 %r2, %r1, 1", -1, 0xFFFFFFFF),
        ("not.b32 %r2, %r1", 0, 0xFFFFFFFF),
        ("popc.b32 %r2, %r1", -1, 32),
        ("bfi.b32 %r2, %r1, 305419896, 8, 12", 0xAAAAABCD, 0x123BCD78),
        ("prmt.b32 %r2, %r1, 305419896, 0x5410", 0xAAAABBBB, 0x5678BBBB),
        ("prmt.b32 %r2, %r1, 305419896, 0x7632", 0xAAAABBBB, 0x1234AAAA),
    ],
)
def test_integers_have_32_bits_and_the_sign_of_the_instruction(instruction, n, expected):
    assert result(f"{instruction};", n) == expected


@pytest.mark.parametrize(
    ("instruction", "n", "expected"),
    [
        ("mul.wide.s32 %rd2, %r1, 3", -1, -3),
        ("mul.wide.u32 %rd2, %r1, 3", -1, 3 * 0xFFFFFFFF),
        ("mad.wide.s32 %rd2, %r1, 3, -5", -1, -8),
        ("cvt.s64.s32 %rd2, %r1", -1, -1),
        ("cvt.u64.u32 %rd2, %r1", -1, 0xFFFFFFFF),
        ("cvt.u64.u32 %rd3, %r1; cvt.s64.s32 %rd2, %rd3", -1, -1),
        ("cvt.s64.s32 %rd3, %r1; mul.hi.s64 %rd2, %rd3, 4", -1, -1),
        ("st.global.u32 [%rd1], %r1; ld.global.s32 %rd2, [%rd1]", -2, -2),
        ("st.global.u32 [%rd1], %r1; ld.global.u32 %rd2, [%rd1]", -2, 0xFFFFFFFE),
    ],
)
def test_a_wider_result_is_extended_as_the_type_says(instruction, n, expected):
    assert result(f"{instruction};", n, np.int64) == expected


@pytest.mark.parametrize(
    ("test", "n", "expected"),
    [
        ("lt.s32 %p1, %r1, 1", -1, 1),
        ("lt.u32 %p1, %r1, 1", -1, 0),
        ("gt.s32 %p1, %r1, -5", -1, 1),
        ("eq.s32 %p1, %r1, -1", -1, 1),
        ("ge.u32 %p1, %r1, -1", -1, 1),
        ("eq.f32 %p1, %f1, %f1", 0x7FC00000, 0),
        ("ne.f32 %p1, %f1, %f1", 0x7FC00000, 0),
        ("neu.f32 %p1, %f1, %f1", 0x7FC00000, 1),
        ("nan.f32 %p1, %f1, %f1", 0x7FC00000, 1),
        ("gt.f32 %p1, %f1, 0fFF800000", 0, 1),
    ],
)
def test_a_comparison_is_of_numbers_of_its_type(test, n, expected):
    body = f"mov.b32 %f1, %r1; setp.{test}; selp.u32 %r2, 1, 0, %p1;"
    assert result(body, n) == expected


def test_a_guard_and_a_loop():
    body = """
    mov.u32 %r2, 0;
    $L__BB0_1:
    setp.ge.u32 %p1, %r2, %r1;
    @%p1 bra $L__BB0_3;
    add.s32 %r2, %r2, 2;
    bra.uni $L__BB0_1;
    $L__BB0_3:
    @!%p1 mov.u32 %r2, 99;
    """
    assert result(body, 7) == 8


@pytest.mark.parametrize(
    ("asm", "number", "expected"),
    [
        ("{.reg .b16 l, h; mov.b32 {l, h}, %r1; cvt.f32.f16 %f1, l;}", 0xC0003C00, 1.0),
        ("{.reg .b16 l, h; mov.b32 {l, h}, %r1; cvt.f32.f16 %f1, h;}", 0xC0003C00, -2.0),
        ("sub.f32 %f1, 0f3F800000, 0f40400000;", 0, -2.0),
        ("fma.rn.f32 %f1, 0f40000000, 0f40400000, 0fBF800000;", 0, 5.0),
        ("max.f32 %f1, 0f7FC00000, 0f3F800000;", 0, 1.0),
        ("cvt.rn.f32.s32 %f1, %r1;", -3, -3.0),
        ("cvt.rn.f32.u32 %f1, %r1;", -1, 4294967296.0),
    ],
)
def test_float32_numbers(asm, number, expected):
    assert result(f"{asm} mov.b32 %r2, %f1;", number).view(np.float32) == expected


@pytest.mark.parametrize(("kind", "bits"), [("f16", 0x3C00), ("bf16", 0x3F80)])
def test_a_number_is_rounded_to_half_precision(kind, bits):
    to_half = f"{{.reg .b16 h; cvt.rn.{kind}.f32 h, 0f3F800001; cvt.u32.u16 %r2, h;}}"
    assert result(to_half) == bits


def test_four_words_are_loaded_and_stored_in_order():
    load = "ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%r2, %r3, %r4, %r5}, [%rd1+16];"
    out = run(f"{load} st.global.v4.u32 [%rd1], {{%r5, %r4, %r3, %r2}};", out=aligned(8))
    assert out[:4].tolist() == out[4:].tolist()[::-1]


@pytest.mark.parametrize(
    ("access", "fault"),
    [
        ("ld.global.u32 %r2, [%rd1+2]", "not aligned"),
        ("ld.global.v4.u32 {%r2, %r3, %r4, %r5}, [%rd1+8]", "not aligned"),
        ("ld.global.u64 %rd2, [%rd1+4]", "not aligned"),
        ("ld.global.u32 %r2, [%rd1+32]", "out of range"),
        ("st.global.u32 [%rd1+-4], %r1", "out of range"),
        ("ld.global.v4.u32 {%r2, %r3, %r4, %r5}, [%rd1+32]", "out of range"),
        ("ld.shared.u32 %r2, [words+16]", "shared access .* out of range"),
        ("st.shared.u32 [words+1], %r1", "shared access .* not aligned"),
        ("add.s32 %r2, %r9, 1", "NameError|UnboundLocalError"),
    ],
)
def test_a_wrong_access_is_a_fault(access, fault):
    shared = ".visible .shared .align 16 .b8 words[16];"
    with pytest.raises(sim.SimulatedFault, match=fault):
        run(f"{access};", out=aligned(8), shared=shared)


def test_memory_that_is_freed_is_out_of_range():
    memory, words = Memory(), np.zeros(4, np.uint32)
    address = words.ctypes.data
    memory.add(address, words.nbytes, words)
    assert memory.load(address, 4, 1) == [0]
    del words
    with pytest.raises(sim.SimulatedFault, match="out of range"):
        memory.load(address, 4, 1)


EACH_LANE = """
mov.u32 %r3, %tid.x;
{}
mul.wide.u32 %rd3, %r3, 4;
add.s64 %rd4, %rd1, %rd3;
st.global.u32 [%rd4], %r2;
"""


def test_lanes_take_the_values_of_others():
    lanes = np.arange(64)
    butterfly = "shfl.sync.bfly.b32 %r2, %r3, 8, 31, -1;"
    out = run(EACH_LANE.format(butterfly), num_threads=64)
    np.testing.assert_array_equal(out, lanes ^ 8)
    up = "shfl.sync.up.b32 %r2, %r3, 3, 0, 4294967295;"
    out = run(EACH_LANE.format(up), num_threads=64)
    np.testing.assert_array_equal(out, np.where(lanes % 32 < 3, lanes, lanes - 3))
    first = "shfl.sync.idx.b32 %r2, %r3, 5, 31, -1;"
    out = run(EACH_LANE.format(first), num_threads=64)
    np.testing.assert_array_equal(out, lanes // 32 * 32 + 5)
    vote = "setp.lt.u32 %p1, %r3, 3; vote.sync.ballot.b32 %r2, %p1, 4294967295;"
    assert set(run(EACH_LANE.format(vote))[:32].tolist()) == {7}


def test_lanes_at_two_instructions_are_found():
    body = """
    setp.lt.u32 %p1, %r3, 16;
    @%p1 bra $L__BB0_1;
    shfl.sync.bfly.b32 %r2, %r3, 1, 31, -1;
    bra.uni $L__BB0_2;
    $L__BB0_1:
    shfl.sync.bfly.b32 %r2, %r3, 1, 31, -1;
    $L__BB0_2:
    """
    with pytest.raises(sim.SimulatedFault, match="divergence"):
        run(EACH_LANE.format(body))


def test_a_barrier_that_some_threads_do_not_reach_is_found():
    with pytest.raises(sim.SimulatedFault, match="deadlock"):
        run(EACH_LANE.format("setp.lt.u32 %p1, %r3, 9; @%p1 bar.sync 0; mov.u32 %r2, 1;"))


def test_threads_add_to_a_shared_word():
    shared = ".visible .shared .align 4 .b8 word[4];"
    add = "st.shared.u32 [word], 5; bar.sync 0; atom.shared.add.u32 %r4, [word], 2; bar.sync 0;"
    out = run(EACH_LANE.format(f"{add} ld.shared.u32 %r2, [word];"), shared=shared)
    assert set(out[:32].tolist()) == {5 + 2 * 32}


@pytest.mark.parametrize(
    "instruction",
    [
        "add.f64 %fd1, %fd2, %fd3",
        "ld.local.u32 %r2, [%rd2]",
        "ld.volatile.global.u32 %r2, [%rd1]",
        "atom.global.add.u32 %r2, [%rd1], 1",
        "shfl.sync.bfly.b32 %r2, %r1, 1, 31, 65535",
        "shfl.sync.down.b32 %r2, %r1, 1, 31, -1",
        "prmt.b32 %r2, %r1, %r1, 0x3210",
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%f1, %f2, %f3, %f4}, {%r1, %r2}, {%r3}, {%f1, %f2, %f3, %f4}",
        "bar.sync 1",
        "set.eq.u32.s32 %r2, %r1, 1",
        "mov.u32 %r2, %clock",
        "bfe.u32 %r2, %r1, 3, 4",
        "cvt.rzi.s32.f32 %r2, %f1",
    ],
)
def test_an_unknown_instruction_is_named(instruction):
    with pytest.raises(NotImplementedError) as caught:
        translate(entry(f"{instruction};"))
    assert instruction in str(caught.value)
