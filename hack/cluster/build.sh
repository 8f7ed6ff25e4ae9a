#!/bin/sh
# Builds Kubernetes from Go modules: one binary, and a link for each component. Prints the folder that holds them.
# The folder's name is a digest of what it was built from; a second call costs nothing.
set -eu
VERSION=${KUBERNETES_VERSION:-v1.36.3}
here=$(cd "$(dirname "$0")" && pwd)
bin=${AREAL_BIN:-$here/../../.bin}
components="etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubeadm kubectl"

command -v go >/dev/null || { echo "Go is missing; install Go 1.26 or newer to build Kubernetes from its modules" >&2; exit 3; }
key=$( (cat "$here/kube.go" "$here/build.sh"; echo "$VERSION"; go version) | sha256sum | cut -c1-16)
to=$bin/kubernetes-$key
if [ ! -x "$to/kubectl" ]; then
  mkdir -p "$bin"
  work=$(mktemp -d "$bin/kubernetes-build.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  mkdir "$work/source" "$work/out"
  cp "$here/kube.go" "$work/source/main.go"
  cd "$work/source"
  export CGO_ENABLED=0 GOFLAGS=-mod=mod
  go mod download "k8s.io/kubernetes@$VERSION"
  # Kubernetes requires its own libraries as v0.0.0; they are published under v0 with the same minor and patch.
  libraries=$(awk '/^\t?k8s.io\/[a-z-]+ =>/ {print $1}' "$(go env GOMODCACHE)/k8s.io/kubernetes@$VERSION/go.mod" | sort -u)
  {
    printf 'module cluster\ngo 1.26.0\nrequire k8s.io/kubernetes %s\nreplace (\n' "$VERSION"
    for library in $libraries; do echo "  $library => $library v0${VERSION#v1}"; done
    echo ")"
  } >go.mod
  go mod tidy
  minor=${VERSION#v1.}
  version=k8s.io/component-base/version
  go build -trimpath -o "$work/out/kube" -ldflags \
    "-s -w -X $version.gitVersion=$VERSION -X $version.gitMajor=1 -X $version.gitMinor=${minor%%.*}" .
  for component in $components; do ln -s kube "$work/out/$component"; done
  mv -T "$work/out" "$to" 2>/dev/null || [ -x "$to/kubectl" ]  # another build may have been quicker
fi
echo "$to"
