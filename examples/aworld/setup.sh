#!/usr/bin/env bash
# Create .bin/aworld/: a separate Python environment with the trainer and AWorld.
# AWorld 0.3.2 conflicts with SGLang 0.5.23: it requires protobuf < 6, SGLang requires protobuf >= 6.33.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

uv=.bin/uv/bin/uv
[[ -x $uv ]] || make --silent $uv
[[ -x .bin/aworld/bin/python ]] || $uv venv --quiet --python "${PYTHON:-python3}" .bin/aworld
echo "Installing the trainer and AWorld into .bin/aworld/"
$uv pip install --quiet --python .bin/aworld/bin/python --compile-bytecode \
  --constraints examples/aworld/constraints.txt --editable ".[aworld]"
