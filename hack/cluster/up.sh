#!/bin/sh
# Brings up a Docker engine, a two-node kind cluster named areal, a registry on localhost:5000 that its nodes can reach,
# and this project's images in that registry. Components that are already up are left alone.
# Nodes use kind's image if Docker Hub is reachable, otherwise one built by node/build.sh.
#   NODES=stock|own  choose the node image
#   DEVICE=cpu|cuda  the images to build (cpu); those of the other device are removed
set -eu
CLUSTER=areal
STOCK_NODE=kindest/node:v1.37.0 # the default of kind v0.33.0
STOCK_REGISTRY=registry:2
REGISTRY=areal-registry
PORT=5000
here=$(cd "$(dirname "$0")" && pwd)
bin=${AREAL_BIN:-$here/../../.bin}
mkdir -p "$bin"
bin=$(cd "$bin" && pwd)
began=$(date +%s)

log() { printf '%4d s  %s\n' $(($(date +%s) - began)) "$*" >&2; }
unavailable() { log "$*"; exit 3; }
kubectl() { "$bin/kubectl" --context "kind-$CLUSTER" "$@"; }
image_exists() { docker image inspect "$1" >/dev/null 2>&1; }
nodes() { "$bin/kind" get nodes --name "$CLUSTER" 2>/dev/null; }

# pull IMAGE: succeeds if the image is present afterwards. Gives up if Docker Hub does not respond within 20 s.
pull() {
  image_exists "$1" && return
  docker pull "$1" >"$bin/pull.log" 2>&1 &
  puller=$! waited=0
  while kill -0 $puller 2>/dev/null; do
    if [ $waited -ge 20 ] && ! grep -q 'Pulling from' "$bin/pull.log"; then kill $puller; fi
    waited=$((waited + 1))
    sleep 1
  done
  wait $puller 2>/dev/null || return 1
}

