#!/usr/bin/env bash
# A small sweep by both engines, processes here and a Ray of its own: the same bits, minutes on two cores.
# Stop it and start it again: what is done is not done twice. Ray: pip install 'emorg[sweep]'
#   bash experiments/sweep.sh
set -euo pipefail
RUNS=${RUNS:-runs/sweep}
PYTHON=${PYTHON:-python}
emorg() { "$PYTHON" -m emorg.cli "$@"; }

# 1. Two worker processes, a thread each.
emorg sweep experiments/sweep.yaml --output_dir "$RUNS/here" --workers 2 --threads 1

# 2. Two actors of a Ray cluster that is started for it.
emorg sweep experiments/sweep.yaml --output_dir "$RUNS/ray" --address local --workers 2 --threads 1

# 3. The same adapters, bit by bit, and the same answers.
for cell in "$RUNS"/here/*/; do
  name=$(basename "$cell")
  [ ! -d "$cell/adapter" ] || cmp "$cell/adapter/adapter_model.safetensors" "$RUNS/ray/$name/adapter/adapter_model.safetensors"
  [ ! -f "$cell/answers.jsonl" ] || cmp <(sort "$cell/answers.jsonl") <(sort "$RUNS/ray/$name/answers.jsonl")
done
echo "the cells of $RUNS/here and $RUNS/ray are the same, bit by bit"

# 4. One table, rates over seeds, figures.
emorg collect "$RUNS/here"
