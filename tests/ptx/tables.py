"""What instructions of PTX do, as expressions of Python, and the names that PTX uses."""

BITS = {f"{kind}{bits}": bits for kind in "usb" for bits in (16, 32, 64)} | {"f32": 32}
REGISTER_BITS = {"rd": 64, "r": 32, "rs": 16}
SPECIAL = {"%tid.x": "tid", "%ctaid.x": "ctaid"}
SPACES = {"global": "memory", "shared": "shared"}
HINTS = {"nc", "L1::no_allocate", "L2::128B", "v2", "v4"}
EVERY_LANE = {"-1", "4294967295"}

# a, b, c: operands as bits; x, y: as numbers of the instruction's type, with a sign if it has one.
INTEGER = {
    "add": "{a} + {b}", "sub": "{a} - {b}", "neg": "-{a}", "not": "~{a}", "abs": "abs({x})",
    "and": "{a} & {b}", "or": "{a} | {b}", "xor": "{a} ^ {b}", "popc": "({a}).bit_count()",
    "mul.lo": "{a} * {b}", "mad.lo": "{a} * {b} + {c}", "mul.hi": "({x} * {y}) >> {bits}",
    "mul.wide": "{x} * {y}", "mad.wide": "{x} * {y} + {c}",
    "div": "divide({x}, {y})", "rem": "{x} - {y} * divide({x}, {y})",
    "max": "max({x}, {y})", "min": "min({x}, {y})",
    "shl": "{a} << min({b}, {bits})", "shr": "{x} >> min({b}, {bits})",
}  # fmt: skip
FLOAT = {
    "add": "{a} + {b}", "sub": "{a} - {b}", "mul": "{a} * {b}", "mul.rn": "{a} * {b}",
    "neg": "-{a}", "abs": "abs({a})", "max": "fmax({a}, {b})", "min": "fmin({a}, {b})",
    "fma.rn": "fma({a}, {b}, {c})", "div.rn": "div_rn({a}, {b})", "sqrt.rn": "sqrt_rn({a})",
    "ex2.approx.ftz": "ex2({a})", "lg2.approx": "lg2({a})",
}  # fmt: skip
PREDICATE = {
    "and": "{a} and {b}", "or": "{a} or {b}", "xor": "{a} != {b}", "not": "not {a}", "mov": "{a}",
}  # fmt: skip
ORDER = {"lt": "{x} < {y}", "le": "{x} <= {y}", "gt": "{x} > {y}", "ge": "{x} >= {y}"}
INTEGER_TESTS = ORDER | {"eq": "{x} == {y}", "ne": "{x} != {y}"}
FLOAT_TESTS = ORDER | {  # all but nan and neu are false where a number is NaN
    "eq": "{x} == {y}", "ne": "({x} < {y} or {x} > {y})", "neu": "{x} != {y}",
    "nan": "({x} != {x} or {y} != {y})", "num": "({x} == {x} and {y} == {y})",
}  # fmt: skip
TO_F32 = {
    "cvt.f32.f16": "f16_low({x})",
    **{f"cvt.rn.f32.{kind}": "float32({x})" for kind in ("s32", "u32", "s64", "u64")},
}
TO_HALF = {"cvt.rn.f16.f32": "int(to_f16({x}))", "cvt.rn.bf16.f32": "int(to_bf16({x}))"}
TO_PAIR = {
    "cvt.rn.f16x2.f32": "int(pack_f16({low}, {high}))",
    "cvt.rn.bf16x2.f32": "int(pack_bf16({low}, {high}))",
}
