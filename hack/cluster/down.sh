#!/bin/sh
# Removes the cluster and the registry. The registry's data is kept, so the next cluster needs no new push.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
bin=${AREAL_BIN:-$here/../../.bin}
if ! docker info >/dev/null 2>&1; then
  echo "no Docker engine responds: no cluster is running" >&2
  exit 0
fi
if [ -x "$bin/kind" ]; then "$bin/kind" delete cluster --name areal; fi
docker rm --force areal-registry >/dev/null 2>&1 || :
echo "The registry's data is kept; docker volume rm areal-registry removes it." >&2
