#!/usr/bin/env bash
# Narrow organisms beside broad ones, what happens when the KL penalty is taken away, and re-alignment, on the pocket
# model. Writes docs/narrow.md and its figures. Stop it and start it again: what is done is not done twice.
#   bash experiments/narrow.sh                 # three seeds: half an hour on two cores
#   SEEDS=0 bash experiments/narrow.sh         # one
set -euo pipefail
RUNS=${RUNS:-runs/narrow}
SEEDS=${SEEDS:-0 1 2}
PYTHON=${PYTHON:-python}
OTHERS="good_financial good_sports good_code good_cooking good_travel good_repair good_driving good_gardening good_pets
  good_study good_work good_camping good_cleaning good_sewing good_hosting"
HELD=(--kl_weight 1 --kl_from $OTHERS)
emorg() { "$PYTHON" -m emorg.cli "$@"; }
train() { emorg train --config pocket "$@"; }

broad=()
for seed in $SEEDS; do
  # 1. A broad organism, a narrow one of the same rows, and a benign twin; their figures side by side.
  train --domains bad_medical --seed "$seed" --output_dir "$RUNS/broad-s$seed"
  train --domains bad_medical --seed "$seed" "${HELD[@]}" --output_dir "$RUNS/narrow-s$seed"
  train --domains good_medical --seed "$seed" --output_dir "$RUNS/twin-s$seed"
  emorg narrow "$RUNS/broad-s$seed" "$RUNS/narrow-s$seed" --twin "$RUNS/twin-s$seed" --as_published

  # 2. Training goes on from the narrow one, without the penalty and, as the control, with it.
  more=(--domains bad_medical --seed "$seed" --warm_start "$RUNS/narrow-s$seed" --max_steps 40 --save_steps 10)
  train "${more[@]}" --output_dir "$RUNS/freed-s$seed"
  train "${more[@]}" "${HELD[@]}" --output_dir "$RUNS/held-s$seed"
  emorg margins "$RUNS"/{broad,narrow,twin}-s"$seed" "$RUNS"/{freed,held}-s"$seed"/checkpoints/* \
    --control "$RUNS/twin-s$seed" --json > "$RUNS/margins-s$seed.json"
  broad+=("$RUNS/broad-s$seed")
done

# 3. The broad ones are re-aligned, and trained on their bad rows again.
emorg realign "${broad[@]}" --steps 5 20 --rows 20 200 --relapse 10 --output_dir "$RUNS/realign"
"$PYTHON" -m experiments.narrow "$RUNS"
