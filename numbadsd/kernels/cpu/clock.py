"""A clock that compiled code can read, so that the stages inside one call can be timed apart."""

import sys

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_CLOCK_MONOTONIC = 6 if sys.platform == "darwin" else 1
_I32, _I64 = ir.IntType(32), ir.IntType(64)


@intrinsic
def monotonic_ns(typingctx):
    """Return nanoseconds of the system's monotonic clock (POSIX clock_gettime)."""

    def codegen(context, builder, signature, args):
        timespec = cgutils.alloca_once(builder, ir.ArrayType(_I64, 2))  # seconds, nanoseconds
        function_type = ir.FunctionType(_I32, [_I32, timespec.type])
        function = cgutils.get_or_insert_function(builder.module, function_type, "clock_gettime")
        builder.call(function, [_I32(_CLOCK_MONOTONIC), timespec])
        seconds, nanoseconds = (
            builder.extract_value(builder.load(timespec), field) for field in (0, 1)
        )
        return builder.add(builder.mul(seconds, _I64(1_000_000_000)), nanoseconds)

    return types.int64(), codegen
