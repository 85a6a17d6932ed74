"""What a launch is: a kernel with its compile-time constants, and memory of a device.

Nothing here knows whether a device or the simulator runs it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

WARP_SIZE = 32
STORED_DTYPES = ("float32", "float16", "bfloat16")  # of keys, values and summaries

# Little's law on an H200: 4.8 TB/s x 0.8 us / 132 = 29 KB in flight keep the memory busy for a
# multiprocessor; 12 warps whose lanes have 8 loads of 16 bytes on the way hold 49 KB.
LOADS_IN_FLIGHT = "registers hold 4 to 16 loads of 16 bytes a lane: fewer warps fill the memory"


class DeviceError(OSError):
    """The CUDA driver refused a call; the message is the driver's."""


# how a parameter is declared: its element type, "[]" for an array
PARAMETER_DTYPES = {
    "f32": np.dtype(np.float32),
    "i32": np.dtype(np.int32),
    "u32": np.dtype(np.uint32),  # words: any 4-byte-multiple storage is passed as these
    "i64": np.dtype(np.int64),
    "u16": np.dtype(np.uint16),  # of an array: any storage of 2 bytes
}


@dataclass(frozen=True)
class Kernel:
    """A kernel for one set of compile-time constants, compiled when it is first launched.

    Attributes
    ----------
    function : callable
        The body, over the words of `ops`.
    parameters : tuple of str
        One of "f32", "i32", "u32", "i64" for a number, the same or "u16" with "[]" for a
        flat array.
    num_threads : int
        Threads of a block.
    max_registers : int
        The declared budget of a thread; compiling within it must not spill.
    load_bytes : int
        Bytes that a thread has in flight at once in the main load.
    low_occupancy : str
        Why fewer than half of a multiprocessor's threads are enough, where that is so.
    """

    name: str
    function: Callable
    parameters: tuple[str, ...]
    num_threads: int
    max_registers: int
    load_bytes: int
    low_occupancy: str = ""

    def __post_init__(self):
        known = all(p.removesuffix("[]") in PARAMETER_DTYPES for p in self.parameters)
        assert known and self.num_threads % WARP_SIZE == 0, self.name

    def __hash__(self):
        return id(self)

    def __eq__(self, other):
        return self is other

    @cached_property
    def wanted(self) -> tuple[tuple[str, np.dtype, bool], ...]:
        """Each parameter with its element type, and whether it is an array."""
        return tuple(
            (p, PARAMETER_DTYPES[p.removesuffix("[]")], p.endswith("[]")) for p in self.parameters
        )

    def check_arguments(self, arguments: tuple) -> None:
        """Raise TypeError unless the arguments fit the parameters."""
        if len(arguments) != len(self.parameters):
            got = f"{len(arguments)} arguments"
            raise TypeError(f"{self.name}: got {got}, want {len(self.parameters)}")
        pairs = zip(arguments, self.wanted, strict=True)
        for index, (argument, (parameter, dtype, is_array)) in enumerate(pairs):
            fits = isinstance(argument, DeviceArray) == is_array
            if fits and is_array and argument.dtype != dtype:
                fits = _is_storage(parameter, argument)
            if not fits:
                got = getattr(argument, "dtype", type(argument).__name__)
                raise TypeError(f"{self.name}: argument {index} got {got}, want {parameter}")


def _is_storage(parameter: str, array: "DeviceArray") -> bool:
    """Tell whether an array can be passed as words, whatever is stored in it."""
    if parameter == "u32[]":
        return array.nbytes % 4 == 0
    return parameter == "u16[]" and array.dtype.itemsize == 2


class DeviceArray:
    """Memory of a device, C-contiguous. Views share the memory and keep it alive.

    Parameters
    ----------
    address : int
        Of the first element.
    shape : tuple of int
    dtype : numpy dtype
    owner : object
        What must live as long as the memory.
    """

    __slots__ = ("address", "shape", "dtype", "owner", "nbytes")

    def __init__(self, address: int, shape: tuple[int, ...], dtype, owner: object):
        self.address = address
        self.shape = tuple(map(int, shape))
        self.dtype = np.dtype(dtype)
        self.owner = owner
        self.nbytes = prod(self.shape) * self.dtype.itemsize

    @property
    def size(self) -> int:
        """Elements."""
        return prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"DeviceArray({self.shape}, {self.dtype})"

    def __getitem__(self, rows: slice) -> "DeviceArray":
        """Return rows [start:stop] as a view."""
        start, stop, step = rows.indices(self.shape[0])
        assert step == 1
        row_bytes = prod(self.shape[1:]) * self.dtype.itemsize
        shape = (max(0, stop - start), *self.shape[1:])
        return DeviceArray(self.address + start * row_bytes, shape, self.dtype, self.owner)

    def reshape(self, *shape: int) -> "DeviceArray":
        """Return the same elements with another shape."""
        assert prod(shape) == self.size, (shape, self.shape)
        return DeviceArray(self.address, shape, self.dtype, self.owner)

    def as_words(self) -> "DeviceArray":
        """Return the memory as flat uint32 words."""
        assert self.nbytes % 4 == 0
        return DeviceArray(self.address, (self.nbytes // 4,), np.uint32, self.owner)

    @property
    def __cuda_array_interface__(self) -> dict:
        """The memory as other libraries read it; half precision as 16-bit integers."""
        dtype = self.dtype if self.dtype.isbuiltin == 1 else np.dtype(f"u{self.dtype.itemsize}")
        return {
            "shape": self.shape, "typestr": dtype.str, "data": (self.address, False), "version": 3,
        }  # fmt: skip


def check_array(name: str, array: DeviceArray, shape: tuple, dtype=None) -> None:
    """Raise ValueError unless `array` is a DeviceArray with this shape (None: any) and dtype."""
    if not isinstance(array, DeviceArray):
        raise ValueError(f"{name}: got {type(array).__name__}, want a DeviceArray")
    fits = len(shape) == len(array.shape) and all(
        want is None or want == got for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits:
        wanted = str(tuple("any" if n is None else n for n in shape)).replace("'", "")
        raise ValueError(f"{name}: got shape {array.shape}, want {wanted}")
    if dtype is not None and array.dtype != np.dtype(dtype):
        raise ValueError(f"{name}: got dtype {array.dtype}, want {np.dtype(dtype)}")


def check_stored(name: str, array: DeviceArray, shape: tuple) -> None:
    """Raise ValueError unless `array` has this shape and a dtype that pools are stored in."""
    check_array(name, array, shape)
    if str(array.dtype) not in STORED_DTYPES:
        raise ValueError(f"{name}: got dtype {array.dtype}, want float32, float16 or bfloat16")
