#!/usr/bin/env bash
# Create .bin/frameworks/: a Python environment with the agent frameworks of the examples, and nothing of this project.
# The newest releases need another version of openai than SGLang 0.5.23 does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

uv=.bin/uv/bin/uv
[[ -x $uv ]] || make --silent $uv
[[ -x .bin/frameworks/bin/python ]] || $uv venv --quiet --python "${PYTHON:-python3}" .bin/frameworks
echo "Installing agent frameworks into .bin/frameworks/"
$uv pip install --quiet --python .bin/frameworks/bin/python --compile-bytecode --requirement examples/frameworks.txt
