"""The rows of a top-k benchmark: how long they are, and what stands in them."""

from dataclasses import dataclass

import numpy as np
import psutil

from numbadsd.config import KV_DTYPES, TopkBenchConfig, check

SHORT_FRACTION = 32  # a short row of the mix has length / 32 scores
FULL_ROWS = 10  # one row in ten of the mix is full
LOW_BITS = {"float32": 10, "float16": 4, "bfloat16": 3}  # of the mantissa, random in low_bits
_ONE_AND_A_HALF = {"float32": 0x3FC00000, "float16": 0x3E00, "bfloat16": 0x3FC0}
_OWN_BYTES = 256 << 20  # interpreter, compiled code, scratch


@dataclass(frozen=True)
class TopkCase:
    """Scores, and how many of each row count."""

    lengths_name: str
    values_name: str
    scores: np.ndarray  # [rows, length] of the stored dtype
    lengths: np.ndarray  # [rows] i32

    @property
    def num_bytes(self) -> int:
        """Bytes of the scores that the rows really hold."""
        return int(self.lengths.sum(dtype=np.int64)) * self.scores.dtype.itemsize


def make_case(config: TopkBenchConfig, lengths_name: str, values_name: str) -> TopkCase:
    """Return one case of a benchmark; a pair of names gives the same scores in every run."""
    rng = np.random.default_rng(config.seed)
    lengths = make_lengths(lengths_name, config.rows, config.length, rng)
    scores = make_scores(values_name, config.rows, config.length, config.dtype, rng)
    return TopkCase(lengths_name, values_name, scores, lengths)


def make_lengths(name: str, rows: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """Return [rows] int32: all full, or as in decode: one in ten full, the others short."""
    lengths = np.full(rows, length, np.int32)
    if name == "mix":
        num_full = max(1, round(rows / FULL_ROWS))
        lengths[rng.permutation(rows)[num_full:]] = max(1, length // SHORT_FRACTION)
    return lengths


def make_scores(
    name: str, rows: int, length: int, dtype: str, rng: np.random.Generator
) -> np.ndarray:
    """Return [rows, length] scores; ascending ones are as distinct as the dtype allows."""
    stored = KV_DTYPES[dtype]
    if name == "normal":
        return rng.standard_normal((rows, length), np.float32).astype(stored, copy=False)
    if name == "low_bits":
        word = np.dtype(f"u{stored.itemsize}")
        words = rng.integers(0, 1 << LOW_BITS[dtype], (rows, length), word)
        words |= word.type(_ONE_AND_A_HALF[dtype])
        return words.view(stored)
    row = np.ones(length) if name == "equal" else np.linspace(-1, 1, length)
    row = row[::-1] if name == "descending" else row
    return np.ascontiguousarray(np.broadcast_to(row.astype(stored), (rows, length)))


def check_memory(config: TopkBenchConfig, other_bytes: int) -> None:
    """Raise ValueError, with the bytes, when the scores and their copies cannot fit in memory.

    `other_bytes` counts what the benchmark holds beside them.
    """
    element_bytes = KV_DTYPES[config.dtype].itemsize
    # the scores, a masked copy of the mix, and of half types a float32 copy and what is cast
    cell_bytes = 2 * element_bytes + (8 if element_bytes < 4 else 0)
    needed = config.rows * (config.length * cell_bytes + 24 * config.k)  # and indices, compared
    needed += other_bytes + _OWN_BYTES
    available = psutil.virtual_memory().available
    check(
        needed <= available,
        "rows x length",
        f"{config.rows} x {config.length}",
        f"scores that fit in memory: these need {needed:,} bytes of {available:,} available",
    )