# existing_nodes: prints stock or own for an existing cluster, nothing without one.
existing_nodes() {
  case $(docker inspect --format '{{.Config.Image}}' $CLUSTER-control-plane 2>/dev/null) in
  kindest/*) echo stock ;;
  areal-node:*) echo own ;;
  esac
}

choose_nodes() {
  case ${NODES:-$(existing_nodes)} in
  "") if pull $STOCK_NODE; then NODES=stock; else NODES=own; log "$STOCK_NODE cannot be pulled"; fi ;;
  stock)
    pull $STOCK_NODE || unavailable "$STOCK_NODE cannot be pulled: $(tail -n 1 "$bin/pull.log")"
    NODES=stock
    ;;
  own) NODES=own ;;
  *) unavailable "NODES is $NODES; set it to stock or own, or leave it empty to choose automatically" ;;
  esac
  if [ "$NODES" = stock ]; then
    log "using kind's node image, $STOCK_NODE"
    node_image=$STOCK_NODE
    node_config=$here/kind.yaml
  else
    node_image=$("$here/node/build.sh")
    log "using our node image, $node_image"
    node_config=$here/node/kind.yaml
  fi
}

# resume_cluster: restarts stopped nodes; succeeds if the cluster works.
resume_cluster() {
  for node in $(nodes | sort); do # the control plane comes first
    state=$(docker inspect --format '{{.State.Running}} {{.Config.Image}}' "$node")
    case $state in
    *"$node_image"*) ;;
    *) log "$node uses another image"; return 1 ;;
    esac
    case $state in
    true*) ;;
    *) log "starting $node"; docker start "$node" >/dev/null ;;
    esac
  done
  "$bin/kind" export kubeconfig --name "$CLUSTER" --quiet
  ready
}

# ready: succeeds once nodes, DNS and storage are ready; waits up to three minutes.
ready() {
  deadline=$(($(date +%s) + 180))
  until everything_ready; do
    [ "$(date +%s)" -lt $deadline ] || { log "not ready within 180 s"; return 1; }
    sleep 1
  done
}

# After a restart the API objects show stale states for a while, so probe kubelets, kube-proxies and DNS directly.
everything_ready() {
  for node in $CLUSTER-control-plane $CLUSTER-worker; do
    kubectl get --raw "/api/v1/nodes/$node/proxy/healthz" >/dev/null 2>&1 &&
      kubectl get --raw "/api/v1/nodes/$node:10256/proxy/healthz" >/dev/null 2>&1 || return 1
  done
  kubectl wait --for=condition=Ready nodes --all --timeout=1s >/dev/null 2>&1 &&
    kubectl get --raw /api/v1/namespaces/kube-system/services/kube-dns:metrics/proxy/metrics >/dev/null 2>&1 &&
    rolled_out kube-system coredns &&
    rolled_out local-path-storage local-path-provisioner
}

rolled_out() {
  kubectl --namespace "$1" rollout status "deployment/$2" --timeout=1s >/dev/null 2>&1
}

# kind allows nodes 30 s to boot, which may not be enough on a busy machine: try three times.
create_cluster() {
  for attempt in 1 2 3; do
    log "creating the cluster$([ $attempt = 1 ] || echo ", attempt $attempt")"
    "$bin/kind" delete cluster --name "$CLUSTER" --quiet
    if "$bin/kind" create cluster --config "$node_config" --image "$node_image" --retain >"$bin/kind.log" 2>&1 && ready
    then return; fi
    tail -n 5 "$bin/kind.log" >&2
    "$bin/kind" export logs --name "$CLUSTER" "$bin/kind-logs" >/dev/null 2>&1 || :
  done
  "$bin/kind" delete cluster --name "$CLUSTER" --quiet
  unavailable "the cluster did not come up; see $bin/kind.log and $bin/kind-logs"
}

# The registry is a container with a volume: it restarts with the engine, and its data outlives it.
run_registry() {
  state=$(docker inspect --format '{{.State.Running}}' $REGISTRY 2>/dev/null || :)
  if [ -z "$state" ]; then
    image=$REGISTRY:${node_image#*:} # built together with the node image
    if [ "$NODES" = stock ]; then
      image=$STOCK_REGISTRY
      pull $image || unavailable "$image cannot be pulled: $(tail -n 1 "$bin/pull.log")"
    fi
    docker run --detach --name $REGISTRY --restart always --publish 127.0.0.1:$PORT:5000 \
      --volume $REGISTRY:/var/lib/registry "$image" >"$bin/registry.log" 2>&1 || {
      docker rm --force $REGISTRY >/dev/null 2>&1
      unavailable "the registry did not start; is something else on port $PORT? $(tail -n 1 "$bin/registry.log")"
    }
  elif [ "$state" = false ]; then
    docker start $REGISTRY >/dev/null
  fi
  waited=0
  until curl --silent --fail --output /dev/null http://localhost:$PORT/v2/; do
    waited=$((waited + 1))
    [ $waited -lt 30 ] || unavailable "the registry on localhost:$PORT does not answer: docker logs $REGISTRY"
    sleep 1
  done
}

# On the nodes, localhost:5000 resolves to the registry's container.
connect_registry() {
  networks=$(docker inspect --format '{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}' $REGISTRY)
  case " $networks" in *" kind "*) ;; *) docker network connect kind $REGISTRY ;; esac
  for node in $(nodes); do
    printf '[host."http://%s:5000"]\n' $REGISTRY |
      docker exec --interactive "$node" sh -c "d=/etc/containerd/certs.d/localhost:$PORT; mkdir -p \$d; cat >\$d/hosts.toml"
  done
}

print_usage() {
  log "the cluster is up: $(kubectl get nodes --no-headers | awk '{printf "%s%s %s", sep, $1, $2; sep = ", "}')"
  cat <<END

  .bin/kubectl get nodes                                    # context kind-$CLUSTER
  .bin/helm install areal-gsm8k helm/areal-gsm8k \\
    --set image.registry=localhost:$PORT --set image.tag=latest --set experiment.enabled=false
  .bin/kubectl apply -f examples/tiny/experiment.yaml
  .bin/kubectl get grpo --watch

END
  [ "$NODES" = stock ] || echo "These nodes do not enforce network policies; kind's stock nodes do."
}

exec 9>"$bin/cluster.lock"
flock --nonblock 9 || { log "another call is running; waiting for it"; flock 9; }
log "tools"
"$here/tools.sh"
log "Docker engine"
"$here/docker.sh"
choose_nodes
if [ -z "$(nodes)" ] || ! resume_cluster; then create_cluster; fi
log "registry on localhost:$PORT"
run_registry
connect_registry
log "images"
tag=$("$here/images.sh")
echo "$tag" >"$bin/images.tag"
"$here/prune.sh" "$tag"
print_usage
