"""Device arrays, what a kernel accepts, and streams: of the simulator or of a device."""

import gc

import ml_dtypes
import numpy as np
import pytest

from numbadsd.kernels.cuda.launch import DeviceArray, Kernel, check_array, check_stored
from numbadsd.kernels.cuda.prefill import fill_uniform
from numbadsd.kernels.cuda.runtime import get_driver, why_unavailable
from tests.device import assert_same_bits, bits, down, output, stream, up, written


def numbered(*shape, dtype=np.float32):
    """Return an array of different numbers."""
    return np.arange(np.prod(shape), dtype=np.float32).astype(dtype).reshape(shape)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int32, np.int64])
def test_arrays_travel_unchanged(dtype):
    array = numbered(3, 2, 8, dtype=dtype)
    assert_same_bits(down(up(array)), array)
    assert down(up(array[:0])).shape == (0, 2, 8)


def test_rows_of_an_array_are_a_view():
    array = up(numbered(5, 3))
    assert_same_bits(down(array[1:3]), numbered(5, 3)[1:3])
    assert_same_bits(down(array[-2:]), numbered(5, 3)[3:])
    assert array[4:2].shape == (0, 3) and len(array[:9]) == 5
    stream().upload(array[2:4], np.zeros((2, 3), np.float32))
    assert np.all(down(array)[2:4] == 0) and np.all(down(array)[4] == [12, 13, 14])
    with pytest.raises(AssertionError):
        array[::2]


def test_an_array_has_other_shapes():
    array = up(numbered(4, 6, dtype=np.float16))
    assert (array.size, array.nbytes, len(array)) == (24, 48, 4)
    assert_same_bits(down(array.reshape(2, 12)), numbered(2, 12, dtype=np.float16))
    words = array.as_words()
    assert words.shape == (12,) and words.dtype == np.uint32
    np.testing.assert_array_equal(bits(down(words)), bits(numbered(4, 6, dtype=np.float16)))
    with pytest.raises(AssertionError):
        array.reshape(5, 5)
    with pytest.raises(AssertionError):
        up(numbered(3, dtype=np.float16)).as_words()
    assert repr(array) == "DeviceArray((4, 6), float16)"


def test_a_view_keeps_the_memory():
    view = up(numbered(1000))[990:].reshape(2, 5)
    gc.collect()
    others = [up(np.zeros(1000, np.float32)) for _ in range(20)]
    assert_same_bits(down(view), numbered(1000)[990:].reshape(2, 5))
    assert len(others) == 20


@pytest.mark.parametrize(
    "dtype, typestr", [(np.float32, "<f4"), (np.int64, "<i8"), (ml_dtypes.bfloat16, "<u2")]
)
def test_other_libraries_can_read_an_array(dtype, typestr):
    array = up(numbered(4, 8, dtype=dtype))[1:]
    interface = array.__cuda_array_interface__
    assert interface == {
        "shape": (3, 8), "typestr": typestr, "data": (array.address, False), "version": 3,
    }  # fmt: skip


def test_memory_of_the_simulator_is_aligned_and_poisoned():
    for size in (1, 3, 100, 5000):
        array = get_driver().empty(size, np.uint32)
        assert array.address % 16 == 0
        assert not get_driver().is_simulated or np.all(down(array) == 0xCDCDCDCD)


@pytest.mark.parametrize(
    "array, shape, dtype, message",
    [
        (np.zeros((2, 3)), (2, 3), None, "x: got ndarray, want a DeviceArray"),
        ((2, 3), (2, 4), None, r"x: got shape \(2, 3\), want \(2, 4\)"),
        ((2, 3), (None, 4), None, r"x: got shape \(2, 3\), want \(any, 4\)"),
        ((2, 3), (2, 3, 1), None, r"x: got shape \(2, 3\), want \(2, 3, 1\)"),
        ((2, 3), (2, None), np.int32, "x: got dtype float64, want int32"),
    ],
)
def test_arrays_are_refused_by_name_shape_and_type(array, shape, dtype, message):
    array = DeviceArray(0, array, np.float64, None) if isinstance(array, tuple) else array
    with pytest.raises(ValueError, match=f"^{message}"):
        check_array("x", array, shape, dtype)


