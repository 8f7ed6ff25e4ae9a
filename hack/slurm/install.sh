#!/bin/sh
# Installs Slurm's daemons and munge from Debian's packages, for tests/slurm. Does nothing if they are installed.
# Exits with 3 and the reason if they cannot be installed here.
set -eu

PATH=$PATH:/usr/sbin:/sbin
PACKAGES="slurmctld slurmd slurm-client munge"

missing() {
  for tool in slurmctld slurmd munged sbatch; do
    command -v "$tool" >/dev/null || { echo "$tool"; return; }
  done
}

refuse() {
  echo "Slurm: $1; tests/slurm will be listed as not run" >&2
  exit 3
}

[ -n "$(missing)" ] || exit 0
[ "$(id -u)" = 0 ] || refuse "$(missing) is not installed, and only root can install it"
command -v apt-get >/dev/null || refuse "$(missing) is not installed, and there is no apt-get"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { apt-get update --quiet && apt-get install --yes --no-install-recommends $PACKAGES; } >"$log" 2>&1; then
  refuse "apt-get install $PACKAGES failed: $(tail -n 1 "$log")"
fi
[ -z "$(missing)" ] || refuse "$(missing) is missing after apt-get install $PACKAGES"
