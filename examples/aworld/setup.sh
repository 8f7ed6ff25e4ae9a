#!/usr/bin/env bash
# Create .bin/aworld/: a Python environment with AWorld, and nothing of this project.
# AWorld 0.3.2 requires protobuf below 6 and SGLang 0.5.23 requires it from 6.33, so they cannot share an environment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

uv=.bin/uv/bin/uv
[[ -x $uv ]] || make --silent $uv
[[ -x .bin/aworld/bin/python ]] || $uv venv --quiet --python "${PYTHON:-python3}" .bin/aworld
echo "Installing AWorld into .bin/aworld/"
$uv pip sync --quiet --python .bin/aworld/bin/python --compile-bytecode examples/aworld/requirements.txt
