"""Which rows go which way in `topk`: numbers, by architecture, found by a run on a device.

`bench_results/topk_tune.py` makes the entries of topk_tuning.json. An architecture without one
takes the defaults, which nobody has measured.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TUNING_FILE = Path(__file__).with_name("topk_tuning.json")
_MAX_PARTS = 64


@dataclass(frozen=True)
class TopkTuning:
    """Where the ways of a row part.

    Attributes
    ----------
    warp_length : int
        Rows up to here are selected by one warp.
    block_length : int
        Longer ones up to here by one block, still longer ones by several.
    part_length : int
        Elements for which a long row gets one more block.
    blocks_a_multiprocessor : int
        Blocks with which long rows fill the device: more rows have fewer blocks each.
    """

    warp_length: int = 256
    block_length: int = 32768
    part_length: int = 8192
    blocks_a_multiprocessor: int = 2

    def __post_init__(self):
        fits = 0 <= self.warp_length <= self.block_length
        assert fits and self.part_length > 0 and self.blocks_a_multiprocessor > 0, self

    def num_parts(self, rows: int, width: int, num_multiprocessors: int) -> int:
        """Return the blocks of a long row; 1 where no row can be long, or rows fill the device."""
        if width <= self.block_length or rows == 0:
            return 1
        share = num_multiprocessors * self.blocks_a_multiprocessor // rows
        return max(1, min(_MAX_PARTS, share, -(-width // self.part_length)))


@cache
def tuning_of(compute_capability: tuple[int, int]) -> TopkTuning:
    """Return the numbers of an architecture."""
    entries = json.loads(TUNING_FILE.read_text())
    name = "sm_{}{}".format(*compute_capability)
    return TopkTuning(**entries[name]["tuning"]) if name in entries else TopkTuning()
