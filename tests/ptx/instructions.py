"""Instructions of PTX as lines of Python; `translate.py` puts them together.

The names that the lines use for memory, lanes and float32 are in `machine.py`.
"""

import re

from tests.ptx.tables import (
    BITS,
    EVERY_LANE,
    FLOAT,
    FLOAT_TESTS,
    HINTS,
    INTEGER,
    INTEGER_TESTS,
    PREDICATE,
    REGISTER_BITS,
    SPACES,
    SPECIAL,
    TO_F32,
    TO_HALF,
    TO_PAIR,
)

_REGISTER = re.compile(r"%?((?<=%)(?:p|f|r|rd|rs)\d+|(?<!%)[lhp])")  # l, h, p: of inline PTX
_GUARDED = re.compile(r"@(!?)(%?\w+)\s+(.*)", re.S)
_ADDRESS = re.compile(r"\[([%$\w]+)(?:\+(-?\d+))?\]")


def indented(lines: list[str]) -> list[str]:
    """Return lines of Python one level deeper."""
    return ["    " + line for line in lines]


def _operands(text: str) -> list[str]:
    """Split at the commas outside of braces."""
    return [part.strip() for part in re.findall(r"(?:\{[^}]*\}|[^,{])+", text)]


def _is_float(operand: str) -> bool:
    return re.match(r"%f\d|0f", operand) is not None


def _signed(bits_of: str, bits: int) -> str:
    half = 1 << (bits - 1)
    return f"(({bits_of} ^ {half}) - {half})"


def _register_bits(register: str, otherwise: int) -> int:
    return REGISTER_BITS.get(re.match(r"%?([a-z]*)", register)[1], otherwise)


def _only(parts: list[str], known: str) -> None:
    if ".".join(parts) != known:
        raise ValueError(parts)


