"""Loads, stores and prefetches of storage words, as single instructions.

Everything is addressed as ``array[row, column]`` of a C-contiguous two-dimensional array of words
(see `kernels.words`). Half-precision words are widened in registers as they are loaded (float16:
one conversion instruction; bfloat16: a zero-extension and a shift) and rounded as they are stored.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from numbadsd.kernels.cpu.simd import F32, I32, LANES, ROWS, Vec, lane_numbers, vector_type

CACHE_LINE_BYTES = 64
_I16 = ir.IntType(16)


def _address(context, builder, signature, args):
    """Return the address of array[row, column] (args 0, 1, 2) and the row length."""
    array = context.make_array(signature.args[0])(context, builder, args[0])
    row, column = (context.cast(builder, args[i], signature.args[i], types.int64) for i in (1, 2))
    columns = builder.extract_value(array.shape, 1)
    offset = builder.add(builder.mul(row, columns), column)
    return builder.gep(array.data, [offset]), columns


def _load(builder, word, address, lanes):
    """Load `lanes` words and widen them to float32."""
    if word == types.float32:
        return builder.load(builder.bitcast(address, vector_type(lanes).as_pointer()), align=4)
    pointer = builder.bitcast(address, vector_type(lanes, _I16).as_pointer())
    return _widen(builder, word, builder.load(pointer, align=2), lanes)


def _widen(builder, word, bits, lanes):
    if word == types.uint16:
        halves = builder.bitcast(bits, vector_type(lanes, ir.HalfType()))
        return builder.fpext(halves, vector_type(lanes))
    wide = builder.zext(bits, vector_type(lanes, I32))
    wide = builder.shl(wide, lane_numbers([16] * lanes))
    return builder.bitcast(wide, vector_type(lanes))


def _make_load(lanes):
    @intrinsic
    def load(typingctx, array, row, column):
        def codegen(context, builder, signature, args):
            address, _ = _address(context, builder, signature, args)
            return _load(builder, signature.args[0].dtype, address, lanes)

        return Vec(lanes)(array, row, column), codegen

    return load


def _make_store(lanes):
    @intrinsic
    def store(typingctx, array, row, column, vector):
        def codegen(context, builder, signature, args):
            address, _ = _address(context, builder, signature, args)
            pointer = builder.bitcast(address, vector_type(lanes).as_pointer())
            builder.store(args[3], pointer, align=4)
            return context.get_dummy_value()

        return types.void(array, row, column, vector), codegen

    return store


load16, load64 = _make_load(16), _make_load(64)
store4, store16, store64 = _make_store(4), _make_store(16), _make_store(64)


def _stack_rows(builder, rows):
    """Return four vectors of 16 as one 4x16 vector."""
    pairs = [
        builder.shuffle_vector(rows[i], rows[i + 1], lane_numbers(range(2 * LANES))) for i in (0, 2)
    ]
    return builder.shuffle_vector(*pairs, lane_numbers(range(ROWS * LANES)))


@intrinsic
def load_4x16(typingctx, array, row, column):
    """Load 16 columns of four consecutive rows."""

    def codegen(context, builder, signature, args):
        address, columns = _address(context, builder, signature, args)
        rows = []
        for _ in range(ROWS):
            rows.append(_load(builder, signature.args[0].dtype, address, LANES))
            address = builder.gep(address, [columns])
        return _stack_rows(builder, rows)

    return Vec(ROWS * LANES)(array, row, column), codegen


@intrinsic
def load_rows_4x16(typingctx, array, row_0, row_1, row_2, row_3, column):
    """Load 16 columns of four rows anywhere."""

    def codegen(context, builder, signature, args):
        array_type, column_type = signature.args[0], signature.args[5]
        rows = []
        for i in range(1, 1 + ROWS):
            one = types.void(array_type, signature.args[i], column_type)
            address, _ = _address(context, builder, one, (args[0], args[i], args[5]))
            rows.append(_load(builder, array_type.dtype, address, LANES))
        return _stack_rows(builder, rows)

    return Vec(ROWS * LANES)(array, row_0, row_1, row_2, row_3, column), codegen


@intrinsic
def prefetch(typingctx, array, row, column):
    """Ask for the cache line of array[row, column]; any address is allowed."""

    def codegen(context, builder, signature, args):
        address, _ = _address(context, builder, signature, args)
        byte_pointer = ir.IntType(8).as_pointer()
        function_type = ir.FunctionType(ir.VoidType(), [byte_pointer, I32, I32, I32])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        # read, into the second-level cache and up, data
        builder.call(function, [builder.bitcast(address, byte_pointer), I32(0), I32(2), I32(1)])
        return context.get_dummy_value()

    return types.void(array, row, column), codegen


@intrinsic
def load_word(typingctx, array, row, column):
    """Load one word as float32; a loop over columns becomes vector instructions."""

    def codegen(context, builder, signature, args):
        address, _ = _address(context, builder, signature, args)
        word, bits = signature.args[0].dtype, builder.load(address)
        if word == types.float32:
            return bits
        if word == types.uint16:
            return builder.fpext(builder.bitcast(bits, ir.HalfType()), F32)
        return builder.bitcast(builder.shl(builder.zext(bits, I32), I32(16)), F32)

    return types.float32(array, row, column), codegen


@intrinsic
def store_word(typingctx, array, row, column, number):
    """Round a float32 to the array's storage type (to nearest even) and store it."""

    def codegen(context, builder, signature, args):
        address, _ = _address(context, builder, signature, args)
        word, value = signature.args[0].dtype, args[3]
        if word == types.uint16:
            value = builder.bitcast(builder.fptrunc(value, ir.HalfType()), _I16)
        elif word == types.int16:
            bits = builder.bitcast(value, I32)
            odd = builder.and_(builder.lshr(bits, I32(16)), I32(1))
            rounded = builder.add(bits, builder.add(odd, I32(0x7FFF)))
            quiet_nan = builder.or_(bits, I32(0x00400000))  # rounding could turn NaN into inf
            is_nan = builder.fcmp_unordered("uno", value, value)
            bits = builder.select(is_nan, quiet_nan, rounded)
            value = builder.trunc(builder.lshr(bits, I32(16)), _I16)
        builder.store(value, address)
        return context.get_dummy_value()

    return types.void(array, row, column, types.float32), codegen
