#!/bin/sh
# prune.sh TAG: removes images of earlier contents from the nodes and the registry of the kind cluster, and old layers
# from the build cache, so that disk usage does not grow with every build. Keeps TAG, TAG-cpu, `latest` and `latest-cpu`,
# and images that a container on the node uses.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
bin=${AREAL_BIN:-$here/../../.bin}
tag=$1
registry=areal-registry
repositories=/var/lib/registry/docker/registry/v2/repositories
build_cache=8GB

log() { echo "prune: $*" >&2; }
# outdated: of names on stdin such as localhost:5000/areal-trainer:TAG, those of earlier contents.
outdated() { grep -E '(^|/)areal-(operator|sglang|trainer):' | grep -vE ":($tag|latest)(-cpu)?\$" || :; }

prune_node() {
  containerd="docker exec $1 ctr --namespace k8s.io"
  used=$($containerd containers ls | awk 'NR > 1 {print $2}')
  $containerd images ls --quiet | outdated | grep -vxF "$used" | while read -r image; do
    $containerd images rm --sync "$image" >/dev/null
    log "removed $image from $1"
  done
}

# The registry holds what it knows of its layers in memory: stop it while they are collected.
prune_registry() {
  old=$(docker exec $registry sh -c "cd $repositories 2>/dev/null && ls -d areal-*/_manifests/tags/*" |
    sed 's|/_manifests/tags/|:|' | outdated)
  [ -n "$old" ] || return 0
  for image in $old; do
    docker exec $registry rm -r "$repositories/${image%:*}/_manifests/tags/${image#*:}"
  done
  docker stop $registry >/dev/null
  docker run --rm --volumes-from $registry "$(docker inspect --format '{{.Config.Image}}' $registry)" \
    sh -c '$(command -v docker-registry registry | head -n 1) garbage-collect --delete-untagged /etc/docker/registry/config.yml' \
    >"$bin/prune.log" 2>&1 || log "the registry's layers could not be collected; see $bin/prune.log"
  docker start $registry >/dev/null
  timeout 60 sh -c 'until curl --silent --fail --output /dev/null http://localhost:5000/v2/; do sleep 1; done'
  log "removed from the registry:" $old
}

for node in $("$bin/kind" get nodes --name areal 2>/dev/null); do prune_node "$node"; done
prune_registry
docker builder prune --force --keep-storage $build_cache >/dev/null 2>&1 || log "the build cache could not be pruned"
