"""What a compiled kernel takes of a multiprocessor, read from its machine code.

A cubin is an ELF file. Its section `.nv.info` is a list of records:

    u8 format | u8 attribute | u16 value                              (any other format)
    u8 format | u8 attribute | u16 size | payload of `size` bytes     (format 4)

The payloads that are read here are two u32: a symbol's index and its value. `.nv.shared.<entry>` is
as large as the static shared memory. The register count that older compilers also keep in the
flags of `.text.<entry>` is absent on 9.0 and later.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from struct import unpack_from

from elftools.elf.elffile import ELFFile

from numbadsd.kernels.cuda.compile import MachineCode

_WITH_PAYLOAD = 4
_FRAME_SIZE, _MIN_STACK_SIZE, _NUM_REGISTERS = 0x11, 0x12, 0x2F
# From 9.0 on a block's shared memory starts with what the system keeps of it, and is counted so.
_COUNTS_RESERVED, _RESERVED_BYTES = (9, 0), 1024


@dataclass(frozen=True)
class Resources:
    """What a kernel takes: of a thread registers and stack, of a block its own shared memory.

    The stack is what lies in local memory: arrays that are indexed at run time, and spills.
    """

    registers: int
    stack_bytes: int
    shared_bytes: int


def read_resources(code: MachineCode, compute_capability: tuple[int, int]) -> Resources:
    """Return what a kernel that was compiled for an architecture takes."""
    elf = ELFFile(BytesIO(code.cubin))
    names = [symbol.name for symbol in elf.get_section_by_name(".symtab").iter_symbols()]
    entry = names.index(code.entry)
    values = {
        attribute: value for attribute, symbol, value in _symbol_attributes(elf) if symbol == entry
    }
    shared = elf.get_section_by_name(f".nv.shared.{code.entry}")
    reserved_bytes = _RESERVED_BYTES if compute_capability >= _COUNTS_RESERVED else 0
    return Resources(
        registers=values[_NUM_REGISTERS],
        stack_bytes=max(values[_FRAME_SIZE], values.get(_MIN_STACK_SIZE, 0)),
        shared_bytes=shared["sh_size"] - reserved_bytes if shared else 0,
    )


def _symbol_attributes(elf: ELFFile) -> Iterator[tuple[int, int, int]]:
    """Yield (attribute, symbol, value) of the records that say a number of a function."""
    info = elf.get_section_by_name(".nv.info").data()
    place = 0
    while place < len(info):
        kind, attribute, size = unpack_from("<BBH", info, place)
        place += 4
        if kind != _WITH_PAYLOAD:
            continue
        if attribute in (_FRAME_SIZE, _MIN_STACK_SIZE, _NUM_REGISTERS):
            yield attribute, *unpack_from("<II", info, place)
        place += size
