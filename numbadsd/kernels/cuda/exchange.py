"""Device arrays of other libraries, without importing any of them.

`__cuda_array_interface__` (Numba, CuPy, torch) or, for the types that it has no word for, DLPack.
The interface has none for bfloat16: by its version, torch raises, says float16, or says two bytes
of anything (<V2). So the array's own dtype is asked first.
"""

import ctypes
from dataclasses import dataclass
from math import prod

import ml_dtypes
import numpy as np

from numbadsd.kernels.cuda.launch import DeviceArray

CUDA_DEVICES = (2, 13)  # kDLCUDA, kDLCUDAManaged
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_DLPACK_DTYPES = {
    (0, 32): np.dtype(np.int32),
    (0, 64): np.dtype(np.int64),
    (1, 8): np.dtype(np.uint8),
    (2, 16): np.dtype(np.float16),
    (2, 32): np.dtype(np.float32),
    (2, 64): np.dtype(np.float64),
    (4, 16): _BFLOAT16,
}


class _DLTensor(ctypes.Structure):
    """DLPack 1.0, dlpack.h: what a capsule named "dltensor" points to begins with this."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("type_code", ctypes.c_uint8),
        ("type_bits", ctypes.c_uint8),
        ("type_lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


@dataclass(frozen=True)
class ForeignArray:
    """Memory of a device as its library describes it; strides in elements."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype
    owner: object

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie one behind the other, the last axis first."""
        pairs = zip(self.strides, contiguous_strides(self.shape), self.shape, strict=True)
        return 0 in self.shape or all(got == want or size == 1 for got, want, size in pairs)

    def as_device_array(self, *shape: int) -> DeviceArray:
        """Return the memory from the first element on, as an array of this shape."""
        return DeviceArray(self.address, shape, self.dtype, self.owner)


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides, in elements, of a C-contiguous array."""
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


def is_device_array(array) -> bool:
    """Tell whether an object describes memory of a CUDA device."""
    if isinstance(array, (np.ndarray, np.generic)):
        return False
    if _cuda_interface(array) is not None:
        return True
    device = getattr(array, "__dlpack_device__", None)
    return device is not None and int(device()[0]) in CUDA_DEVICES


def _cuda_interface(array) -> dict | None:
    """Return the interface; None where there is none, or none for the array's type (torch)."""
    try:
        return getattr(array, "__cuda_array_interface__", None)
    except (KeyError, TypeError, RuntimeError):
        return None


def _is_bfloat16(array) -> bool:
    """Tell whether an array calls its own dtype bfloat16, or torch.bfloat16."""
    return str(getattr(array, "dtype", "")).rpartition(".")[2] == "bfloat16"


def stream_number(stream) -> int:
    """Return the number of a stream, as libraries have it: CUDA's protocol, torch, CuPy, a number.

    Raises ValueError for anything else.
    """
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    for name in ("cuda_stream", "ptr"):
        stream = getattr(stream, name, stream)
    if isinstance(stream, bool) or not isinstance(stream, (int, np.integer)) or stream < 0:
        raise ValueError(f"stream: got {stream!r}, want a stream or its number")
    return int(stream)


def foreign_array(name: str, array, stream) -> ForeignArray:
    """Return what a device array is; work that its library still has for it goes before `stream`'s.

    Raises ValueError for a type that no kernel knows.
    """
    if isinstance(array, DeviceArray):  # it knows more than its interface can say
        strides = contiguous_strides(array.shape)
        return ForeignArray(array.address, array.shape, strides, array.dtype, array)
    described, is_bfloat16 = _cuda_interface(array), _is_bfloat16(array)
    if described is None or (is_bfloat16 and hasattr(array, "__dlpack__")):
        return _from_capsule(name, array.__dlpack__(stream=int(stream.handle)), array)
    if described.get("stream") is not None:
        stream.wait_for(described["stream"])
    shape, dtype = tuple(described["shape"]), np.dtype(described["typestr"])
    if is_bfloat16 and dtype.itemsize == _BFLOAT16.itemsize:
        dtype = _BFLOAT16
    strides = described.get("strides")
    if strides is None:
        strides = contiguous_strides(shape)
    else:
        strides = tuple(stride // dtype.itemsize for stride in strides)
    return ForeignArray(described["data"][0] or 0, shape, strides, dtype, array)


def tensor_in(capsule) -> _DLTensor:
    """Return what a DLPack capsule says; it is gone with the capsule."""
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype = ctypes.c_void_p
    get_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
    return _DLTensor.from_address(get_pointer(capsule, b"dltensor"))


def _from_capsule(name: str, capsule, owner) -> ForeignArray:
    """Return what a DLPack capsule holds; it stays ours to keep, and frees what it holds itself."""
    tensor = tensor_in(capsule)
    kind = (tensor.type_code, tensor.type_bits)
    if kind not in _DLPACK_DTYPES or tensor.type_lanes != 1:
        raise ValueError(f"{name}: got DLPack type {kind}, want float32, float16 or bfloat16")
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    if tensor.strides:
        strides = tuple(tensor.strides[i] for i in range(tensor.ndim))
    else:
        strides = contiguous_strides(shape)
    address = (tensor.data or 0) + tensor.byte_offset
    return ForeignArray(address, shape, strides, _DLPACK_DTYPES[kind], (capsule, owner))
