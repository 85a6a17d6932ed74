"""Frozen configuration values; field order is the commands' argument order."""

from numbadsd.config.continuous import (
    ADMISSION_MODES,
    ADMISSIONS,
    BACKENDS,
    BENCHMARK_MODES,
    CLOCKS,
    MODES,
    OUTPUT_MODES,
    PREFILLS,
    SWITCHES,
    TIMING_MODES,
    ContinuousBenchConfig,
    mode_name,
)
from numbadsd.config.decode import DATA_KINDS, DecodeBenchConfig
from numbadsd.config.model import (
    HEAD_DIM_MULTIPLE,
    KV_DTYPES,
    MAX_HEAD_DIM,
    ModelConfig,
    Share,
    Summary,
    check,
    check_choice,
    check_integer,
)
from numbadsd.config.topk import (
    TOPK_DEVICES,
    TOPK_LENGTHS,
    TOPK_MAX_K,
    TOPK_MAX_LENGTH,
    TOPK_ORDERS,
    TOPK_VALUES,
    TopkBenchConfig,
)

__all__ = [
    "ADMISSIONS", "ADMISSION_MODES", "BACKENDS", "BENCHMARK_MODES", "CLOCKS", "DATA_KINDS",
    "HEAD_DIM_MULTIPLE", "KV_DTYPES", "MAX_HEAD_DIM", "MODES", "OUTPUT_MODES", "PREFILLS",
    "SWITCHES", "TIMING_MODES", "TOPK_DEVICES", "TOPK_LENGTHS", "TOPK_MAX_K", "TOPK_MAX_LENGTH",
    "TOPK_ORDERS", "TOPK_VALUES", "ContinuousBenchConfig", "DecodeBenchConfig", "ModelConfig",
    "Share", "Summary", "TopkBenchConfig", "check", "check_choice", "check_integer", "mode_name",
]  # fmt: skip
