"""PTX to Python: what the compiler made of a kernel, to run a thread at a time on the CPU.

Covers what numba-cuda emits for the kernels of numbadsd; anything else, float64 and local memory
included, is a NotImplementedError that names the instruction. The Python is a loop over
the blocks of statements between labels. A predicate is a bool, a register %f a NumPy float32, any
other register an int that is not negative: its bits.
"""

import re
from dataclasses import dataclass

from tests.ptx.instructions import Instructions, indented
from tests.ptx.tables import BITS

_ENTRY = re.compile(r"\.visible\s+\.entry\s+([\w$]+)\s*\((.*?)\)([^{]*)\{(.*)", re.S)
_PARAMETER = re.compile(r"\.param\s+\.(\w+)\s+([\w$]+)")
_SHARED = re.compile(r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d+)\]")
_LABEL = re.compile(r"(\$\w+):\s*")


@dataclass(frozen=True)
class Program:
    """A kernel in Python: `source` defines run(parameters, memory, shared, tid, ctaid)."""

    entry: str
    parameter_bits: tuple[int, ...]
    shared_bytes: int
    source: str


def translate(ptx: str) -> Program:
    """Translate the only entry of a PTX text."""
    ptx = re.sub(r"//.*|^\s*\.(loc|file)\b.*", "", ptx, flags=re.M)
    entry, declared, _, body = _ENTRY.search(ptx).groups()
    shared, shared_bytes = _lay_out_shared(ptx)
    parameters = _PARAMETER.findall(declared)
    blocks = _split(body)
    labels = {label: index for index, (label, _) in enumerate(blocks)}
    names = {name: index for index, (_, name) in enumerate(parameters)}
    python = Instructions(labels, names, shared)
    leaves = [python.block(index, statements) for index, (_, statements) in enumerate(blocks)]
    lines = ["def run(parameters, memory, shared, tid, ctaid):", "    block = 0", "    while True:"]
    lines += indented(indented(_tree(leaves, 0)))
    constants = [f"f_{bits} = bits_to_f32(0x{bits})" for bits in sorted(python.constants)]
    source = "\n".join(constants + lines) + "\n"
    return Program(entry, tuple(BITS[kind] for kind, _ in parameters), shared_bytes, source)


def _lay_out_shared(ptx: str) -> tuple[dict[str, int], int]:
    """Return the offset of every shared array, and the bytes of all."""
    offsets, end = {}, 0
    for align, name, size in _SHARED.findall(ptx):
        offsets[name] = -(-end // int(align)) * int(align)
        end = offsets[name] + int(size)
    return offsets, end


def _split(body: str) -> list[tuple[str | None, list[str]]]:
    """Return (label, statements) of every block; braces around statements mean nothing."""
    blocks = [(None, [])]
    for statement in body.split(";"):
        statement = " ".join(statement.split())
        while True:
            statement = statement.lstrip("{} ")
            label = _LABEL.match(statement)
            if not label:
                break
            blocks.append((label[1], []))
            statement = statement[label.end() :]
        if statement and not statement.startswith("."):
            blocks[-1][1].append(statement)
    return blocks


def _tree(leaves: list[list[str]], first: int) -> list[str]:
    """Return the lines that find a block by halving."""
    if len(leaves) == 1:
        return leaves[0]
    middle = len(leaves) // 2
    low, high = _tree(leaves[:middle], first), _tree(leaves[middle:], first + middle)
    return [f"if block < {first + middle}:", *indented(low), "else:", *indented(high)]
