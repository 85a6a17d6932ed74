"""Vectors in registers: the arithmetic instructions that Numba does not offer.

`Vec(lanes)` is a Numba type for a float32 vector; ``+``, ``*`` and ``max`` work on it. A
4x16 vector holds 16 columns of four rows, row after row. Sums have a written order (halving trees),
so that a dot product has the same bits however its caller blocks rows and heads.
"""

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

LANES = 16
ROWS = 4
F32, I32 = ir.FloatType(), ir.IntType(32)


class Vec(types.Type):
    """A float32 vector of `lanes` elements."""

    def __init__(self, lanes):
        self.lanes = lanes
        super().__init__(name=f"float32x{lanes}")


@register_model(Vec)
class _VecModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, vector_type(fe_type.lanes))


def vector_type(lanes, element=F32):
    """Return the LLVM vector type."""
    return ir.VectorType(element, lanes)


def lane_numbers(numbers):
    """Return a constant vector of int32, as shuffles and shifts take it."""
    return ir.Constant(vector_type(len(numbers), I32), list(numbers))


def _pick(builder, vector, numbers):
    return builder.shuffle_vector(vector, vector, lane_numbers(numbers))


def _make_splat(lanes):
    @intrinsic
    def splat(typingctx, number):
        def codegen(context, builder, signature, args):
            empty = ir.Constant(vector_type(lanes), ir.Undefined)
            first = builder.insert_element(empty, args[0], I32(0))
            return _pick(builder, first, [0] * lanes)

        return Vec(lanes)(types.float32), codegen

    return splat


splat4, splat16, splat64 = _make_splat(4), _make_splat(16), _make_splat(64)


@intrinsic
def repeat_4x(typingctx, vector):
    """Repeat a vector of 16 four times: one row against four."""

    def codegen(context, builder, signature, args):
        return _pick(builder, args[0], list(range(LANES)) * ROWS)

    return Vec(ROWS * LANES)(vector), codegen


@intrinsic
def fma(typingctx, a, b, c):
    """Return a * b + c, rounded once, of vectors or of float32 numbers."""

    def codegen(context, builder, signature, args):
        operand = args[0].type
        name = f"llvm.fma.v{a.lanes}f32" if isinstance(a, Vec) else "llvm.fma.f32"
        function_type = ir.FunctionType(operand, [operand] * 3)
        return builder.call(
            cgutils.get_or_insert_function(builder.module, function_type, name), args
        )

    return a(a, b, c), codegen


@intrinsic
def two_to(typingctx, shifted):
    """Return 2^n, where n stands in the low bits of `shifted` (see `shared.two_to`)."""

    def codegen(context, builder, signature, args):
        integers = vector_type(shifted.lanes, I32)
        bits = builder.bitcast(args[0], integers)
        bits = builder.shl(bits, lane_numbers([23] * shifted.lanes))
        bits = builder.add(bits, lane_numbers([0x3F800000] * shifted.lanes))
        return builder.bitcast(bits, vector_type(shifted.lanes))

    return shifted(shifted), codegen


@intrinsic
def at_least(typingctx, x, low):
    """Return the larger of each lane; NaN stays NaN."""

    def codegen(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered("<", *args), args[1], args[0])

    return x(x, low), codegen


@intrinsic
def zero_below(typingctx, x, low, result):
    """Return 0 in the lanes where x is below low, else the result."""

    def codegen(context, builder, signature, args):
        zero = ir.Constant(args[2].type, [0.0] * x.lanes)
        return builder.select(builder.fcmp_ordered("<", args[0], args[1]), zero, args[2])

    return x(x, low, result), codegen


def _larger(builder, a, b):
    """a where a > b, else b: a NaN in `a` never replaces `b`."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@intrinsic
def _vec_max(typingctx, a, b):
    return a(a, b), lambda context, builder, signature, args: _larger(builder, *args)


@intrinsic
def _vec_add(typingctx, a, b):
    return a(a, b), lambda context, builder, signature, args: builder.fadd(*args)


@intrinsic
def _vec_mul(typingctx, a, b):
    return a(a, b), lambda context, builder, signature, args: builder.fmul(*args)


def _is_pair(a, b):
    return isinstance(a, Vec) and a == b


@overload(operator.add)
def _add(a, b):
    if _is_pair(a, b):
        return lambda a, b: _vec_add(a, b)


@overload(operator.mul)
def _mul(a, b):
    if _is_pair(a, b):
        return lambda a, b: _vec_mul(a, b)


@overload(max)
def _max(a, b):
    if _is_pair(a, b):
        return lambda a, b: _vec_max(a, b)


def _fold(builder, vector, rows, combine):
    """Reduce each row of 16 lanes to one by halving: lane i with lane i + 8, then + 4, 2, 1."""
    width = LANES
    while width > 1:
        half = width // 2
        low = [row * width + lane for row in range(rows) for lane in range(half)]
        vector = combine(
            _pick(builder, vector, low), _pick(builder, vector, [lane + half for lane in low])
        )
        width = half
    return vector


@intrinsic
def sum_rows(typingctx, vector):
    """Return the four row sums of a 4x16 vector, as a vector of 4."""

    def codegen(context, builder, signature, args):
        return _fold(builder, args[0], ROWS, builder.fadd)

    return Vec(ROWS)(vector), codegen


@intrinsic
def sum_lanes(typingctx, vector):
    """Return the sum of 16 lanes; the same order, so the same bits, as a row of `sum_rows`."""

    def codegen(context, builder, signature, args):
        return builder.extract_element(_fold(builder, args[0], 1, builder.fadd), I32(0))

    return types.float32(vector), codegen


@intrinsic
def max_lanes(typingctx, vector):
    """Return the largest of 16 lanes."""

    def codegen(context, builder, signature, args):
        folded = _fold(builder, args[0], 1, lambda a, b: _larger(builder, a, b))
        return builder.extract_element(folded, I32(0))

    return types.float32(vector), codegen
