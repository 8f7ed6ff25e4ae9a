#!/bin/sh
# prune.sh TAG: removes images that the kind cluster does not need from its nodes and its registry, and from this
# machine, and old layers from the build cache, so that disk usage does not grow with every build. Keeps TAG and `latest`
# of the images for DEVICE, and images that a container on the node uses.
#   DEVICE   cpu or cuda (cpu)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
bin=${AREAL_BIN:-$here/../../.bin}
tag=$1
registry=areal-registry
address=localhost:5000
repositories=/var/lib/registry/docker/registry/v2/repositories
build_cache=8GB
suffix=-cpu
if [ "${DEVICE:-cpu}" = cuda ]; then suffix=; fi

ours='(^|/)areal-(operator|sglang|trainer)'
kept="areal-operator:($tag|latest)\$|areal-(sglang|trainer):($tag|latest)$suffix\$"

log() { echo "prune: $*" >&2; }
# outdated: of names on stdin such as localhost:5000/areal-trainer:TAG, those of earlier contents or the other device.
outdated() { grep -E "$ours:" | grep -vE "$kept" || :; }

# An image on a node has a name for its tag, its digest and its ID each. Its layers go with the last of them.
prune_node() {
  containerd="docker exec $1 ctr --namespace k8s.io"
  used=$($containerd containers ls | awk 'NR > 1 {print $2}' | tr '\n' ' ')
  $containerd images ls | awk -v ours="$ours[:@]" -v kept="$kept" -v used="$used" '
    BEGIN { split(used, names, " "); for (i in names) is_used[names[i]] = 1 }
    NR > 1 {
      name[NR] = $1; image[NR] = $3
      if ($1 ~ ours) is_ours[$3] = 1
      if ($1 in is_used) in_use[$3] = 1
      if ($1 ~ kept) stays[$1] = stays[$3] = 1
    }
    END {
      for (i in name) {
        is_tag = name[i] ~ ours && name[i] !~ /@/
        if (is_ours[image[i]] && !in_use[image[i]] && !stays[name[i]] && (is_tag || !stays[image[i]])) print name[i]
      }
    }' | while read -r image; do
    $containerd images rm --sync "$image" >/dev/null
    case $image in *:5000/*:*) log "removed $image from $1" ;; esac
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

# What was pushed to the cluster's registry, and the same image under the name that it was built with.
prune_engine() {
  docker image ls --format '{{.Repository}}:{{.Tag}}' --filter "reference=$address/areal-*" | outdated |
    while read -r image; do
      docker image rm "$image" >/dev/null
      case $image in *:latest*) docker image rm "${image#"$address/"}" >/dev/null 2>&1 || : ;; esac
      log "removed $image from this machine"
    done
}

for node in $("$bin/kind" get nodes --name areal 2>/dev/null); do prune_node "$node"; done
prune_registry
prune_engine
docker builder prune --force --keep-storage $build_cache >/dev/null 2>&1 || log "the build cache could not be pruned"
