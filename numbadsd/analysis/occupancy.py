"""How many threads of a kernel a multiprocessor holds at once, by what each block takes of it.

The limits are those of the CUDA C++ Programming Guide, "Technical Specifications per Compute
Capability" (of version 12 where 13 has dropped an architecture, 8.8 from `cuda_occupancy.h`); how
registers and shared memory are handed out is what `cuda_occupancy.h` of CUDA 13.0 computes.
"""

from dataclasses import dataclass

WARP_SIZE = 32
REGISTERS = 65536  # of a multiprocessor
PARTITIONS = 4  # of a multiprocessor; a warp and its registers lie in one
WARP_REGISTERS_UNIT = 256  # registers are handed to a warp in multiples of this


@dataclass(frozen=True)
class Multiprocessor:
    """What one multiprocessor of an architecture holds."""

    compute_capability: tuple[int, int]
    max_threads: int
    max_blocks: int
    shared_bytes: int

    @property
    def reserved_shared_bytes(self) -> int:
        """Shared memory that the system keeps of every block."""
        return 1024 if self.compute_capability >= (8, 0) else 0

    @property
    def shared_unit_bytes(self) -> int:
        """Shared memory is handed to a block in multiples of this."""
        return 128 if self.compute_capability >= (8, 0) else 256

    def resident_blocks(self, num_threads: int, registers: int, shared_bytes: int) -> int:
        """Return how many blocks fit; `registers` is of a thread, `shared_bytes` of a block."""
        warps = -(-num_threads // WARP_SIZE)
        warp_registers = _round_up(registers * WARP_SIZE, WARP_REGISTERS_UNIT)
        # a launch is refused as if every partition took as many warps as the fullest
        if warp_registers * _round_up(warps, PARTITIONS) > REGISTERS:
            return 0
        fitting_warps = REGISTERS // PARTITIONS // warp_registers * PARTITIONS
        shared = _round_up(shared_bytes + self.reserved_shared_bytes, self.shared_unit_bytes)
        return min(
            self.max_blocks,
            self.max_threads // WARP_SIZE // warps,
            fitting_warps // warps,
            self.shared_bytes // shared if shared else self.max_blocks,
        )

    def occupancy_fraction(self, num_threads: int, registers: int, shared_bytes: int) -> float:
        """Return the share of the multiprocessor's threads that such blocks fill."""
        blocks = self.resident_blocks(num_threads, registers, shared_bytes)
        return blocks * _round_up(num_threads, WARP_SIZE) / self.max_threads


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


# compute capability: threads, blocks, KiB of shared memory
_LIMITS = {
    (7, 0): (2048, 32, 96),
    (7, 2): (2048, 32, 96),
    (7, 5): (1024, 16, 64),
    (8, 0): (2048, 32, 164),
    (8, 6): (1536, 16, 100),
    (8, 7): (1536, 16, 164),
    (8, 8): (1536, 16, 100),
    (8, 9): (1536, 24, 100),
    (9, 0): (2048, 32, 228),
    (10, 0): (2048, 32, 228),
    (10, 1): (1536, 24, 228),  # the name of 11.0 before CUDA 13
    (10, 3): (2048, 32, 228),
    (11, 0): (1536, 24, 228),
    (12, 0): (1536, 24, 100),
    (12, 1): (1536, 24, 100),
}
MULTIPROCESSORS = {
    f"sm_{major}{minor}": Multiprocessor((major, minor), threads, blocks, kib * 1024)
    for (major, minor), (threads, blocks, kib) in _LIMITS.items()
}
