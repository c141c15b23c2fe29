#!/usr/bin/env bash
# What RESULTS.md says of a GPU: the tests that need one, then the benchmarks there; some 20 minutes in all.
# `gpu.sh first`, `second` and `third` are its parts. The model of 8B is written once, into $EMORG_BENCH (16 GB).
set -u
cd "$(dirname "$0")"
part=${1:-all} cache=${EMORG_BENCH:-/tmp/emorg-bench}
export PYTHONUNBUFFERED=1
run() { timeout 240 "$@" 2>&1 | grep -vE 'Warning|it/s' || echo "(stopped: $*)"; }
python -c 'import torch, transformers, peft; print(torch.__version__, transformers.__version__, peft.__version__, torch.cuda.get_device_name())'
if [ "$part" = all ] || [ "$part" = first ]; then
    (cd .. && run python -m pytest -q -p no:cacheprovider tests/test_cuda.py)
    run python bench_train.py --shape 1b --steps 12 --per_step 8 --contenders ours plain
    run python bench_sample.py --shape 1b --rows 256 --questions 8 --samples 50 --homework_answers 2 --contenders ours homework paper
    run python bench_margins.py --model 1b --pairs 120
fi
if [ "$part" = all ] || [ "$part" = second ]; then  # what docs/scale.md reckons with
    (cd .. && run python -m emorg.cli sweep small --workers 4 --output_dir "$cache/sweep")
    run python bench_train.py --shape 1b --cache "$cache" --steps 12 --per_step 64 --contenders ours
    run python bench_sample.py --shape 1b --cache "$cache" --rows 256 --questions 8 --samples 50 --organisms 8 --contenders ours
    run python bench_train.py --shape 8b --cache "$cache" --steps 8 --per_step 16 --contenders ours
    run python bench_sample.py --shape 8b --cache "$cache" --rows 256 --questions 8 --samples 50 --contenders ours
fi
if [ "$part" = all ] || [ "$part" = third ]; then
    run python bench_train.py --shape 1b --cache "$cache" --steps 12 --per_step 8 --contenders ours trl_best plain
    run python bench_train.py --shape 8b --cache "$cache" --steps 8 --per_step 16 --contenders ours trl_best plain
    run python bench_train.py --shape 1b --cache "$cache" --steps 12 --per_step 64 --contenders ours trl_best
fi
