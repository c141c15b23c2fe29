#!/usr/bin/env bash
# Which scores find subtly bad training rows, and what training without their suspects does, beside controls.
# Writes docs/screening_results.md and its figures. Stop it and start it again: what is done is not done twice.
#   bash experiments/screen.sh                                               # pocket2: minutes on two cores
#   bash experiments/screen.sh --bases smollm2 --rows 120 --draws 0          # what is found on the real model: 20 minutes
#   bash experiments/screen.sh --bases smollm2 --rows 320                    # with its trainings: hours without a GPU
set -euo pipefail
${PYTHON:-python} -m experiments.screen "$@"
