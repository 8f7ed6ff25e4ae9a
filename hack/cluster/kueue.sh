#!/bin/sh
# Builds Kueue from its Go module and prints the folder with the binary `kueue` and its manifests in config/. A second
# call costs nothing; the first takes about 8 minutes of CPU time.
set -eu
VERSION=v0.17.0
here=$(cd "$(dirname "$0")" && pwd)
bin=${AREAL_BIN:-$here/../../.bin}
mkdir -p "$bin"
bin=$(cd "$bin" && pwd)

command -v go >/dev/null || { echo "Go is missing; install Go 1.26 or newer to build Kueue from its module" >&2; exit 3; }
to=$bin/kueue-$VERSION
if [ ! -x "$to/kueue" ]; then
  work=$(mktemp -d "$bin/kueue-build.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  CGO_ENABLED=0 GOBIN=$work go install -trimpath -ldflags "-s -w" "sigs.k8s.io/kueue/cmd/kueue@$VERSION"
  cp -r --no-preserve=mode "$(go env GOMODCACHE)/sigs.k8s.io/kueue@$VERSION/config" "$work/config"
  mv -T "$work" "$to" 2>/dev/null || [ -x "$to/kueue" ] # another build may have been quicker
fi
echo "$to"
