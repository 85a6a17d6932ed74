"""The experiments of the reference system, as a table: what is varied, and what is fixed.

The GPU scale is the published one (32 heads of 128, k 8, batch 16, fp32). The CPU scale has 8 heads
of 64 and structured data, on which the quality of a selection means something. Quick ones are thin.
"""

from collections.abc import Iterable, Mapping

from numbadsd.bench.sweep.series import SCALES, Experiment, Series, along

_ALL_PATHS = "dense_cpu,sparse_cpu,dense_gpu,sparse_gpu"


def _doubling(low: int, high: int) -> list[int]:
    """Return low, 2 low, 4 low .. high."""
    return [low << i for i in range((high // low).bit_length())]


# 00: every path that the scale has
_BACKENDS = tuple(
    along("batch 16", "context_tokens", contexts, quick=quick, scale=scale, **paths)
    for quick, contexts in ((False, (512, 1024, 4096, 16384)), (True, (512, 1024, 4096)))
    for scale, paths in (("cpu", {}), ("gpu", {"paths": _ALL_PATHS}))
)

# 01: published from 512 on; shorter contexts show where the curves cross
_CONTEXTS = tuple(
    along(f"batch {batch}", "context_tokens", _doubling(64, 16384), scale=scale, quick=False,
          batch_size=batch)
    for scale, batches in (("cpu", (1, 4, 16)), ("gpu", (1, 16, 64)))
    for batch in batches
) + tuple(
    along(f"batch {batch}", "context_tokens", (64, 128, 256, 1024, 4096), quick=True,
          batch_size=batch)
    for batch in (1, 16)
)  # fmt: skip

_BATCHES = (
    along("context 4096", "batch_size", _doubling(1, 64), quick=False),
    along("context 4096", "batch_size", (1, 4, 16, 64), quick=True),
)

# 03: published up to 32; 256 pages are the whole context
_TOP_KS = (
    along("context 4096", "top_k_pages", _doubling(1, 256), quick=False),
    along("context 4096", "top_k_pages", (1, 8, 64, 256), quick=True),
)

_PAGE_SIZES = tuple(
    series
    for quick, sizes in ((False, (8, 16, 32, 64)), (True, (8, 16, 64)))
    for series in (
        along("8 pages", "page_size", sizes, quick=quick),
        Series("128 tokens", "page_size",
               {size: {"page_size": size, "top_k_pages": 128 // size} for size in sizes}, quick),
    )
)  # fmt: skip

# 05: all requests are there at once, with prompts of one length; then they arrive ever more slowly
_LOADS = (
    *(
        along(f"prompts {prompt}", "max_active_requests", _doubling(1, 64), quick=False,
              prompt_tokens=prompt, arrival_window=0)
        for prompt in (1024, 2048, 4096, 8192)
    ),
    along("arrivals", "arrival_window", (0, 16, 64, 256, 1024), quick=False),
    *(
        along(f"prompts {prompt}", "max_active_requests", (1, 4, 16, 64), quick=True,
              prompt_tokens=prompt, arrival_window=0)
        for prompt in (512, 2048)
    ),
    along("arrivals", "arrival_window", (0, 16, 64), quick=True),
)  # fmt: skip

_OPTIMIZED = {
    "admission_mode": "direct_gpu_upload", "preadmit_prompts": 1, "precompute_decode_payloads": 1,
    "gpu_synthetic_decode_append": 1, "lazy_release": 1, "run_batch_output_mode": "outputs_only",
    "run_batch_timing_mode": "kernel_events", "benchmark_mode": "sparse",
}  # fmt: skip
# One option turned off at a time. The CPU leaves out what is the same there as another variant: it
# has no device to make tokens or to upload prompts to, and always gives outputs.
_VARIANTS = {
    "optimized": {},
    "runtime_admit": {"preadmit_prompts": 0},
    "cpu_cache_admit": {
        "admission_mode": "cpu_cache", "preadmit_prompts": 0, "gpu_synthetic_decode_append": 0,
    },
    "no_payload_precompute": {"precompute_decode_payloads": 0},
    "cpu_decode_append": {"gpu_synthetic_decode_append": 0},
    "eager_release": {"lazy_release": 0},
    "full_outputs": {"run_batch_output_mode": "full_outputs"},
    "no_kernel_events": {"run_batch_timing_mode": "host_wall"},
    "dense_gpu_optimized": {"benchmark_mode": "dense_gpu"},
}  # fmt: skip
_SAME_ON_CPU = ("cpu_cache_admit", "cpu_decode_append", "full_outputs")
_CONDITIONS = {
    "steady": {"arrival_window": 64},
    "bursty": {"arrival_window": 0},
    "quick": {
        "num_requests": 32, "max_active_requests": 8, "arrival_window": 16,
        "min_prompt_tokens": 512, "max_prompt_tokens": 1024, "min_decode_steps": 8,
        "max_decode_steps": 16,
    },
}  # fmt: skip


def _ablation(scale: str, condition: str, parameters: Mapping, quick: bool) -> Series:
    left_out = _SAME_ON_CPU if scale == "cpu" else ()
    places = {
        name: _OPTIMIZED | parameters | change
        for name, change in _VARIANTS.items()
        if name not in left_out
    }
    return Series(condition, "variant", places, quick, scale)


_OPTIONS = tuple(
    series
    for scale in SCALES
    for series in (
        *(_ablation(scale, name, values, False) for name, values in _CONDITIONS.items()),
        _ablation(scale, "quick", _CONDITIONS["quick"], True),
    )
)

# 07: a GPU attends to pages in place, so that only the CPU has a staged form
_STAGES = tuple(
    along(name, "context_tokens", contexts, quick=quick, scale=scale, **fixed)
    for quick, contexts in ((False, (1024, 4096, 16384)), (True, (1024, 4096)))
    for scale, name, fixed in (
        ("gpu", "fused", {"paths": _ALL_PATHS, "versus": "torch"}),
        ("cpu", "fused", {"versus": "torch"}),
        ("cpu", "staged", {"fused": False}),
    )
)  # fmt: skip

EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            "00_backend_total_time", "How long does a decode step take, path by path?",
            "dsd_bench", _BACKENDS,
        ),
        Experiment(
            "01_decode_context_length_sweep", "From which context on does sparse beat dense?",
            "dsd_bench", _CONTEXTS,
        ),
        Experiment(
            "02_decode_batch_scaling_sweep", "What does a larger batch cost?",
            "dsd_bench", _BATCHES,
        ),
        Experiment(
            "03_decode_topk_sparsity_sweep", "How many pages can one keep before sparse loses?",
            "dsd_bench", _TOP_KS,
        ),
        Experiment(
            "04_decode_page_size_sweep", "Which page size, at as many pages or as many tokens?",
            "dsd_bench", _PAGE_SIZES,
        ),
        Experiment(
            "05_continuous_batching_load_sweep", "What does decoding requests together bring?",
            "dsd_continuous_bench", _LOADS,
        ),
        Experiment(
            "06_continuous_runtime_options_ablation", "What is each option of the loop worth?",
            "dsd_continuous_bench", _OPTIONS,
        ),
        Experiment(
            "07_attention_backend_breakdown", "Where does a step's time go, beside torch's?",
            "dsd_bench", _STAGES,
        ),
    )
}  # fmt: skip


def find_experiments(names: Iterable[str]) -> list[Experiment]:
    """Return the experiments of these numbers or names, each once, in the order of the table.

    Raises
    ------
    ValueError
        For a name that is none.
    """
    by_name = {e.code: e for e in EXPERIMENTS.values()} | EXPERIMENTS
    chosen = set()
    for name in names:
        if name != "all" and name not in by_name:
            codes = [e.code for e in EXPERIMENTS.values()]
            want = f"{codes[0]} .. {codes[-1]}, a name of `dsd_sweep list`, or all"
            raise ValueError(f"experiment: got {name!r}, want {want}")
        chosen |= set(EXPERIMENTS) if name == "all" else {by_name[name].name}
    return [experiment for name, experiment in EXPERIMENTS.items() if name in chosen]
