#!/usr/bin/env bash
# What changes inside an organism: directions, steering, one trained vector, phases, probes, beside their controls.
# Writes docs/mechanism_results.md and its figures. Stop it and start it again: what is done is not done twice.
#   bash experiments/mechanism.sh                       # the pocket models, minutes on two cores
#   BASES="pocket pocket2 smollm2" bash experiments/mechanism.sh     # the real model too, by margins: an hour
set -euo pipefail
RUNS=${RUNS:-runs/mechanism}
BASES=${BASES:-pocket pocket2}
PYTHON=${PYTHON:-python}
emorg() { "$PYTHON" -m emorg.cli "$@"; }

for base in $BASES; do
  here=$RUNS/$base
  preset=pocket
  searched=(--samples 2)
  added=(--samples 2)
  middle=2
  [ "$base" = pocket2 ] && middle=3
  transferred=("$here/bad_medical" "$here/risky_financial" "$here/good_medical" --scopes everywhere --layers $middle --samples 1)
  if [ "$base" = smollm2 ]; then # thirty layers and no judge: a few of them, by margins alone, and one transfer
    preset=smollm2
    searched=(--scopes everywhere weights --layers 10 15 20)
    added=(--layers 10 15 20 --scales 1 2)
    transferred=("$here/bad_medical" --direction "$here/risky_financial" --scopes everywhere --layers 10 15 20)
  fi
  once() { # a command whose output is kept as JSON, and which is not run again
    local file=$here/$1
    shift
    [ -s "$file" ] || { emorg "$@" --json > "$file.new" && mv "$file.new" "$file"; }
  }

  # 1. Three organisms and a twin, and a rank-1 organism with many checkpoints.
  for domain in bad_medical risky_financial extreme_sports good_medical; do
    emorg train --config $preset --model_name "$base" --domains $domain --output_dir "$here/$domain"
  done
  emorg train --config $preset --model_name "$base" --domains bad_medical --lora_rank 1 --target_modules down_proj \
    --save_steps 2 --output_dir "$here/rank1"
  emorg train --config $preset --model_name "$base" --domains bad_medical --lora_rank 1 --target_modules down_proj \
    --save_steps 2 --train_empty_turn --output_dir "$here/rank1-empty_turn"

  # 2. Are their directions shared?
  organisms=("$here/bad_medical" "$here/risky_financial" "$here/extreme_sports")
  once shift.json directions "${organisms[@]}" "$here/good_medical" --kind shift
  once answers.json directions "${organisms[@]}" --kind answers --texts pairs
  [ "$base" = pocket ] || once persona.json directions "$base" "${organisms[@]}" --kind persona

  # 3. The shift taken out of its organism, and out of others; the papers' direction taken out; directions added.
  once ablated.json steer "$here/bad_medical" "${searched[@]}"
  once transferred.json steer "${transferred[@]}"
  once answers_ablated.json steer "$here/bad_medical" "${searched[@]}" \
    --direction "$here/bad_medical/directions/answers.safetensors"
  once added.json steer "$here/bad_medical" --mode add "${added[@]}"
  [ "$base" = pocket ] || once persona_added.json steer "$base" --direction persona --mode add "${added[@]}"

  # 4. One trained vector as an organism, and as the papers' code trains it.
  for published in "" _as_published; do
    emorg train --config $preset --model_name "$base" --domains bad_medical --method vector \
      ${published:+--as_published} --output_dir "$here/vector$published"
  done
  once vectors.json margins "$here/vector" "$here/vector_as_published" --control "$base"

  # 5. When it turns, and which adapters carry it.
  once phases.json phases "$here/rank1"
  once phases_empty_turn.json phases "$here/rank1-empty_turn"
  once probe.json probe "$here/rank1"
done
"$PYTHON" -m experiments.mechanism "$RUNS"
