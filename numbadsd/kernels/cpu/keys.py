"""Ordered keys in registers: vectors of uint32 that order as float32 scores do.

A key vector is made of a float32 vector (see `simd.Vec`) by the rule of `shared.ordered_key`.
Comparing one gives a bit per lane, in one integer, or one more in the counters of the lanes.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

from numbadsd.kernels.cpu.simd import I32, Vec, vector_type

KEY_LANES = 64  # keys of a block: as many as an integer has bits
_I64 = ir.IntType(64)


class KeyVec(types.Type):
    """A uint32 vector of `lanes` elements."""

    def __init__(self, lanes):
        self.lanes = lanes
        super().__init__(name=f"uint32x{lanes}")


@register_model(KeyVec)
class _KeyVecModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, vector_type(fe_type.lanes, I32))


_BLOCK = KeyVec(KEY_LANES)


def _all(vector, number):
    """Return a constant with one number in every lane."""
    return ir.Constant(vector, [number] * vector.count)


def _address(context, builder, signature, args, lanes):
    """Return where array[index] starts (args 0 and 1), as the address of a key vector."""
    array = context.make_array(signature.args[0])(context, builder, args[0])
    index = context.cast(builder, args[1], signature.args[1], types.int64)
    address = builder.gep(array.data, [index])
    return builder.bitcast(address, vector_type(lanes, I32).as_pointer())


@intrinsic
def ordered_keys(typingctx, scores):
    """Return the keys of a float32 vector: NaN as -inf, -0.0 as 0.0."""

    def codegen(context, builder, signature, args):
        floats, integers = vector_type(scores.lanes), vector_type(scores.lanes, I32)
        numbers = _nan_to_lowest(builder, builder.fadd(args[0], _all(floats, 0.0)))
        bits = builder.bitcast(numbers, integers)
        flips = builder.ashr(bits, _all(integers, 31))
        return builder.xor(bits, builder.or_(flips, _all(integers, 0x80000000)))

    return KeyVec(scores.lanes)(scores), codegen


def _nan_to_lowest(builder, numbers):
    lowest = _all(numbers.type, float("-inf"))
    return builder.select(builder.fcmp_ordered(">", numbers, lowest), numbers, lowest)


@intrinsic
def splat_keys(typingctx, key):
    """Return a block with one key in every lane."""

    def codegen(context, builder, signature, args):
        vector = vector_type(KEY_LANES, I32)
        first = builder.insert_element(ir.Constant(vector, ir.Undefined), args[0], I32(0))
        return builder.shuffle_vector(first, first, _all(vector, 0))

    return _BLOCK(types.uint32), codegen


@intrinsic
def load_keys(typingctx, array, index):
    """Load a block of keys from array[index] on."""

    def codegen(context, builder, signature, args):
        return builder.load(_address(context, builder, signature, args, KEY_LANES), align=4)

    return _BLOCK(array, index), codegen


@intrinsic
def store_keys(typingctx, array, index, keys):
    """Store a key vector to array[index] and on."""

    def codegen(context, builder, signature, args):
        address = _address(context, builder, signature, args, keys.lanes)
        builder.store(args[2], address, align=4)
        return context.get_dummy_value()

    return types.void(array, index, keys), codegen


@intrinsic
def count_at_least(typingctx, totals, keys, low):
    """Return `totals` with 1 added in each lane whose key is at least `low`."""

    def codegen(context, builder, signature, args):
        reached = builder.icmp_unsigned(">=", args[1], args[2])
        return builder.sub(args[0], builder.sext(reached, args[0].type))

    return _BLOCK(_BLOCK, _BLOCK, _BLOCK), codegen


@intrinsic
def sum_counts(typingctx, totals):
    """Return the sum of all lanes."""

    def codegen(context, builder, signature, args):
        vector, lanes = args[0], KEY_LANES
        while lanes > 1:
            lanes //= 2
            low, high = (
                builder.shuffle_vector(vector, vector, ir.Constant(vector_type(lanes, I32), half))
                for half in (list(range(lanes)), list(range(lanes, 2 * lanes)))
            )
            vector = builder.add(low, high)
        return builder.sext(builder.extract_element(vector, I32(0)), _I64)

    return types.int64(_BLOCK), codegen


@intrinsic
def keys_at_least(typingctx, keys, low):
    """Return a uint64 whose bit i tells whether key i is at least `low`."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(builder.icmp_unsigned(">=", *args), _I64)

    return types.uint64(_BLOCK, _BLOCK), codegen


@intrinsic
def scores_at_least(typingctx, scores, low):
    """Return a uint64 whose bit i tells whether score i of 64 is at least `low`; NaN as -inf."""

    def codegen(context, builder, signature, args):
        numbers = _nan_to_lowest(builder, args[0])
        return builder.bitcast(builder.fcmp_ordered(">=", numbers, args[1]), _I64)

    return types.uint64(Vec(KEY_LANES), Vec(KEY_LANES)), codegen


@intrinsic
def lowest_bit(typingctx, bits):
    """Return the number of the lowest bit that is set; `bits` is not 0."""

    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), codegen
