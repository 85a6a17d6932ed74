"""`topk`: the k best scores of each row, for arrays of the CPU or of a GPU, to use on its own."""

from contextlib import nullcontext
from math import prod

import numpy as np

from numbadsd.errors import CudaUnavailable
from numbadsd.kernels.cpu import topk as cpu
from numbadsd.kernels.cuda.exchange import (
    ForeignArray,
    foreign_array,
    is_device_array,
    stream_number,
)  # fmt: skip
from numbadsd.kernels.cuda.launch import DeviceArray
from numbadsd.kernels.cuda.runtime import get_driver, why_unavailable
from numbadsd.kernels.topk_shape import MAX_K

_ORDERS = {"position": "position", "score": "score", False: "position"}


def topk(scores, lengths, k: int, *, sorted="position", out=None, workspace=None, stream=None):
    """Return the indices of each row's k largest scores: exact, and the same on every run.

    Equal scores go to the lower index; NaN counts as -inf and -0.0 as 0.0. The CPU and a GPU return
    the same indices.

    Parameters
    ----------
    scores : array [rows, stride] float32, float16 or bfloat16
        A NumPy array (bfloat16: of `ml_dtypes`), or a device array: anything with
        ``__cuda_array_interface__`` or DLPack. Rows may lie anywhere apart, the elements of a row
        one behind the other. stride is at most 1,048,576.
    lengths : array [rows] int32
        How many elements of each row count, on the same side; taken as at least 0 and at most
        stride.
    k : int
        At most 2048.
    sorted : {"position", "score", False}
        Ascending indices; descending scores; or no matter which (then ascending indices).
    out : array [rows, k] int32, optional
        C-contiguous; filled and returned. On a GPU nobody waits for that: it is filled in the
        order of the stream, and to be kept, given or new, until what reads it is done.
    workspace : device array [topk_workspace_bytes(rows, stride)] uint8, optional
        Memory to work in, on a GPU, aligned to 16 bytes. With `out` and `workspace` nothing is
        allocated, so that the call can be captured in a graph, once it has run before; the graph
        may be replayed for any lengths. If None, memory is taken and given back in the order of
        the stream, without a wait. Not used on the CPU.
    stream : optional
        On a GPU: what the work is given to, as a number, or as CuPy or torch have it. The default
        stream if None.

    Returns
    -------
    array [rows, k] int32
        Where a row has fewer than k elements, all of them, then -1.

    Raises
    ------
    ValueError
        For arguments that do not fit together.
    CudaUnavailable
        For device arrays where no kernel can run.
    """
    if sorted is True or sorted not in _ORDERS:
        raise ValueError(f"sorted: got {sorted!r}, want 'position', 'score' or False")
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 0 <= k <= MAX_K:
        raise ValueError(f"k: got {k!r}, want 0 .. {MAX_K}")
    sides = {is_device_array(array) for array in (scores, lengths, out) if array is not None}
    if len(sides) > 1:
        raise ValueError("scores, lengths, out: got arrays of both sides, want one side for all")
    if sides == {True}:
        return _topk_on_device(scores, lengths, int(k), _ORDERS[sorted], out, workspace, stream)
    return _topk_on_host(scores, lengths, int(k), _ORDERS[sorted], out)


def topk_workspace_bytes(rows: int, stride: int) -> int:
    """Return the bytes of `workspace` that `topk` needs on this machine's GPU; mostly 0.

    They have to be aligned to 16 bytes, as the start of an allocation always is.
    """
    from numbadsd.kernels.cuda.topk import topk_workspace_size

    _check_cuda()
    return 4 * topk_workspace_size(rows, stride)


def _check_shapes(scores, lengths, out, k: int) -> None:
    """Raise ValueError for shapes and types that do not fit; both sides have these attributes."""
    if len(scores.shape) != 2:
        raise ValueError(f"scores: got shape {tuple(scores.shape)}, want [rows, stride]")
    rows = scores.shape[0]
    for name, array, shape in (("lengths", lengths, (rows,)), ("out", out, (rows, k))):
        if array is not None and (tuple(array.shape) != shape or array.dtype != np.int32):
            got = f"{array.dtype} {tuple(array.shape)}"
            raise ValueError(f"{name}: got {got}, want int32 {shape}")