class Instructions:
    """Statements to lines of Python; a method is named after the instruction it is for."""

    def __init__(self, labels: dict, parameters: dict, shared: dict):
        self._labels, self._parameters, self._shared = labels, parameters, shared
        self._sites = 0
        self.constants = set()

    def block(self, index: int, statements: list[str]) -> list[str]:
        """Return the lines of a block, which end with the choice of the next one."""
        lines = [line for statement in statements for line in self._statement(statement)]
        return [*lines, f"block = {index + 1}"]

    def _statement(self, text: str) -> list[str]:
        guarded = _GUARDED.match(text)
        if guarded:
            test = f"{'not ' if guarded[1] else ''}{self._name(guarded[2])}"
            return [f"if {test}:", *indented(self._statement(guarded[3]))]
        name, _, rest = text.partition(" ")
        parts = name.split(".")
        try:
            method = getattr(self, f"_do_{parts[0]}", self._arithmetic)
            return method(parts, _operands(rest))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise NotImplementedError(f"PTX instruction: {text}") from error

    # ---- operands

    def _name(self, register: str) -> str:
        if register in SPECIAL:
            return SPECIAL[register]
        return "r_" + _REGISTER.fullmatch(register)[1]

    def _float(self, operand: str) -> str:
        """Return the float32 of an operand."""
        if operand.startswith("0f"):
            self.constants.add(operand[2:])
            return f"f_{operand[2:]}"
        return self._name(operand) if _is_float(operand) else f"bits_to_f32({self._name(operand)})"

    def _int(self, operand: str, bits: int) -> str:
        """Return the bits of an operand."""
        if operand.startswith("0f"):
            return str(int(operand[2:], 16))
        if _is_float(operand):
            return f"f32_bits({self._name(operand)})"
        if re.fullmatch(r"-?\d+", operand):
            return str(int(operand) & ((1 << bits) - 1))
        return str(self._shared[operand]) if operand in self._shared else self._name(operand)

    def _predicate(self, operand: str) -> str:
        return {"0": "False", "1": "True", "-1": "True"}.get(operand) or self._name(operand)

    def _number(self, operand: str, kind: str) -> str:
        """Return an operand as a number of a type."""
        if kind == "f32":
            return self._float(operand)
        bits = BITS[kind]
        number = self._int(operand, bits)
        if _register_bits(operand, bits) > bits:
            number = f"({number} & {(1 << bits) - 1})"
        return _signed(number, bits) if kind[0] == "s" else number

    def _address(self, operand: str) -> tuple[str, str]:
        base, offset = _ADDRESS.fullmatch(operand).groups(default="0")
        return base, offset

    def _place(self, operand: str) -> str:
        base, offset = self._address(operand)
        return f"{self._int(base, 64)} + {offset}"

    def _set(self, register: str, value: str, kind: str, *, fits: bool = False) -> str:
        """Return the line that gives a register the value of an expression of a type.

        `fits`: the value is not negative and has no more bits than the type.
        """
        if kind == "f32":
            value = value if _is_float(register) else f"f32_bits({value})"
        elif _is_float(register):
            value = f"bits_to_f32({value})"
        elif kind != "pred":
            bits, wide = BITS[kind], _register_bits(register, BITS[kind])
            if kind[0] == "s" and wide > bits:
                value, bits, fits = _signed(value, bits), wide, False
            value = value if fits else f"({value}) & {(1 << bits) - 1}"
        return f"{self._name(register)} = {value}"

    # ---- instructions

    def _arithmetic(self, parts: list, operands: list) -> list[str]:
        name, kind = ".".join(parts[:-1]), parts[-1]
        target, *sources = operands
        if kind in ("pred", "f32"):
            read, table = (self._predicate, PREDICATE) if kind == "pred" else (self._float, FLOAT)
            numbers = dict(zip("abc", map(read, sources), strict=False))
            return [self._set(target, table[name].format(**numbers), kind)]
        bits, is_wide = BITS[kind], name.endswith(".wide")
        fields = {"bits": bits}
        for field, source in zip("abc", sources, strict=False):
            # a shift's distance has 32 bits; the sum of mad.wide has twice those of its factors
            fields[field] = self._int(source, 2 * bits if is_wide and field == "c" else bits)
        fields |= {f: self._number(s, kind) for f, s in zip("xy", sources, strict=False)}
        kind = f"{kind[0]}{2 * bits}" if is_wide else kind
        fits = name in ("and", "or", "xor")
        return [self._set(target, INTEGER[name].format(**fields), kind, fits=fits)]

    def _do_mov(self, parts: list, operands: list) -> list[str]:
        target, source = operands
        if parts[1] == "pred":
            return [self._set(target, self._predicate(source), "pred")]
        if target.startswith("{"):
            low, high = map(self._name, _operands(target.strip("{}")))
            word = self._int(source, 32)
            return [f"{low} = {word} & 65535", f"{high} = {word} >> 16"]
        if source.startswith("{"):
            low, high = map(self._name, _operands(source.strip("{}")))
            return [self._set(target, f"{low} | {high} << 16", "b32", fits=True)]
        kind = "f32" if _is_float(target) else f"b{BITS[parts[1]]}"
        value = self._float(source) if kind == "f32" else self._int(source, BITS[kind])
        return [self._set(target, value, kind, fits=True)]

    def _do_selp(self, parts: list, operands: list) -> list[str]:
        target, yes, no, predicate = operands
        kind = "f32" if _is_float(target) else f"b{BITS[parts[1]]}"
        left, right = self._number(yes, kind), self._number(no, kind)
        value = f"{left} if {self._predicate(predicate)} else {right}"
        return [self._set(target, value, kind, fits=True)]

    def _do_setp(self, parts: list, operands: list) -> list[str]:
        _, test, kind = parts
        target, left, right = operands
        template = (FLOAT_TESTS if kind == "f32" else INTEGER_TESTS)[test]
        x, y = self._number(left, kind), self._number(right, kind)
        return [self._set(target, template.format(x=x, y=y), "pred")]

    def _do_cvt(self, parts: list, operands: list) -> list[str]:
        if len(operands) == 3:
            target, high, low = operands
            pack = TO_PAIR[".".join(parts)].format(low=self._float(low), high=self._float(high))
            return [self._set(target, pack, "b32", fits=True)]
        target, source = operands
        name, to, origin = ".".join(parts), parts[-2], parts[-1]
        x = self._int(source, 16) if origin == "f16" else self._number(source, origin)
        if to == "f32":
            return [self._set(target, TO_F32[name].format(x=x), to)]
        if origin == "f32":
            return [self._set(target, TO_HALF[name].format(x=x), "b16")]
        _, to, origin = parts
        return [self._set(target, x, to)]

    def _do_cvta(self, parts: list, operands: list) -> list[str]:
        _only(parts, "cvta.to.global.u64")
        return [self._set(operands[0], self._name(operands[1]), "u64", fits=True)]

    def _do_ld(self, parts: list, operands: list) -> list[str]:
        _, space, *hints, kind = parts
        target, place = operands
        if space == "param":
            base, offset = self._address(place)
            _only([offset], "0")
            value = f"parameters[{self._parameters[base]}]"
            return [self._set_bits(target, value, kind)]
        targets = self._vector(target, hints)
        loaded = ", ".join(f"w{i}" for i in range(len(targets)))
        load = f"{SPACES[space]}.load({self._place(place)}, {BITS[kind] // 8}, {len(targets)})"
        stores = [self._set_bits(t, f"w{i}", kind) for i, t in enumerate(targets)]
        return [f"[{loaded}] = {load}", *stores]

    def _set_bits(self, register: str, value: str, kind: str) -> str:
        """Return the line that gives a register what was loaded as bits of a type."""
        return self._set(register, value, "b32" if kind == "f32" else kind, fits=True)

    def _do_st(self, parts: list, operands: list) -> list[str]:
        _, space, *hints, kind = parts
        place, source = operands
        bits = BITS[kind]
        values = ", ".join(self._number(s, f"u{bits}") for s in self._vector(source, hints))
        return [f"{SPACES[space]}.store({self._place(place)}, {bits // 8}, [{values}])"]

    def _vector(self, operand: str, hints: list) -> list[str]:
        """Return the registers of a load or store; what else its name says must be known."""
        registers = _operands(operand.strip("{}"))
        wanted = 2 if "v2" in hints else 4 if "v4" in hints else 1
        if not set(hints) <= HINTS or len(registers) != wanted:
            raise ValueError(hints)
        return registers

    def _do_atom(self, parts: list, operands: list) -> list[str]:
        _only(parts, "atom.shared.add.u32")
        target, place, source = operands
        address, term = self._place(place), self._int(source, 32)
        return [
            f"[w0] = shared.load({address}, 4, 1)",
            f"shared.store({address}, 4, [w0 + {term} & {(1 << 32) - 1}])",
            self._set(target, "w0", "u32", fits=True),
        ]

    def _do_shfl(self, parts: list, operands: list) -> list[str]:
        target, source, distance, clamp, lanes = operands
        wanted = {"bfly": "31", "idx": "31", "up": "0"}[parts[2]]
        _only([parts[1], parts[3]], "sync.b32")
        self._check_lanes(lanes, clamp == wanted)
        value = f"{self._site(parts)}, {self._int(source, 32)}, {self._int(distance, 32)}"
        return [self._set(target, f"shfl_{parts[2]}({value})", "b32", fits=True)]

    def _do_bfi(self, parts: list, operands: list) -> list[str]:
        target, inserted, around, first, count = operands
        bits = BITS[parts[1]]
        mask = (1 << int(count)) - 1 << int(first) & (1 << bits) - 1
        value = f"{self._int(inserted, bits)} << {first} & {mask} | "
        value += f"{self._int(around, bits)} & {mask ^ (1 << bits) - 1}"
        return [self._set(target, value, parts[1], fits=True)]

    def _do_prmt(self, parts: list, operands: list) -> list[str]:
        _only(parts, "prmt.b32")
        target, first, second, selector = operands
        a, b = self._int(first, 32), self._int(second, 32)
        halves = {0x5410: f"{a} & 65535 | ({b} & 65535) << 16", 0x7632: f"{a} >> 16 | {b} & ~65535"}
        return [self._set(target, halves[int(selector, 0)], "b32", fits=True)]

    def _do_mma(self, parts: list, operands: list) -> list[str]:
        kind = parts[7]
        _only(parts, f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32")
        targets, a, b, c = (_operands(operand.strip("{}")) for operand in operands)
        words = ", ".join(self._int(register, 32) for register in (*a, *b))
        sums = ", ".join(map(self._float, c))
        product = f"mma_{kind}({words}, {sums}, site={self._site(parts)})"
        names = [f"w{i}" for i in range(4)]
        stores = [self._set(t, w, "f32") for t, w in zip(targets, names, strict=True)]
        return [f"{', '.join(names)} = {product}", *stores]

    def _do_vote(self, parts: list, operands: list) -> list[str]:
        _only(parts, "vote.sync.ballot.b32")
        target, predicate, lanes = operands
        self._check_lanes(lanes)
        value = f"ballot({self._site(parts)}, {self._predicate(predicate)})"
        return [self._set(target, value, "b32", fits=True)]

    def _do_bar(self, parts: list, operands: list) -> list[str]:
        if parts == ["bar", "warp", "sync"]:
            self._check_lanes(*operands)
            return [f"sync_warp({self._site(parts)})"]
        _only([*parts, *operands], "bar.sync.0")
        return ["sync_threads()"]

    def _check_lanes(self, lanes: str, is_known: bool = True) -> None:
        if lanes not in EVERY_LANE or not is_known:
            raise ValueError(lanes)

    def _site(self, parts: list) -> str:
        """Return the name of this place: the lanes of a warp must meet at one."""
        self._sites += 1
        return repr(f"{'.'.join(parts)} #{self._sites}")

    def _do_bra(self, parts: list, operands: list) -> list[str]:
        return [f"block = {self._labels[operands[0]]}", "continue"]

    def _do_ret(self, parts: list, operands: list) -> list[str]:
        return ["return"]
