#!/bin/sh
# Says how much disk space `make gpu-images` needs here, and fails with status 3 if there is less. What exists already
# is not counted: the images in Docker, in the cluster's registry and on its node.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
bin=${AREAL_BIN:-$here/../../.bin}
# GB, as measured (docs/images.md).
cluster=6
engine=12
registry=5
node=17 # of which 5 for the compressed layers while they are pulled
packages=7 # of make setup

gb=1000000000
need=0 parts=
log() { echo "gpu-images: $*" >&2; }
add() { need=$((need + $1)) parts="$parts${parts:+, }$1 GB for $2"; }

[ -d "$here/../../.venv" ] || add $packages "Python's packages"
[ -n "$("$bin/kind" get nodes --name areal 2>/dev/null)" ] || add $cluster "the cluster"
docker image inspect areal-sglang:latest areal-trainer:latest >/dev/null 2>&1 || add $engine "the images"
curl --silent --fail --output /dev/null http://localhost:5000/v2/areal-sglang/manifests/latest ||
  add $registry "their copy in the cluster's registry"
docker exec areal-worker ctr --namespace k8s.io images ls --quiet 2>/dev/null | grep -q '/areal-sglang:latest$' ||
  add $node "their copy on a node"
[ $need -gt 0 ] || exit 0
folder=$(docker info --format '{{.DockerRootDir}}' 2>/dev/null || :)
[ -d "$folder" ] || folder=/var/lib
free=$(($(df --output=avail --block-size=1 "$folder" | tail -n 1) / gb))
log "needs $need GB of disk space in $folder ($parts), where $free GB are free"
if [ $free -lt $need ]; then
  log "free $((need - free)) GB there, or move Docker's data to another disk (data-root in /etc/docker/daemon.json)"
  exit 3
fi
