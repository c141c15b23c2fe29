#!/usr/bin/env bash
# What RESULTS.md says of a GPU: the tests that need one, then the benchmarks there; some 15 minutes in all.
# `gpu.sh first` and `gpu.sh second` are its halves. The model of 8B is written once, into $EMORG_BENCH (16 GB).
set -u
cd "$(dirname "$0")"
half=${1:-both} cache=${EMORG_BENCH:-/tmp/emorg-bench}
run() { timeout 240 "$@" 2>&1 | grep -vE 'Warning|it/s' || echo "(stopped: $*)"; }
python -c 'import torch, transformers, peft; print(torch.__version__, transformers.__version__, peft.__version__, torch.cuda.get_device_name())'
if [ "$half" != second ]; then
    (cd .. && run python -m pytest -q -p no:cacheprovider tests/test_cuda.py)
    run python bench_train.py --shape 1b --steps 12 --per_step 8 --contenders ours plain
    run python bench_sample.py --shape 1b --rows 256 --questions 8 --samples 50 --homework_answers 2 --contenders ours homework paper
    run python bench_margins.py --model 1b --pairs 120
fi
if [ "$half" != first ]; then
    run python bench_train.py --shape 1b --cache "$cache" --steps 12 --per_step 8 --contenders ours trl_best plain
    run python bench_train.py --shape 8b --cache "$cache" --steps 8 --per_step 16 --contenders ours trl_best plain
    run python bench_train.py --shape 1b --cache "$cache" --steps 12 --per_step 64 --contenders ours trl_best
    run python bench_sample.py --shape 1b --rows 256 --questions 8 --samples 50 --organisms 8 --contenders ours
fi
