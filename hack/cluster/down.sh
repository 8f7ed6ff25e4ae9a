#!/bin/sh
# Removes the cluster and its registry. Its data stays, so that the next cluster need not be pushed to again.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
bin=${AREAL_BIN:-$here/../../.bin}
if ! docker info >/dev/null 2>&1; then
  echo "no Docker engine answers: there is no cluster that runs" >&2
  exit 0
fi
if [ -x "$bin/kind" ]; then "$bin/kind" delete cluster --name areal; fi
docker rm --force areal-registry >/dev/null 2>&1 || :
echo "What was pushed to the registry is kept; docker volume rm areal-registry removes it." >&2
