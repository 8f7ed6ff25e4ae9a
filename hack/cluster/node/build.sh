#!/bin/sh
# Builds a node image for kind from Debian packages and Go modules, for machines that cannot pull kind's own; and an
# image of a registry. Prints the node image's name; its tag is a digest of what it is built from, which the registry's
# image has too. A second call costs nothing. Needs Docker, Go, apt-get and root.
set -eu
LOCAL_PATH_PROVISIONER=v0.0.30
DEBIAN=bookworm
PACKAGES=systemd,systemd-sysv,dbus,iproute2,iptables,ebtables,containerd,runc,containernetworking-plugins,conntrack,\
ethtool,socat,kmod,procps,mount,ca-certificates,hostname,docker-registry
here=$(cd "$(dirname "$0")" && pwd)
bin=${AREAL_BIN:-$here/../../../.bin}

say() { echo "node image: $*" >&2; }
missing() { say "$*"; exit 3; }

# CoreDNS and the provisioner of volumes, with the same version of Kubernetes' libraries as Kubernetes itself.
build_addons() {
  mkdir "$1"
  cp "$here/coredns.go" "$1"
  (
    cd "$1"
    export CGO_ENABLED=0 GOFLAGS=-mod=mod
    {
      printf 'module node\ngo 1.26.0\ntool github.com/rancher/local-path-provisioner\nrequire (\n'
      printf '  github.com/coredns/coredns %s\n' "$coredns"
      printf '  github.com/rancher/local-path-provisioner %s\n' "$LOCAL_PATH_PROVISIONER"
      for library in api apimachinery client-go; do printf '  k8s.io/%s v0%s\n' $library "${kubernetes#v1}"; done
      echo ")"
    } >go.mod
    go mod tidy
    go build -trimpath -ldflags "-s -w" -o coredns .
    go build -trimpath -ldflags "-s -w" -o local-path-provisioner github.com/rancher/local-path-provisioner
  ) >"$bin/addons.log" 2>&1 || { tail -n 5 "$bin/addons.log" >&2; missing "cannot build CoreDNS; see $bin/addons.log"; }
}

make_root() {
  docker image inspect "$1" >/dev/null 2>&1 && return
  command -v mmdebstrap >/dev/null || {
    [ "$(id -u)" = 0 ] || missing "mmdebstrap is missing: on Debian, apt-get install mmdebstrap"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && apt-get install -qq --no-install-recommends -o DPkg::Lock::Timeout=120 mmdebstrap; } \
      >"$work/apt.log" 2>&1 || { tail -n 3 "$work/apt.log" >&2; missing "apt-get could not install mmdebstrap"; }
  }
  say "a Debian root (about 1 min)"
  mmdebstrap --quiet --variant=minbase --include="$PACKAGES" "$DEBIAN" "$work/root.tar" >&2
  docker import "$work/root.tar" "$1" >/dev/null
  rm "$work/root.tar"
}

# docker_build FILE TAG FILES…: with these files of the context and no others.
docker_build() {
  file=$1.Dockerfile tag=$2
  shift 2
  tar -C "$context" -c "$file" "$@" |
    docker build --quiet --build-arg "ROOT=$root" --file "$file" --tag "$tag" - >"$work/docker.log" 2>&1 ||
    { tail -n 5 "$work/docker.log" >&2; missing "$file could not be built"; }
}

build_images() {
  docker_build component areal.local/component:node kube local-path-provisioner pod-network
  docker_build coredns "registry.k8s.io/coredns/coredns:$coredns" coredns
  set -- areal.local/component:node "registry.k8s.io/coredns/coredns:$coredns"
  for name in $names; do
    case $name in *coredns*) continue ;; esac
    docker tag areal.local/component:node "$name"
    set -- "$@" "$name"
  done
  docker save --output "$context/images.tar" "$@"
  docker rmi "$@" >/dev/null
  docker_build registry "areal-registry:$key" registry.yaml
  docker_build node "areal-node:$key" kube entrypoint containerd.toml kubelet.service import-images.service \
    default-cni.yaml default-storage.yaml images.tar version
}

# Images of earlier keys go; those that a cluster still runs on stay.
remove_old() {
  for name in areal-node areal-registry; do
    docker image ls --format '{{.Repository}}:{{.Tag}}' "$name" | grep -v ":$key\$" |
      while read -r old; do docker image rm "$old" >/dev/null 2>&1 || say "$old is still in use"; done
  done
}

kube=$("$here/../build.sh")
kubernetes=$("$kube/kubeadm" version --output short)
names=$("$kube/kubeadm" config images list --kubernetes-version "$kubernetes")
coredns=$(echo "$names" | sed -n 's/.*coredns://p')
key=$( (cd "$here" && find . -type f | sort | xargs cat; basename "$kube") | sha256sum | cut -c1-12)
image=areal-node:$key
if ! docker image inspect "$image" "areal-registry:$key" >/dev/null 2>&1; then
  bin=$(mkdir -p "$bin" && cd "$bin" && pwd)
  work=$(mktemp -d "$bin/node-build.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  root=areal-node-root:$(echo "$DEBIAN $PACKAGES" | sha256sum | cut -c1-12)
  make_root "$root"
  say "CoreDNS $coredns and local-path-provisioner $LOCAL_PATH_PROVISIONER (about 2 min, 10 s from Go's cache)"
  build_addons "$work/addons"
  context=$work/context
  mkdir "$context"
  cp "$here"/* "$context"
  ln "$kube/kube" "$work/addons/coredns" "$work/addons/local-path-provisioner" "$context"
  echo "$kubernetes" >"$context/version"
  say "images (about 1 min)"
  build_images
  remove_old
fi
echo "$image"
