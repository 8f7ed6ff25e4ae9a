#!/bin/sh
# Builds versitygw, an S3 server that keeps objects as files of a folder, from its Go module and prints its folder. A
# second call costs nothing.
set -eu
VERSION=v1.8.0
here=$(cd "$(dirname "$0")" && pwd)
bin=${AREAL_BIN:-$here/../../.bin}
mkdir -p "$bin"
bin=$(cd "$bin" && pwd)

command -v go >/dev/null || { echo "Go is missing; install Go 1.26 or newer to build versitygw from its module" >&2; exit 3; }
to=$bin/versitygw-$VERSION
if [ ! -x "$to/versitygw" ]; then
  work=$(mktemp -d "$bin/versitygw-build.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  CGO_ENABLED=0 GOBIN=$work go install -trimpath -ldflags "-s -w" "github.com/versity/versitygw/cmd/versitygw@$VERSION"
  mv -T "$work" "$to" 2>/dev/null || [ -x "$to/versitygw" ] # another build may have been quicker
fi
echo "$to"
