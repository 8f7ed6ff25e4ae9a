#!/bin/sh
# Installs Debian's Chromium, which tests/browser drives. Does nothing if a Chromium is installed.
# Exits with 3 and the reason if it cannot be installed here.
set -eu

refuse() {
  echo "Chromium: $1; tests/browser will be listed as not run" >&2
  exit 3
}

! command -v chromium >/dev/null || exit 0
[ "$(id -u)" = 0 ] || refuse "it is not installed, and only root can install it"
command -v apt-get >/dev/null || refuse "it is not installed, and there is no apt-get"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { apt-get update --quiet && apt-get install --option DPkg::Lock::Timeout=300 --yes --no-install-recommends chromium fonts-dejavu-core; } >"$log" 2>&1; then
  refuse "apt-get install chromium failed: $(tail -n 1 "$log")"
fi
