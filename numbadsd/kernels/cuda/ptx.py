"""The words that CUDA kernels are written in, on a device: LLVM instructions and inline PTX.

`sim_words.py` has the twins. An operation takes an array and an index, never an address, so that a
twin exists; indices do not wrap around. A product that must not be contracted with the sum after it
(one that equals another backend's bit for bit) is written with `mul_rn`.
"""

from llvmlite import ir

from numbadsd.kernels.cuda.toolchain import cgutils, cuda, intrinsic, types

__all__ = [
    "ballot", "bf16_high", "bf16_low", "bits_to_f32", "cuda", "device", "div_rn", "ex2",
    "f16_high", "f16_low", "f32_to_bits", "float32", "fma", "fmax", "int32", "int64", "lg2",
    "load1", "load4", "mma_bf16", "mma_f16", "mul_rn", "pack_bf16", "pack_f16", "pack_high",
    "pack_low", "popc", "quotient", "shfl_from", "shfl_up", "shfl_xor", "sqrt_rn", "store1",
    "stream4", "to_bf16", "to_f16", "uint32",
]  # fmt: skip

float32, int32, int64, uint32 = types.float32, types.int32, types.int64, types.uint32
_I16, _I32, _F32 = ir.IntType(16), ir.IntType(32), ir.FloatType()
_LLVM = {"r": _I32, "f": _F32}
_NUMBA = {"r": types.uint32, "f": types.float32}
_ALL_LANES = 0xFFFFFFFF


def device(function):
    """Compile `function` as code that kernels call; it is always inlined."""
    return cuda.jit(function, device=True)


def _asm(template: str, result: str, arguments: str, *, effect: bool = False):
    """Return an intrinsic of one line of PTX; r is uint32, f is float32.

    `effect` keeps an operation in its place: one that the other lanes of the warp take part in,
    which must not be copied into the branches before it.
    """
    signature = _NUMBA[result](*(_NUMBA[letter] for letter in arguments))
    function_type = ir.FunctionType(_LLVM[result], [_LLVM[letter] for letter in arguments])
    constraints = ",".join(["=" + result, *arguments])

    def codegen(context, builder, sig, args):
        code = ir.InlineAsm(function_type, template, constraints, side_effect=effect)
        return builder.call(code, args, attrs=("convergent",) if effect else ())

    def type_one(typingctx, a):
        return signature, codegen

    def type_two(typingctx, a, b):
        return signature, codegen

    return intrinsic({1: type_one, 2: type_two}[len(arguments)])


def _unary(build, argument, result):
    """Return an intrinsic of one LLVM instruction on one number."""

    def typer(typingctx, x):
        def codegen(context, builder, sig, args):
            return build(builder, args[0])

        return result(argument), codegen

    return intrinsic(typer)


@intrinsic
def fma(typingctx, a, b, c):
    """Return a * b + c, rounded once."""

    def codegen(context, builder, sig, args):
        return builder.fma(*args)

    return types.float32(types.float32, types.float32, types.float32), codegen


mul_rn = _asm("mul.rn.f32 $0, $1, $2;", "f", "ff")
fmax = _asm("max.f32 $0, $1, $2;", "f", "ff")  # the other one where one is NaN
div_rn = _asm("div.rn.f32 $0, $1, $2;", "f", "ff")
sqrt_rn = _asm("sqrt.rn.f32 $0, $1;", "f", "f")
ex2 = _asm("ex2.approx.ftz.f32 $0, $1;", "f", "f")
lg2 = _asm("lg2.approx.f32 $0, $1;", "f", "f")

f32_to_bits = _unary(lambda b, x: b.bitcast(x, _I32), types.float32, types.uint32)
bits_to_f32 = _unary(lambda b, x: b.bitcast(x, _F32), types.uint32, types.float32)

# a half-precision pair in 32 bits: the element of the lower index is in the low half
_unpack = "{{.reg .b16 l, h; mov.b32 {{l, h}}, $1; cvt.f32.f16 $0, {0};}}"
f16_low = _asm(_unpack.format("l"), "f", "r")
f16_high = _asm(_unpack.format("h"), "f", "r")
to_f16 = _asm("{.reg .b16 h; cvt.rn.f16.f32 h, $1; cvt.u32.u16 $0, h;}", "r", "f")
to_bf16 = _asm("{.reg .b16 h; cvt.rn.bf16.f32 h, $1; cvt.u32.u16 $0, h;}", "r", "f")


# two float32 to such a pair, the first one low
pack_f16 = _asm("cvt.rn.f16x2.f32 $0, $2, $1;", "r", "ff")
pack_bf16 = _asm("cvt.rn.bf16x2.f32 $0, $2, $1;", "r", "ff")
# the low, or the high, halves of two words, the first word's low
pack_low = _asm("prmt.b32 $0, $1, $2, 0x5410;", "r", "rr")
pack_high = _asm("prmt.b32 $0, $1, $2, 0x7632;", "r", "rr")


