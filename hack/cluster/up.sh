#!/bin/sh
# Brings up what the end-to-end tests and a first try need, and leaves alone what is up: a Docker engine, a kind cluster
# of two nodes named areal, a registry on localhost:5000 that its nodes reach, and this project's images in it.
# Nodes are kind's own where Docker Hub can be reached, else of an image that node/build.sh builds.
#   NODES=stock|own  do not try, take these
set -eu
CLUSTER=areal
STOCK_NODE=kindest/node:v1.37.0 # what kind v0.33.0 is made for
STOCK_REGISTRY=registry:2
REGISTRY=areal-registry
PORT=5000
here=$(cd "$(dirname "$0")" && pwd)
bin=${AREAL_BIN:-$here/../../.bin}
mkdir -p "$bin"
bin=$(cd "$bin" && pwd)
began=$(date +%s)

say() { printf '%4d s  %s\n' $(($(date +%s) - began)) "$*" >&2; }
missing() { say "$*"; exit 3; }
kubectl() { "$bin/kubectl" --context "kind-$CLUSTER" "$@"; }
there() { docker image inspect "$1" >/dev/null 2>&1; }
nodes() { "$bin/kind" get nodes --name "$CLUSTER" 2>/dev/null; }

# pull IMAGE: whether it is here in the end. Where Docker Hub does not answer within 20 s it is not waited for.
pull() {
  there "$1" && return
  docker pull "$1" >"$bin/pull.log" 2>&1 &
  puller=$! waited=0
  while kill -0 $puller 2>/dev/null; do
    if [ $waited -ge 20 ] && ! grep -q 'Pulling from' "$bin/pull.log"; then kill $puller; fi
    waited=$((waited + 1))
    sleep 1
  done
  wait $puller 2>/dev/null || return 1
}

# nodes_there: of which kind the cluster is that is there; nothing without one.
nodes_there() {
  case $(docker inspect --format '{{.Config.Image}}' $CLUSTER-control-plane 2>/dev/null) in
  kindest/*) echo stock ;;
  areal-node:*) echo own ;;
  esac
}

choose_nodes() {
  case ${NODES:-$(nodes_there)} in
  "") if pull $STOCK_NODE; then NODES=stock; else NODES=own; say "$STOCK_NODE cannot be pulled"; fi ;;
  stock)
    pull $STOCK_NODE || missing "$STOCK_NODE cannot be pulled: $(tail -n 1 "$bin/pull.log")"
    NODES=stock
    ;;
  own) NODES=own ;;
  *) missing "NODES is $NODES; it may be stock, own, or empty to find out" ;;
  esac
  if [ "$NODES" = stock ]; then
    say "nodes are kind's own, $STOCK_NODE"
    node_image=$STOCK_NODE
    node_config=$here/kind.yaml
  else
    node_image=$("$here/node/build.sh")
    say "nodes are of our own image, $node_image"
    node_config=$here/node/kind.yaml
  fi
}

# wake: whether the cluster that is there works, started again where it was stopped.
wake() {
  for node in $(nodes | sort); do # the control plane comes first
    state=$(docker inspect --format '{{.State.Running}} {{.Config.Image}}' "$node")
    case $state in
    *"$node_image"*) ;;
    *) say "$node is of another image"; return 1 ;;
    esac
    case $state in
    true*) ;;
    *) say "starting $node"; docker start "$node" >/dev/null ;;
    esac
  done
  "$bin/kind" export kubeconfig --name "$CLUSTER" --quiet
  ready
}

# ready: whether nodes, DNS and storage are, within three minutes.
ready() {
  deadline=$(($(date +%s) + 180))
  until everything_ready; do
    [ "$(date +%s)" -lt $deadline ] || { say "not ready within 180 s"; return 1; }
    sleep 1
  done
}

# Objects say for a while what was true before a stop, so kubelets, kube-proxies and DNS are asked themselves.
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

# kind gives nodes 30 s to boot, which a machine that is busy may need: it is tried three times.
make_cluster() {
  for attempt in 1 2 3; do
    say "creating the cluster$([ $attempt = 1 ] || echo ", attempt $attempt")"
    "$bin/kind" delete cluster --name "$CLUSTER" --quiet
    if "$bin/kind" create cluster --config "$node_config" --image "$node_image" --retain >"$bin/kind.log" 2>&1 && ready
    then return; fi
    tail -n 5 "$bin/kind.log" >&2
    "$bin/kind" export logs --name "$CLUSTER" "$bin/kind-logs" >/dev/null 2>&1 || :
  done
  "$bin/kind" delete cluster --name "$CLUSTER" --quiet
  missing "the cluster did not come up; see $bin/kind.log and $bin/kind-logs"
}

# The registry is a container with a volume: it comes back with the engine, and its data outlives it.
run_registry() {
  state=$(docker inspect --format '{{.State.Running}}' $REGISTRY 2>/dev/null || :)
  if [ -z "$state" ]; then
    image=$REGISTRY:${node_image#*:} # built with the nodes' image
    if [ "$NODES" = stock ]; then
      image=$STOCK_REGISTRY
      pull $image || missing "$image cannot be pulled: $(tail -n 1 "$bin/pull.log")"
    fi
    docker run --detach --name $REGISTRY --restart always --publish 127.0.0.1:$PORT:5000 \
      --volume $REGISTRY:/var/lib/registry "$image" >"$bin/registry.log" 2>&1 || {
      docker rm --force $REGISTRY >/dev/null 2>&1
      missing "the registry did not start; is something else on port $PORT? $(tail -n 1 "$bin/registry.log")"
    }
  elif [ "$state" = false ]; then
    docker start $REGISTRY >/dev/null
  fi
  waited=0
  until curl --silent --fail --output /dev/null http://localhost:$PORT/v2/; do
    waited=$((waited + 1))
    [ $waited -lt 30 ] || missing "the registry on localhost:$PORT does not answer: docker logs $REGISTRY"
    sleep 1
  done
}

# In the nodes, localhost:5000 means the registry's container.
connect_registry() {
  networks=$(docker inspect --format '{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}' $REGISTRY)
  case " $networks" in *" kind "*) ;; *) docker network connect kind $REGISTRY ;; esac
  for node in $(nodes); do
    printf '[host."http://%s:5000"]\n' $REGISTRY |
      docker exec --interactive "$node" sh -c "d=/etc/containerd/certs.d/localhost:$PORT; mkdir -p \$d; cat >\$d/hosts.toml"
  done
}

tell() {
  say "the cluster is up: $(kubectl get nodes --no-headers | awk '{printf "%s%s %s", sep, $1, $2; sep = ", "}')"
  cat <<END

  .bin/kubectl get nodes                                    # context kind-$CLUSTER
  .bin/helm install areal-gsm8k helm/areal-gsm8k \\
    --set image.registry=localhost:$PORT --set image.tag=latest --set experiment.enabled=false
  .bin/kubectl apply -f examples/tiny/experiment.yaml
  .bin/kubectl get grpo --watch

END
  [ "$NODES" = stock ] || echo "These nodes do not enforce network policies; kind's own nodes do."
}

exec 9>"$bin/cluster.lock"
flock --nonblock 9 || { say "another call is at work; waiting for it"; flock 9; }
say "tools"
"$here/tools.sh"
say "Docker engine"
"$here/docker.sh"
choose_nodes
if [ -z "$(nodes)" ] || ! wake; then make_cluster; fi
say "registry on localhost:$PORT"
run_registry
connect_registry
say "images"
tag=$("$here/images.sh")
echo "$tag" >"$bin/images.tag"
tell
