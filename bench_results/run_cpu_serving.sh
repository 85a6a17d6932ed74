#!/usr/bin/env bash
# Measures top-k and continuous batching on the CPU and writes the records, one JSON line per run.
#   bench_results/run_cpu_serving.sh DEVICE [AZURE_TRACE.csv]
# (an idle machine, the commit in place, the commands on PATH)
set -euo pipefail
cd "$(dirname "$0")/.."
device=${1:?usage: $0 DEVICE [AZURE_TRACE.csv]}
azure=${2:-}
stamp=$(date -u +%Y-%m-%d)_$(git rev-parse --short HEAD)
record=$(mktemp)
trap 'rm -f "$record"' EXIT

# args: bench folder, command [arguments]
measure() {
    local out=bench_results/$1/$device/$stamp.jsonl
    mkdir -p "$(dirname "$out")"
    "${@:2}" --json "$record" >/dev/null
    cat "$record" >>"$out"
}

measure topk dsd_topk_bench
measure topk dsd_topk_bench
measure topk dsd_topk_bench 256 2048 64 7 20 3

load=(dsd_continuous_bench 128 32 64 1024 4096 16 64 7 8 64 16 8)
measure continuous "${load[@]}"                              # the reference's default load, smaller heads
measure continuous "${load[@]}"
measure continuous "${load[@]}"
measure continuous "${load[@]}" direct_gpu_upload 1          # prompts before the loop
measure continuous "${load[@]}" direct_gpu_upload 1 0 0 0 1 1 dense_gpu
measure continuous "${load[@]}" --prefill packed --no-serial # prompts are work

# three requests decode while a prompt of 4,096 tokens arrives
stalled=(dsd_continuous_bench 4 4 0 64 64 16 16 7 8 64 16 8 --trace bench_results/traces/interactive.csv)
for prefill in blocking chunked packed; do
    for _ in 1 2 3; do measure continuous "${stalled[@]}" --prefill "$prefill"; done
done

if [ -n "$azure" ]; then # 2,000 requests of a server's day, a small layer, a budget that is short
    results=$PWD
    cd "$(dirname "$azure")" # the record names the file, not where it lies
    dsd_continuous_bench 2000 32 0 64 64 16 16 7 2 16 16 8 --trace "$(basename "$azure")" \
        --limit 2000 --prefill chunked --kv-budget 60000tok --json "$record" >/dev/null
    cat "$record" >>"$results/bench_results/continuous/$device/$stamp.jsonl"
fi
