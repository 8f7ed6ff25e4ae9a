#!/bin/sh
# Puts kind, kubectl and helm into .bin/: links to those on the PATH if their versions are suitable, otherwise builds of
# their Go modules. A second call does nothing.
set -eu
KIND=v0.33.0
HELM=v4.3.1
here=$(cd "$(dirname "$0")" && pwd)
bin=${AREAL_BIN:-$here/../../.bin}
mkdir -p "$bin"
bin=$(cd "$bin" && pwd)

log() { echo "tools: $*" >&2; }

# at_least VERSION MINIMUM: compares versions such as v1.2.3.
at_least() {
  [ -n "$1" ] && [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]
}

# use NAME PROGRAM
use() {
  ln -sfn "$2" "$bin/$1"
}

# build NAME VERSION MODULE WHERE: one program of a Go module, in a folder named after its version.
build() {
  to=$bin/$1-$2
  if [ ! -x "$to/$1" ]; then
    command -v go >/dev/null || {
      log "$1 is missing: install Go 1.26 or newer, which builds it, or put $1 $2 on the PATH ($4)"
      exit 3
    }
    log "building $1 $2"
    CGO_ENABLED=0 GOBIN=$to go install -trimpath -ldflags "-s -w" "$3@$2" >"$bin/$1.log" 2>&1 ||
      { tail -n 3 "$bin/$1.log" >&2; log "cannot build $1; see $bin/$1.log"; exit 3; }
  fi
  use "$1" "$1-$2/$1"
}

on_path() { PATH=$(echo "$PATH" | tr ':' '\n' | grep -vxF "$bin" | paste -sd:) command -v "$1"; }

version_of() {
  case $1 in
  kind) "$2" version --quiet 2>/dev/null | sed 's/^v*/v/' ;;
  helm) "$2" version --template '{{.Version}}' 2>/dev/null ;;
  kubectl) "$2" version --client 2>/dev/null | sed -n 's/^Client Version: \(v[0-9.]*\).*/\1/p' ;;
  esac
}

# link_from_path NAME MINIMUM: links the program on the PATH if it is new enough.
link_from_path() {
  program=$(on_path "$1") || return 1
  at_least "$(version_of "$1" "$program")" "$2" && use "$1" "$program"
}

link_from_path kind $KIND || build kind $KIND sigs.k8s.io/kind https://kind.sigs.k8s.io
link_from_path helm v3.16.0 || build helm $HELM helm.sh/helm/v4/cmd/helm https://helm.sh
# Kubernetes supports kubectl one minor version older than the API server.
link_from_path kubectl v1.35.0 || use kubectl "$("$here/build.sh")/kubectl"