def test_stored_arrays_are_of_three_dtypes():
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        check_stored("x", DeviceArray(0, (2, 3), dtype, None), (None, 3))
    with pytest.raises(ValueError, match="^x: got dtype int16, want float32, float16 or bfloat16"):
        check_stored("x", DeviceArray(0, (2, 3), np.int16, None), (None, 3))
    with pytest.raises(ValueError, match="^x: got shape"):
        check_stored("x", DeviceArray(0, (2, 3), np.int16, None), (None, 4))


def make_kernel(parameters, num_threads=32):
    """Return a kernel that does nothing."""
    return Kernel("nothing", lambda *arguments: None, parameters, num_threads, 32, 4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((1,), "nothing: got 1 arguments, want 3"),
        ((1, 2, 3), r"nothing: argument 1 got int, want f32\[\]"),
        ((np.float32, None, None), r"nothing: argument 0 got float32, want i32"),
        ((1, np.int32, np.float32), r"nothing: argument 1 got int32, want f32\[\]"),
        ((1, np.float64, np.float32), r"nothing: argument 1 got float64, want f32\[\]"),
        ((1, np.float32, np.uint8), r"nothing: argument 2 got uint8, want u32\[\]"),
    ],
)
def test_arguments_that_do_not_fit_their_parameters(arguments, message):
    arguments = [up(np.zeros(3, a)) if isinstance(a, type) else a for a in arguments]
    with pytest.raises(TypeError, match=f"^{message}"):
        stream().launch(make_kernel(("i32", "f32[]", "u32[]")), 1, *arguments)


def test_words_are_any_storage_of_whole_words():
    kernel = make_kernel(("u32[]",))
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16, np.uint32, np.int64):
        kernel.check_arguments((DeviceArray(0, (2, 3), dtype, None),))


@pytest.mark.parametrize("parameters, num_threads", [(("f16[]",), 32), (("i32",), 33), (("",), 32)])
def test_a_kernel_that_cannot_be_launched_is_not_made(parameters, num_threads):
    with pytest.raises(AssertionError):
        make_kernel(parameters, num_threads)


def test_kernels_are_told_apart_by_identity():
    one, other = make_kernel(("i32",)), make_kernel(("i32",))
    assert one == one and one != other and len({one, other, one}) == 2


def fill(out, seed):
    """Launch a kernel that fills rows of `out`."""
    rows = up(np.zeros(len(out), np.int64))
    fill_uniform(out, seed, rows, up(np.arange(len(out))), 1, stream=stream())


def test_captured_work_is_done_when_it_is_replayed():
    out, copy = output((2, 1, 16), np.float32), output((2, 1, 16), np.float32)
    rows, tokens = up(np.zeros(2, np.int64)), up(np.arange(2))
    host = get_driver().pinned((2, 1, 16), np.float32)
    events = []

    def work():
        events.append(stream().record())
        fill_uniform(out, 5, rows, tokens, 1, stream=stream())
        stream().copy(copy, out)
        stream().download(host, copy)
        events.append(stream().record())

    work()  # compiles what a capture cannot
    stream().synchronize()
    expected = written(out)
    stream().fill(out, 1)
    host[:] = 7
    stream().synchronize()
    graph = stream().capture(work)
    stream().synchronize()
    assert np.all(host == 7)
    for _ in range(2):
        host[:] = 7
        stream().replay(graph)
        stream().synchronize()
        assert_same_bits(host, expected)
        assert_same_bits(down(copy), expected)
    events[-1].synchronize()
    assert events[-1].elapsed_ms(events[-2]) >= 0


def test_a_capture_that_fails_leaves_the_stream_usable():
    with pytest.raises(ZeroDivisionError):
        stream().capture(lambda: 1 / 0)
    out = output((1, 1, 16), np.float32)
    fill(out, 1)
    assert written(out).shape == (1, 1, 16)


def test_every_byte_is_filled():
    array = up(numbered(10))
    stream().fill(array[2:4], 0xAB)
    assert np.all(down(array).view(np.uint32)[2:4] == 0xABABABAB)
    assert down(array)[4] == 4


def test_page_locked_memory_has_its_shape():
    array = get_driver().pinned((3, 4), np.int32)
    array[:] = 5
    assert array.shape == (3, 4) and array.dtype == np.int32 and array.flags.c_contiguous


def test_this_process_can_run_kernels():
    assert why_unavailable() is None
    assert get_driver() is get_driver()
    free, total = get_driver().memory_bytes()
    assert 0 < free <= total
