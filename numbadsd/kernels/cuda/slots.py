"""Where a launch finds its arguments: slots of 8 bytes and pointers to them, made once a kernel.

numba-cuda passes a flat array as (meminfo, parent, size, itemsize, address, shape, stride).
"""

import ctypes
import struct

from numbadsd.kernels.cuda.launch import Kernel

_ARRAY = "7q"
_NUMBERS = {"f32": "f4x", "i32": "i4x", "u32": "I4x", "i64": "q"}


class ArgumentSlots:
    """The arguments of a kernel's next launch; the driver copies them when it is launched.

    Attributes
    ----------
    values : array of uint64
        The slots.
    address : int
        Of the pointers to them.
    """

    def __init__(self, kernel: Kernel):
        wanted = kernel.wanted
        self._itemsizes = [dtype.itemsize * is_array for _, dtype, is_array in wanted]
        formats = [_ARRAY if is_array else _NUMBERS[name] for name, _, is_array in wanted]
        self._layout = struct.Struct("<" + "".join(formats))
        count = self._layout.size // 8
        self.values = (ctypes.c_uint64 * count)()
        base = ctypes.addressof(self.values)
        self._pointers = (ctypes.c_void_p * count)(*(base + 8 * i for i in range(count)))
        self.address = ctypes.addressof(self._pointers)

    def fill(self, arguments: tuple) -> None:
        """Write the arguments of a launch, which fit the kernel's parameters."""
        numbers = []
        for itemsize, argument in zip(self._itemsizes, arguments, strict=True):
            if itemsize:
                size = argument.nbytes // itemsize
                numbers += (0, 0, size, itemsize, argument.address, size, itemsize)
            else:
                numbers.append(argument)
        self._layout.pack_into(self.values, 0, *numbers)
