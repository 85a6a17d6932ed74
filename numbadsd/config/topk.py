"""TopkBenchConfig: what `dsd_topk_bench` measures."""

from dataclasses import dataclass

from numbadsd.config.model import KV_DTYPES, check_choice, check_integer

TOPK_MAX_LENGTH = 1 << 20  # what the kernels take; a test compares them
TOPK_MAX_K = 2048
TOPK_DEVICES = ("auto", "cpu", "gpu")
TOPK_ORDERS = ("position", "score")
TOPK_LENGTHS = ("uniform", "mix")
TOPK_VALUES = ("normal", "equal", "ascending", "descending", "low_bits")


@dataclass(frozen=True)
class TopkBenchConfig:
    """What `dsd_topk_bench` measures: the k best of every row, once per iteration and case.

    The first six fields are the command's positional arguments in order; the rest its options.
    """

    rows: int = 32
    length: int = 65536
    k: int = 128
    seed: int = 7
    iterations: int = 10
    warmup: int = 2
    device: str = "auto"
    dtype: str = "float32"
    order: str = "position"
    lengths: tuple[str, ...] | None = None  # None, in either: those of the usual cases
    values: tuple[str, ...] | None = None

    def __post_init__(self):
        check_integer("rows", self.rows, 1)
        check_integer("length", self.length, 1, TOPK_MAX_LENGTH)
        check_integer("k", self.k, 1, TOPK_MAX_K)
        check_integer("seed", self.seed, 0, 2**32 - 1)
        check_integer("iterations", self.iterations, 1)
        check_integer("warmup", self.warmup, 0)
        check_choice("device", self.device, TOPK_DEVICES)
        check_choice("dtype", self.dtype, tuple(KV_DTYPES))
        check_choice("order", self.order, TOPK_ORDERS)
        for lengths in self.lengths or ():
            check_choice("lengths", lengths, TOPK_LENGTHS)
        for values in self.values or ():
            check_choice("values", values, TOPK_VALUES)

    @property
    def cases(self) -> tuple[tuple[str, str], ...]:
        """Pairs of lengths and values: every distribution at full length, and the mix once.

        Naming lengths or values keeps those of them; naming both gives every pair.
        """
        if self.lengths and self.values:
            return tuple((lengths, v) for lengths in self.lengths for v in self.values)
        normal, *others = TOPK_VALUES
        usual = [(lengths, normal) for lengths in TOPK_LENGTHS]
        usual += [(TOPK_LENGTHS[0], values) for values in others]
        return tuple(
            (lengths, values)
            for lengths, values in usual
            if lengths in (self.lengths or TOPK_LENGTHS) and values in (self.values or TOPK_VALUES)
        )
