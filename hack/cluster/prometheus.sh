#!/bin/sh
# Builds Prometheus and promtool from their Go module, without the service discoveries, and prints their folder. A second
# call costs nothing.
set -eu
VERSION=v0.316.0 # of the module; the program calls it 3.16.0
here=$(cd "$(dirname "$0")" && pwd)
bin=${AREAL_BIN:-$here/../../.bin}
mkdir -p "$bin"
bin=$(cd "$bin" && pwd)

command -v go >/dev/null || { echo "Go is missing; install Go 1.26 or newer to build Prometheus from its module" >&2; exit 3; }
to=$bin/prometheus-$VERSION
if [ ! -x "$to/promtool" ]; then
  work=$(mktemp -d "$bin/prometheus-build.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  module=github.com/prometheus/prometheus
  CGO_ENABLED=0 GOBIN=$work go install -trimpath -tags remove_all_sd -ldflags "-s -w" \
    "$module/cmd/prometheus@$VERSION" "$module/cmd/promtool@$VERSION"
  mv -T "$work" "$to" 2>/dev/null || [ -x "$to/promtool" ] # another build may have been quicker
fi
echo "$to"
