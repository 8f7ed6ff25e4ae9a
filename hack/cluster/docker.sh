#!/bin/sh
# Makes `docker info` work: does nothing if it already does, otherwise installs Debian's engine (as root, with apt) and
# starts it without a service manager. Reports what is missing if it cannot. Idempotent.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
state=${AREAL_BIN:-$here/../../.bin}/docker
deadline_s=60
packages="docker.io iptables iproute2 ca-certificates"
pid_file=/var/run/docker.pid

log() { echo "docker: $*" >&2; }
unavailable() { log "$*"; exit 3; }
engine_works() { command -v docker >/dev/null && timeout 20 docker info >/dev/null 2>&1; }

install_engine() {
  command -v apt-get >/dev/null || unavailable "no Docker engine responds, and there is no apt-get to install one: install Docker"
  log "installing Debian's docker.io"
  # The package starts the service with settings that may not work on this machine, so block that and start it below.
  policy=/usr/sbin/policy-rc.d
  [ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' >$policy; chmod 755 $policy; trap 'rm -f "$policy"' EXIT; }
  export DEBIAN_FRONTEND=noninteractive
  if ! { apt-get update -qq && apt-get install -qq --no-install-recommends $packages; } >"$state/apt.log" 2>&1; then
    tail -n 5 "$state/apt.log" >&2
    unavailable "apt-get could not install docker.io; the whole log is $state/apt.log"
  fi
}

# runc refuses to start a privileged container that requests a capability which the host itself lacks.
lacks_sys_resource() {
  bounding=$(awk '/^CapBnd/ {print $2}' /proc/self/status)
  [ $(((0x$bounding >> 24) & 1)) = 0 ]
}

# Stale pid files of killed processes: if the pid has been reused, the engine does not start.
remove_stale_pid_files() {
  for file in $pid_file /var/run/docker/containerd/containerd.pid; do
    name=dockerd
    [ "${file##*/}" = containerd.pid ] && name=containerd
    if [ -f "$file" ] && [ "$(cat "/proc/$(cat "$file")/comm" 2>/dev/null)" != $name ]; then rm -f "$file"; fi
  done
}

# Traffic to service and pod addresses must never leave the machine, even while nodes are starting.
blackhole_cluster_addresses() {
  for range in 10.96.0.0/16 10.244.0.0/16; do
    ip route show type blackhole | grep -q "$range" || ip route add blackhole "$range" ||
      log "cannot add a blackhole route for $range; while nodes start, packets for it may leave this machine"
  done
}

# Containers use the MTU of the machine's default interface; kind's network inherits it.
default_mtu() {
  cat "/sys/class/net/$(ip -4 route show default | awk '{print $5; exit}')/mtu" 2>/dev/null || echo 1500
}

start_engine() {
  set -- --storage-driver overlay2 --pidfile "$pid_file" --mtu "$(default_mtu)"
  if lacks_sys_resource; then
    set -- "$@" --add-runtime "fit=$here/runc_fit.py" --default-runtime fit
  fi
  remove_stale_pid_files
  log "starting dockerd; its log is $state/dockerd.log"
  setsid dockerd "$@" >"$state/dockerd.log" 2>&1 </dev/null 9>&- &
  engine=$!
  waited=0
  until engine_works; do
    kill -0 $engine 2>/dev/null || { grep -v level=info "$state/dockerd.log" | tail -n 8 >&2; unavailable "dockerd exited"; }
    [ $waited -lt $deadline_s ] || unavailable "dockerd did not respond within $deadline_s s; its log is $state/dockerd.log"
    waited=$((waited + 1))
    sleep 1
  done
}

engine_works && exit 0
[ -z "${DOCKER_HOST:-}" ] || unavailable "the engine at DOCKER_HOST=$DOCKER_HOST does not respond"
[ -e /run/systemd/system ] && command -v dockerd >/dev/null && unavailable "dockerd does not respond: systemctl start docker"
[ "$(id -u)" = 0 ] ||
  unavailable "no Docker engine responds for this user: start it, join the group docker, or run as root on Debian to install it"
mkdir -p "$state"
state=$(cd "$state" && pwd)
# Serialize concurrent calls; the second finds the engine that the first started.
exec 9>"$state/lock"
flock 9
engine_works && exit 0
command -v dockerd >/dev/null || install_engine
blackhole_cluster_addresses
start_engine
