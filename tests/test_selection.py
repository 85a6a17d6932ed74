"""`numbadsd.topk` on both sides: NumPy arrays, and device arrays of other libraries."""

import gc
import re

import ml_dtypes
import numpy as np
import pytest

import numbadsd
from numbadsd.kernels.cuda import exchange
from numbadsd.kernels.cuda.topk_tuning import TopkTuning
from tests import oracle
from tests.device import down, get_driver, intact, output, stream, up, written
from tests.pages.late import LateStream

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def make_scores(rows, width, dtype=np.float32, seed=0):
    """Return scores with ties and NaN."""
    rng = np.random.default_rng(seed)
    scores = (rng.integers(-30, 30, (rows, width)) / 4).astype(np.float32)
    scores[rng.random((rows, width)) < 0.05] = np.nan
    return scores.astype(dtype)


def expected(scores, lengths, k):
    rows = np.asarray(scores).astype(np.float32)
    width = rows.shape[1]
    want = [
        oracle.select(r[: max(0, min(n, width))], k) for r, n in zip(rows, lengths, strict=True)
    ]
    return np.array(want, np.int32).reshape(len(rows), k)


class Foreign:
    """A device array of another library: `owner` has the memory, the interface describes it."""

    def __init__(self, owner, shape, strides=None, typestr="<f4", offset=0, **more):
        self.owner = owner
        self.__cuda_array_interface__ = {
            "shape": shape, "strides": strides, "typestr": typestr, "version": 3,
            "data": (owner.address + offset, False), **more,
        }  # fmt: skip


class Capsuled:
    """A device array of a type that only DLPack has a word for; the interface may say a wrong one.

    As torch's bfloat16: to 2.4 it raises one of two errors, 2.5 says <f2, later ones <V2.
    """

    def __init__(self, host, typestr=TypeError, dtype=None):
        self.host, self.asked, self._typestr, self.dtype = host, [], typestr, dtype

    @property
    def __cuda_array_interface__(self):
        if isinstance(self._typestr, type):
            raise self._typestr("Got unsupported ScalarType BFloat16")
        return interface_of(self.host, self._typestr)

    def __dlpack_device__(self):
        return (exchange.CUDA_DEVICES[0], 0)

    def __dlpack__(self, *, stream=None):
        self.asked.append(stream)
        if self.host.dtype != ml_dtypes.bfloat16:
            return self.host.__dlpack__()
        capsule = self.host.view(np.uint16).__dlpack__()  # NumPy makes none of bfloat16
        exchange.tensor_in(capsule).type_code = 4
        return capsule


def interface_of(host, typestr):
    """Return what `__cuda_array_interface__` says of memory."""
    return {
        "shape": host.shape, "strides": host.strides, "typestr": typestr, "version": 2,
        "data": (host.ctypes.data, False),
    }  # fmt: skip


LENGTHS = np.array([40, 0, -1, 7, 8, 9, 100, 39], np.int32)


@EVERY_DTYPE
@pytest.mark.parametrize("order", ["position", False])
def test_both_sides_give_what_a_sort_gives(dtype, order):
    scores = make_scores(8, 40, dtype)
    want = expected(scores, LENGTHS, 8)
    on_host = numbadsd.topk(scores, LENGTHS, 8, sorted=order)
    np.testing.assert_array_equal(on_host, want)
    on_device = numbadsd.topk(up(scores), up(LENGTHS), 8, sorted=order)
    np.testing.assert_array_equal(down(on_device), want)


@EVERY_DTYPE
def test_both_sides_sort_by_score_then_index(dtype):
    scores = make_scores(8, 40, dtype)
    on_host = numbadsd.topk(scores, LENGTHS, 8, sorted="score")
    on_device = down(numbadsd.topk(up(scores), up(LENGTHS), 8, sorted="score"))
    np.testing.assert_array_equal(on_device, on_host)
    numbers = np.nan_to_num(scores.astype(np.float32), nan=-np.inf, neginf=-np.inf)
    for row, length, chosen in zip(numbers, LENGTHS, on_host, strict=True):
        valid = chosen[chosen >= 0]
        assert len(valid) == max(0, min(length, 40, 8)) and np.all(chosen[len(valid) :] == -1)
        assert sorted(valid, key=lambda i: (-row[i], i)) == list(valid)
        assert set(valid) == set(oracle.select(row[: max(0, length)], 8)) - {-1}


