#!/usr/bin/env bash
# Create .bin/NAME/: a Python environment with the packages of examples/requirements/NAME.txt, and nothing of this project.
# Agent frameworks need other versions of packages than SGLang 0.5.23 does: openai, or protobuf in the case of AWorld.
# MLflow and Trackio (loggers) are tested in an environment of their own because the trainer works without them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

name=$1
uv=.bin/uv/bin/uv
[[ -x $uv ]] || make --silent $uv
[[ -x .bin/$name/bin/python ]] || $uv venv --quiet --python "${PYTHON:-python3}" ".bin/$name"
echo "Installing into .bin/$name/"
$uv pip sync --quiet --python ".bin/$name/bin/python" --compile-bytecode "examples/requirements/$name.txt"
