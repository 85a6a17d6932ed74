"""dense_cpu beside torch's scaled_dot_product_attention: same numbers, process and thread count.

    pip install torch numbadsd
    python bench_results/versus_torch.py --out FILE.jsonl

torch gets contiguous [B, G, tokens, D] tensors, numbadsd the paged cache that holds the same
numbers. Samples alternate, each after one read of the whole K/V pool. One record a case.
"""

import json
from pathlib import Path
from time import perf_counter

import click
import numba
import numpy as np
import torch

from numbadsd.analysis.devices import measure_read_gbps
from numbadsd.bench.data import fill_cache, make_workload
from numbadsd.bench.record import environment
from numbadsd.config import DecodeBenchConfig
from numbadsd.decode.path import make_path
from numbadsd.timing import sample_statistics

CASES = (  # batch, context, query heads, kv heads, dtype
    (4, 8192, 32, 32, "float32"),
    (4, 8192, 32, 32, "bfloat16"),
    (4, 8192, 32, 8, "float32"),
    (1, 32768, 32, 32, "float32"),
)


def contiguous(cache, copy, request_ids, dtype) -> torch.Tensor:
    """Return K or V of all requests as one torch tensor, [B, G, tokens, D]."""
    tokens = [torch.from_numpy(copy(i)).to(dtype).transpose(0, 1) for i in request_ids]
    return torch.stack(tokens).contiguous()


def measure(case, iterations: int) -> dict:
    """Return the record of one case."""
    batch, context, heads, kv_heads, kv_dtype = case
    config = DecodeBenchConfig(
        batch_size=batch, min_context_tokens=context, max_context_tokens=context,
        num_heads=heads, num_kv_heads=kv_heads, head_dim=128, kv_dtype=kv_dtype,
    )  # fmt: skip
    data = fill_cache(config.model, make_workload(config))
    path, pool = make_path("dense_cpu", data.cache), data.cache.pool
    dtype = getattr(torch, kv_dtype)
    keys = contiguous(data.cache, data.cache.copy_keys, data.request_ids, dtype)
    values = contiguous(data.cache, data.cache.copy_values, data.request_ids, dtype)
    queries = torch.from_numpy(data.queries)[:, :, None].to(dtype)
    attention = torch.nn.functional.scaled_dot_product_attention
    samples = {"read_gbps": [], "dense_cpu_ms": [], "torch_sdpa_ms": []}
    for i in range(iterations + 1):
        gbps = measure_read_gbps(pool.keys, pool.values)
        result = path.decode(data.queries, data.request_ids)
        measure_read_gbps(pool.keys, pool.values)
        start = perf_counter()
        theirs = attention(queries, keys, values, enable_gqa=heads != kv_heads)
        torch_ms = (perf_counter() - start) * 1e3
        if i > 0:  # the first is a warm-up
            samples["read_gbps"].append(gbps)
            samples["dense_cpu_ms"].append(result.stages.total_ms)
            samples["torch_sdpa_ms"].append(torch_ms)
    statistics = {name: sample_statistics(values) for name, values in samples.items()}
    dense_ms = statistics["dense_cpu_ms"]["median"]
    gbps = pool.keys.nbytes * 2 / dense_ms / 1e6
    difference = np.abs(result.outputs - theirs[:, :, 0].float().numpy()).max()
    return {
        "bench": "versus_torch",
        "case": dict(zip(("batch", "context", "heads", "kv_heads", "dtype"), case, strict=True)),
        "environment": {
            **environment(), "torch": torch.__version__, "torch_threads": torch.get_num_threads()
        },
        **statistics,
        "dense_over_torch": statistics["torch_sdpa_ms"]["median"] / dense_ms,
        "bandwidth_fraction": gbps / statistics["read_gbps"]["median"],
        "max_abs_difference": float(difference),
    }  # fmt: skip


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--iterations", default=15, show_default=True)
def main(out: Path, iterations: int) -> None:
    """Measure every case and write one line of JSON for each."""
    torch.set_num_threads(numba.get_num_threads())
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w") as file:
        for case in CASES:
            record = measure(case, iterations)
            file.write(json.dumps(record) + "\n")
            click.echo(
                f"{case}: dense_cpu {record['dense_cpu_ms']['median']:.2f} ms "
                f"({record['bandwidth_fraction']:.2f} of the read bandwidth), torch "
                f"{record['torch_sdpa_ms']['median']:.2f} ms, {record['dense_over_torch']:.2f}x, "
                f"largest difference {record['max_abs_difference']:.1e}"
            )


if __name__ == "__main__":
    main()