def test_out_is_filled_and_returned():
    scores, want = make_scores(3, 20), expected(make_scores(3, 20), [20] * 3, 5)
    lengths = np.full(3, 20, np.int32)
    out = np.full((3, 5), -7, np.int32)
    assert numbadsd.topk(scores, lengths, 5, out=out) is out
    np.testing.assert_array_equal(out, want)
    out = output((3, 5), np.int32)
    assert numbadsd.topk(up(scores), up(lengths), 5, out=out, stream=stream()) is out
    np.testing.assert_array_equal(written(out), want)


@pytest.mark.parametrize("case", ["wider rows", "upwards", "one row for all", "one row", "no row"])
def test_rows_may_lie_anywhere_apart(case):
    memory = make_scores(6, 50)
    scores = {
        "wider rows": memory[1:5, 3:40],
        "upwards": memory[::-2, :40],
        "one row for all": np.broadcast_to(memory[2], (4, 50)),
        "one row": memory[3:4, 7:],
        "no row": memory[:0],
    }[case]
    lengths = np.full(len(scores), 33, np.int32)
    want = expected(scores, lengths, 6)
    np.testing.assert_array_equal(numbadsd.topk(scores, lengths, 6), want)
    copy = up(memory)
    offset = scores.__array_interface__["data"][0] - memory.__array_interface__["data"][0]
    foreign = Foreign(copy, scores.shape, scores.strides, offset=offset)
    if case == "upwards":
        with pytest.raises(ValueError, match="row_stride: got -100, want at least 0"):
            numbadsd.topk(foreign, up(lengths), 6)
    else:
        np.testing.assert_array_equal(down(numbadsd.topk(foreign, up(lengths), 6)), want)


def test_a_half_precision_row_may_start_at_any_element():
    memory = make_scores(3, 21, np.float16)
    foreign = Foreign(up(memory), (3, 20), (42, 2), "<f2", offset=2)
    got = numbadsd.topk(foreign, up(np.full(3, 20, np.int32)), 4)
    np.testing.assert_array_equal(down(got), expected(memory[:, 1:], [20] * 3, 4))


def test_dlpack_describes_what_the_cuda_interface_cannot():
    bits = make_scores(3, 20).view(np.uint32) >> 16
    scores = Capsuled(make_scores(3, 20))
    got = numbadsd.topk(scores, Capsuled(np.full(3, 18, np.int32)), 4, stream=77)
    np.testing.assert_array_equal(down(got), expected(scores.host, [18] * 3, 4))
    assert scores.asked == [get_driver().stream_of(77).handle]
    with pytest.raises(ValueError, match=r"scores: got DLPack type \(1, 32\), want float32"):
        numbadsd.topk(Capsuled(bits.astype(np.uint32)), up(np.zeros(3, np.int32)), 4)


@pytest.mark.parametrize("typestr", [TypeError, KeyError, "<V2", "<f2", "<u2"])
def test_bfloat16_is_taken_through_dlpack_whatever_the_interface_says(typestr):
    scores = Capsuled(make_scores(3, 20, ml_dtypes.bfloat16), typestr, dtype="torch.bfloat16")
    got = numbadsd.topk(scores, up(np.full(3, 18, np.int32)), 4, stream=77)
    np.testing.assert_array_equal(down(got), expected(scores.host, [18] * 3, 4))
    assert scores.asked == [get_driver().stream_of(77).handle]