def _row_stride(shape: tuple[int, int], strides: tuple[int, int]) -> int:
    """Return the elements between rows; raise ValueError for a row with gaps."""
    rows, width = shape
    if width > 1 and strides[1] != 1:
        raise ValueError(f"scores: got {strides[1]} elements between neighbours, want 1")
    return strides[0] if rows > 1 else width


def _topk_on_host(scores, lengths, k: int, order: str, out):
    scores, lengths = np.asarray(scores), np.asarray(lengths)
    _check_shapes(scores, lengths, out, k)
    if out is None:
        out = np.empty((scores.shape[0], k), np.int32)
    elif not (isinstance(out, np.ndarray) and out.flags.c_contiguous and out.flags.writeable):
        raise ValueError("out: got a strided or read-only array, want a C-contiguous one")
    if scores.size and scores.strides[0] < 0:  # rows upwards in memory
        out[...] = _topk_on_host(scores[::-1], lengths[::-1], k, order, None)[::-1]
        return out
    itemsize = scores.dtype.itemsize
    strides = tuple(stride // itemsize for stride in scores.strides)
    stride = _row_stride(scores.shape, strides)
    rows, width = scores.shape
    size = (rows - 1) * stride + width if scores.size else 0
    flat = np.lib.stride_tricks.as_strided(scores, (size,), (itemsize,))
    cpu.topk_rows(flat, stride, width, np.ascontiguousarray(lengths), 0, 0, order, out)
    return out


def _check_cuda() -> None:
    reason = why_unavailable()
    if reason is not None:
        raise CudaUnavailable(*reason)


def _topk_on_device(scores, lengths, k: int, order: str, out, workspace, stream):
    from numbadsd.kernels.cuda.topk import topk_rows, topk_workspace_size

    _check_cuda()
    driver = get_driver()
    if not hasattr(stream, "launch"):
        stream = driver.stream_of(0 if stream is None else stream_number(stream))
    scores = foreign_array("scores", scores, stream)
    lengths = foreign_array("lengths", lengths, stream)
    if out is None:
        _check_shapes(scores, lengths, None, k)
        out = driver.empty((scores.shape[0], k), np.int32)
    target = foreign_array("out", out, stream)
    _check_shapes(scores, lengths, target, k)
    for name, array in (("lengths", lengths), ("out", target)):
        if not array.is_contiguous:
            raise ValueError(f"{name}: got a strided array, want a C-contiguous one")
    rows, width = scores.shape
    stride = _row_stride(scores.shape, scores.strides)
    size = topk_workspace_size(rows, width)
    if workspace is not None:
        memory = nullcontext(_as_words(foreign_array("workspace", workspace, stream), size))
    else:
        memory = driver.scratch(size, np.int32, stream) if size else nullcontext()
    with memory as words:
        topk_rows(
            scores.as_device_array((rows - 1) * stride + width if rows else 0), stride, width,
            lengths.as_device_array(rows), 0, 0, order, target.as_device_array(rows, k),
            stream=stream, workspace=words,
        )  # fmt: skip
    return out


def _as_words(workspace: ForeignArray, size: int) -> DeviceArray:
    """Return a workspace of bytes as `size` int32 elements; raise ValueError where it cannot be."""
    num_bytes = prod(workspace.shape) * workspace.dtype.itemsize
    if num_bytes < 4 * size or not workspace.is_contiguous:
        got = f"{num_bytes} bytes" if workspace.is_contiguous else "a strided array"
        raise ValueError(f"workspace: got {got}, want at least {4 * size} contiguous bytes")
    return DeviceArray(workspace.address, (size,), np.int32, workspace.owner)
