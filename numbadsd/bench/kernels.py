"""What the CUDA kernels of a configuration take of a GPU: they are compiled, no GPU is needed."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec

from tabulate import tabulate
from tqdm import tqdm

from numbadsd.analysis.occupancy import MULTIPROCESSORS, Multiprocessor
from numbadsd.bench.record import SCHEMA_VERSION, environment
from numbadsd.config import ModelConfig, check
from numbadsd.errors import CudaUnavailable
from numbadsd.kernels.cuda.runtime import INSTALL
from numbadsd.kernels.cuda.switch import SIMULATED

LOW_OCCUPANCY_FRACTION = 0.5  # below, a kernel says why that is enough
SHAPE = "num_heads num_kv_heads head_dim page_size kv_dtype summary share".split()

# Every pair of values in two columns is here, but for four of summary and group, two of summary...
SWEEP = tuple(
    ModelConfig(32, 32 // group, head_dim, kv_dtype=kv_dtype, summary=summary, share=share)
    for group, head_dim, kv_dtype, summary, share in (
        (1, 64, "float32", "mean", "kv_head"),
        (1, 128, "float16", "mean_std", "request"),
        (1, 256, "bfloat16", "minmax", "query_head"),
        (4, 64, "bfloat16", "mean_std", "kv_head"),
        (4, 128, "float32", "cuboid_mean", "query_head"),
        (4, 256, "float16", "mean", "request"),
        (8, 64, "float32", "minmax", "request"),
        (8, 128, "bfloat16", "mean", "query_head"),
        (8, 256, "float16", "cuboid_mean", "kv_head"),
        (16, 64, "bfloat16", "cuboid_mean", "request"),
        (16, 128, "float16", "minmax", "kv_head"),
        (16, 256, "float32", "mean_std", "query_head"),
    )
)