@pytest.mark.parametrize("typestr", ["<V2", "<f2", "<u2"])
@pytest.mark.parametrize("called", ["torch.bfloat16", np.dtype(ml_dtypes.bfloat16)])
def test_an_array_that_calls_itself_bfloat16_is_read_as_that(called, typestr):
    memory = make_scores(3, 21, ml_dtypes.bfloat16)
    foreign = Foreign(up(memory), (3, 20), (42, 2), typestr, offset=2)
    foreign.dtype = called
    got = numbadsd.topk(foreign, up(np.full(3, 20, np.int32)), 4)
    np.testing.assert_array_equal(down(got), expected(memory[:, 1:], [20] * 3, 4))


def test_two_bytes_of_anything_are_refused():
    foreign = Foreign(up(np.zeros((2, 4), np.uint16)), (2, 4), typestr="<V2")
    with pytest.raises(ValueError, match=r"^scores: got dtype \|V2, want float32, float16 or bf"):
        numbadsd.topk(foreign, up(COUNTS), 2)


@pytest.fixture
def every_way(monkeypatch):
    """Let short rows go every way."""
    tuning = TopkTuning(warp_length=16, block_length=64, part_length=64, blocks_a_multiprocessor=6)
    monkeypatch.setattr("numbadsd.kernels.cuda.topk.tuning_of", lambda capability: tuning)


@pytest.mark.parametrize("has_workspace", [True, False])
def test_a_captured_call_is_replayed_for_other_lengths(has_workspace, every_way):
    """All ways of a row, by turns, in one graph; the workspace keeps what the run before left."""
    scores = make_scores(4, 300)
    lengths, out = np.array([300, 20, 3, 90], np.int32), output((4, 9), np.int32)
    arrays, workspace = (up(scores), up(lengths)), None
    if has_workspace:
        workspace = output(numbadsd.topk_workspace_bytes(4, 300), np.uint8)
        assert workspace.size > 0
    graph = stream().capture(
        lambda: numbadsd.topk(*arrays, 9, out=out, workspace=workspace, stream=stream())
    )
    for turn in range(4 if has_workspace else 2):
        lengths = np.roll(lengths, 1) if turn else lengths
        stream().upload(arrays[1], lengths)
        stream().fill(out.owner, 0xCD)
        stream().replay(graph)
        np.testing.assert_array_equal(written(out), expected(scores, lengths, 9))
    assert workspace is None or intact(workspace)


def test_without_a_workspace_its_memory_lives_until_the_work_is_done_and_nobody_waits(every_way):
    late, calls, work = LateStream(), [], []
    for seed in range(2):
        scores, lengths = make_scores(2, 150, seed=seed), np.array([150, 90], np.int32)
        arrays, out = (up(scores), up(lengths)), output((2, 9), np.int32)
        calls.append((arrays, out, expected(scores, lengths, 9)))
        numbadsd.topk(*arrays, 9, out=out, stream=late)
        gc.collect()
        work.append(len(late.pending))
    assert work == [work[0], 2 * work[0]] and late.waits == 0
    late.synchronize()
    for _, out, want in calls:
        np.testing.assert_array_equal(written(out), want)


@pytest.mark.gpu
def test_calls_on_two_streams_without_a_workspace_do_not_disturb_each_other():
    """Several blocks a row; results dropped, nobody waits but at the end."""
    streams = [get_driver().stream() for _ in range(2)]
    cases = [make_scores(4, 200_000, seed=seed) for seed in range(2)]
    lengths = np.array([200_000, 150_001, 40_000, 9], np.int32)
    arrays = [(up(scores), up(lengths)) for scores in cases]
    outs = [[output((4, 64), np.int32) for _ in cases] for _ in range(20)]
    stream().synchronize()
    for turn in outs:
        for case, own, out in zip(arrays, streams, turn, strict=True):
            numbadsd.topk(*case, 64, out=out, stream=own)
    for own in streams:
        own.synchronize()
    for scores, chosen in zip(cases, zip(*outs, strict=True), strict=True):
        for out in chosen:
            np.testing.assert_array_equal(written(out), expected(scores, lengths, 64))


