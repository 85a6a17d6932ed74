#!/usr/bin/env bash
# Measures what the CPU paths have to reach and writes the records, one JSON line per run.
#   bench_results/run_cpu_targets.sh DEVICE        (an idle machine, the commit in place, python and dsd_bench on PATH)
set -euo pipefail
cd "$(dirname "$0")/.."
device=${1:?usage: $0 DEVICE}
stamp=$(date -u +%Y-%m-%d)_$(git rev-parse --short HEAD)
out=bench_results/decode/$device/$stamp.jsonl
mkdir -p "$(dirname "$out")"
record=$(mktemp)
trap 'rm -f "$record"' EXIT

# args: top_k batch min max seed iterations warmup heads head_dim page_size [options]
measure() {
    dsd_bench "$@" --json "$record" | sed -n '/^== Verdict/,$p'
    cat "$record" >>"$out"
}

measure 8 4 8192 8192 7 15 2 32 128 16                                  # dense, fp32
measure 8 4 8192 8192 7 15 2 32 128 16 --kv-dtype bfloat16              # dense, half the bytes
measure 8 4 8192 8192 7 15 2 32 128 16 --num-kv-heads 8                 # dense, GQA: a quarter
measure 8 4 8192 8192 7 15 2 32 128 16 --num-kv-heads 8 --kv-dtype float16
measure 64 1 32768 32768 7 15 2 32 128 16                               # sparse, one long context
measure 8 16 4096 4096 7 15 2 32 128 16                                 # sparse, the reference's batch
measure 8 16 4096 4096 7 15 2 32 128 16 --staged                        # with the gather copy
measure 64 4 32768 32768 7 15 2 32 128 16 --num-kv-heads 8 --kv-dtype float16 \
    --summary minmax --share kv_head --sink-pages 1 --recent-pages 2 --data structured
measure                                                                 # the defaults
echo "$out"

if python -c "import torch" 2>/dev/null; then # the same shapes beside torch's attention
    out=bench_results/versus_torch/$device/$stamp.jsonl
    mkdir -p "$(dirname "$out")"
    measure 8 4 8192 8192 7 15 2 32 128 16 --paths dense_cpu --versus torch
    measure 8 4 8192 8192 7 15 2 32 128 16 --paths dense_cpu --versus torch --kv-dtype bfloat16
    measure 8 4 8192 8192 7 15 2 32 128 16 --paths dense_cpu --versus torch --num-kv-heads 8
    measure 8 1 32768 32768 7 15 2 32 128 16 --paths dense_cpu --versus torch
    measure 8 16 1024 4096 7 15 2 32 128 16 --paths dense_cpu --versus torch # contexts of any length
    echo "$out"
fi
