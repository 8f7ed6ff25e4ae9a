#!/usr/bin/env bash
# Train GSM8K with an AWorld agent: bash examples/aworld/run.sh [EXPERIMENT.yaml] [key=value …]
# The servers run in grpo's Python environment, the trainer in the one created by examples/aworld/setup.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

experiment=examples/aworld/gsm8k_grpo.yaml
if [[ ${1:-} == *.yaml ]]; then
  experiment=$1
  shift
fi
export AREAL_TRAINER_PYTHON=${AREAL_TRAINER_PYTHON:-.bin/aworld/bin/python}
[[ -x $AREAL_TRAINER_PYTHON ]] || examples/aworld/setup.sh
[[ -x .venv/bin/grpo ]] || make setup
exec .venv/bin/grpo run "$experiment" "$@"