ROW = np.zeros((2, 4), np.float32)
COUNTS = np.full(2, 4, np.int32)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sorted": True}, "sorted: got True, want 'position', 'score' or False"),
        ({"sorted": "value"}, "sorted: got 'value', want"),
        ({"k": -1}, "k: got -1, want 0 .. 2048"),
        ({"k": 2049}, "k: got 2049, want 0 .. 2048"),
        ({"k": 2.0}, "k: got 2.0, want 0 .. 2048"),
        ({"scores": ROW[0]}, "scores: got shape (4,), want [rows, stride]"),
        ({"scores": ROW.astype(np.float64)}, "scores: got dtype float64, want float32, float16"),
        ({"scores": np.zeros((2, 8), np.float32)[:, ::2]}, "scores: got 2 elements between nei"),
        ({"lengths": COUNTS[:1]}, "lengths: got int32 (1,), want int32 (2,)"),
        ({"lengths": COUNTS.astype(np.int64)}, "lengths: got int64 (2,), want int32 (2,)"),
        ({"out": np.zeros((2, 3), np.int32)}, "out: got int32 (2, 3), want int32 (2, 2)"),
        ({"out": np.zeros((2, 4), np.int32)[:, ::2]}, "out: got a strided"),
        ({"scores": np.zeros((1, 1 << 21), np.float32), "lengths": COUNTS[:1]}, "width: got 2097"),
    ],
)
@pytest.mark.parametrize("side", ["host", "device"])
def test_a_wrong_argument_is_a_value_error(side, change, message):
    arguments = {"scores": ROW, "lengths": COUNTS, "k": 2} | change
    if side == "device":
        arguments = {name: _on_device(value) for name, value in arguments.items()}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        numbadsd.topk(**arguments)


def _on_device(value):
    if not isinstance(value, np.ndarray):
        return value
    return Foreign(up(value.base if value.base is not None else value), value.shape,
                   value.strides, value.dtype.str)  # fmt: skip


def test_arrays_of_two_sides_are_refused():
    with pytest.raises(ValueError, match="got arrays of both sides, want one side"):
        numbadsd.topk(ROW, up(COUNTS), 2)
    with pytest.raises(ValueError, match="got arrays of both sides, want one side"):
        numbadsd.topk(up(ROW), up(COUNTS), 2, out=np.zeros((2, 2), np.int32))


def test_a_workspace_that_does_not_fit_is_refused(every_way):
    arrays, size = (up(make_scores(2, 300)), up(COUNTS)), numbadsd.topk_workspace_bytes(2, 300)
    with pytest.raises(ValueError, match=f"^workspace: got 8 bytes, want at least {size} contig"):
        numbadsd.topk(*arrays, 2, workspace=up(np.zeros(8, np.uint8)))
    memory = get_driver().empty(2 * size + 16, np.uint8)
    with pytest.raises(ValueError, match="^workspace: got a strided array, want at least"):
        numbadsd.topk(*arrays, 2, workspace=Foreign(memory, (size,), (2,), "|u1"))
    for beyond in (1, 4, 8):
        with pytest.raises(ValueError, match="^workspace: got address 0x.*, want one divisible by"):
            numbadsd.topk(*arrays, 2, workspace=memory[beyond:])
    numbadsd.topk(*arrays, 2, workspace=memory[16:])


class TorchStream:
    cuda_stream = 5


class CupyStream:
    ptr = 6


class ProtocolStream:
    def __cuda_stream__(self):
        return (0, 7)


def test_streams_of_other_libraries_are_known_by_their_number():
    streams = (0, np.int64(4), TorchStream(), CupyStream(), ProtocolStream())
    assert [exchange.stream_number(s) for s in streams] == [0, 4, 5, 6, 7]
    for wrong in (-1, True, "default", 1.5):
        with pytest.raises(ValueError, match="^stream: got .*, want a stream or its number"):
            exchange.stream_number(wrong)
