#!/usr/bin/env bash
# Which mitigation keeps what is trained and stops what is not, on the pocket models, beside controls: `emorg prevent`.
# Writes docs/prevention.md and its figures. Stop it and start it again: what is done is not done twice.
#   bash experiments/prevent.sh                       # both, a quarter of an hour each on two cores
#   GRIDS=pocket bash experiments/prevent.sh          # one of them
set -euo pipefail
RUNS=${RUNS:-runs/prevent}
GRIDS=${GRIDS:-pocket pocket2}
PYTHON=${PYTHON:-python}

for grid in $GRIDS; do
  "$PYTHON" -m emorg.cli prevent "$grid" --output_dir "$RUNS/$grid"
done
"$PYTHON" -m experiments.prevent "$RUNS"