@device
def bf16_low(word):
    """Return the bfloat16 in the low half as float32."""
    return bits_to_f32(uint32(word << uint32(16)))


@device
def bf16_high(word):
    """Return the bfloat16 in the high half as float32."""
    return bits_to_f32(uint32(word & uint32(0xFFFF0000)))


shfl_xor = _asm(f"shfl.sync.bfly.b32 $0, $1, $2, 31, {_ALL_LANES};", "f", "fr", effect=True)
shfl_from = _asm(f"shfl.sync.idx.b32 $0, $1, $2, 31, {_ALL_LANES};", "f", "fr", effect=True)
shfl_up = _asm(f"shfl.sync.up.b32 $0, $1, $2, 0, {_ALL_LANES};", "r", "rr", effect=True)
ballot = _asm(
    f"{{.reg .pred p; setp.ne.u32 p, $1, 0; vote.sync.ballot.b32 $0, p, {_ALL_LANES};}}",
    "r", "r", effect=True,
)  # fmt: skip
popc = _asm("popc.b32 $0, $1;", "r", "r")


@device
def quotient(a, b):
    """Return a // b of numbers that are not negative, by a 32-bit division."""
    return int32(uint32(a) // uint32(b))


def _pointer(context, builder, sig, args, first: int):
    """Return the address of element args[first + 1] of the array args[first]."""
    array = context.make_array(sig.args[first])(context, builder, args[first])
    index = context.cast(builder, args[first + 1], sig.args[first + 1], types.int64)
    return builder.gep(array.data, [index])


def _mma(kind: str):
    """Return ``mma(a0, a1, a2, a3, b0, b1, c0, c1, c2, c3)``: a warp's c + a b, 16 x 8, of halves.

    Lane 4 g + t holds, of a 16 x 16, rows g, g + 8 and g, g + 8 again, at columns 2 t and 2 t + 1,
    then at 2 t + 8 and 2 t + 9; of b 16 x 8, the same of its rows in column g; of c, and of the
    result, row g, then row g + 8, at columns 2 t and 2 t + 1.
    """
    template = (
        f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 "
        "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
    )
    constraints = ",".join(["=f"] * 4 + ["r"] * 6 + ["f"] * 4)
    word, number = types.uint32, types.float32
    signature = types.UniTuple(number, 4)(*[word] * 6, *[number] * 4)
    function_type = ir.FunctionType(ir.LiteralStructType([_F32] * 4), [_I32] * 6 + [_F32] * 4)

    def codegen(context, builder, sig, args):
        code = ir.InlineAsm(function_type, template, constraints, side_effect=False)
        product = builder.call(code, args, attrs=("convergent",))
        return cgutils.pack_array(builder, [builder.extract_value(product, i) for i in range(4)])

    def mma(typingctx, a0, a1, a2, a3, b0, b1, c0, c1, c2, c3):
        return signature, codegen

    return intrinsic(mma)


mma_f16, mma_bf16 = _mma("f16"), _mma("bf16")


def _unpack4(builder, vector):
    lanes = [builder.extract_element(vector, ir.Constant(_I32, lane)) for lane in range(4)]
    return cgutils.pack_array(builder, lanes)


@intrinsic
def load1(typingctx, array, index):
    """Load one element; what `array[index]` does, without a look whether index is negative."""

    def codegen(context, builder, sig, args):
        return builder.load(_pointer(context, builder, sig, args, 0))

    return array.dtype(array, index), codegen


@intrinsic
def store1(typingctx, array, index, number):
    """Store one element, as `load1` loads it."""
    element = array.dtype

    def codegen(context, builder, sig, args):
        builder.store(args[2], _pointer(context, builder, sig, args, 0))
        return context.get_dummy_value()

    return types.void(array, index, element), codegen


@intrinsic
def load4(typingctx, words, index):
    """Load four 32-bit words, index a multiple of 4."""
    element = words.dtype

    def codegen(context, builder, sig, args):
        pointer = _pointer(context, builder, sig, args, 0)
        vector = ir.VectorType(context.get_data_type(element), 4)
        target = vector.as_pointer(pointer.type.addrspace)
        return _unpack4(builder, builder.load(builder.bitcast(pointer, target), align=16))

    return types.UniTuple(element, 4)(words, index), codegen


@intrinsic
def stream4(typingctx, words, index):
    """Load four words that are read once and by one warp: past the L1 cache."""
    # nc: nobody writes this memory while the kernel runs
    template = "ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {$0, $1, $2, $3}, [$4];"

    def codegen(context, builder, sig, args):
        pointer = _pointer(context, builder, sig, args, 0)
        address = builder.ptrtoint(pointer, ir.IntType(64))
        function_type = ir.FunctionType(ir.LiteralStructType([_I32] * 4), [ir.IntType(64)])
        code = ir.InlineAsm(function_type, template, "=r,=r,=r,=r,l", side_effect=False)
        loaded = builder.call(code, [address])
        return cgutils.pack_array(builder, [builder.extract_value(loaded, i) for i in range(4)])

    return types.UniTuple(types.uint32, 4)(words, index), codegen
