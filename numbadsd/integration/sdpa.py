"""torch's scaled_dot_product_attention, as the contender of `dsd_bench --versus torch`.

What it does with a batch is in `sdpa_work`, which imports torch and is imported when torch is used.
"""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import numba
import numpy as np

from numbadsd.config import ModelConfig
from numbadsd.pages.cache import PagedKvCache

CHUNK_BYTES = 16 << 20  # of pages that are copied at a time
MOST_PADDING = 4  # tokens of the padded form over real ones; beyond, it reads too much to win
PAD_TOKENS = 16  # masks of this alignment are taken as they are by torch's kernels
TORCH_BYTES = 256 << 20  # what torch itself takes


def find_attention(on_gpu: bool) -> "TorchSdpa":
    """Return torch's attention for that side; it says whether it can run."""
    return TorchSdpa(on_gpu)


class TorchSdpa:
    """`torch.nn.functional.scaled_dot_product_attention` on the CPU, or on a GPU."""

    def __init__(self, on_gpu: bool):
        self.on_gpu = on_gpu
        self.name = "torch_sdpa_gpu" if on_gpu else "torch_sdpa"
        try:
            self.version = version("torch")
        except PackageNotFoundError:
            self.version = None
        self.reason = self._why_not()

    def _why_not(self) -> str | None:
        if find_spec("torch") is None:
            return "torch is not installed"
        try:
            import torch
        except (ImportError, OSError) as error:  # installed, and broken
            return f"torch cannot be imported: {error}".splitlines()[0]
        if self.on_gpu and not torch.cuda.is_available():
            return f"torch {torch.__version__} finds no GPU"
        return None

    def host_bytes(self, model: ModelConfig, context_tokens: np.ndarray) -> int:
        """Return the memory of the host that torch and its own copy of K and V take."""
        if self.on_gpu or self.reason is not None:
            return 0
        tokens = int(context_tokens.sum()) + padded_tokens(context_tokens)
        return tokens * model.token_bytes + 4 * CHUNK_BYTES + TORCH_BYTES

    def prepare(self, cache: PagedKvCache, queries: np.ndarray, request_ids: Sequence[int]):
        """Return its work on these requests: a path, whose `form` says how torch is called."""
        from numbadsd.integration import sdpa_work

        sdpa_work.torch.set_num_threads(numba.get_num_threads())
        work = sdpa_work.GpuWork if self.on_gpu else sdpa_work.CpuWork
        return work(cache, queries, list(request_ids))


def padded_tokens(context_tokens: np.ndarray) -> int:
    """Return the tokens of the padded form; 0 where it is not tried."""
    tokens = len(context_tokens) * padded_length(context_tokens)
    is_tried = len(np.unique(context_tokens)) > 1
    return tokens if is_tried and tokens <= MOST_PADDING * int(context_tokens.sum()) else 0


def padded_length(context_tokens: np.ndarray) -> int:
    """Return the tokens of a request in the padded form."""
    return -(-int(context_tokens.max()) // PAD_TOKENS) * PAD_TOKENS
