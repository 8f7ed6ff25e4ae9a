#!/bin/sh
# Makes `docker info` work. Where it works already, nothing is done; else Debian's engine is installed (root, apt) and
# started without a service manager. Says what is missing where that cannot be done. Quick and harmless to call again.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
state=${AREAL_BIN:-$here/../../.bin}/docker
deadline_s=60
packages="docker.io iptables iproute2 ca-certificates"
pid_file=/var/run/docker.pid

say() { echo "docker: $*" >&2; }
missing() { say "$*"; exit 3; }
works() { command -v docker >/dev/null && timeout 20 docker info >/dev/null 2>&1; }

install_engine() {
  command -v apt-get >/dev/null || missing "no Docker engine answers, and without apt-get none is installed. Install Docker"
  say "installing Debian's docker.io"
  # Its package starts the service by itself, with settings that this machine may not bear: we start it below.
  policy=/usr/sbin/policy-rc.d
  [ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' >$policy; chmod 755 $policy; trap 'rm -f "$policy"' EXIT; }
  export DEBIAN_FRONTEND=noninteractive
  if ! { apt-get update -qq && apt-get install -qq --no-install-recommends $packages; } >"$state/apt.log" 2>&1; then
    tail -n 5 "$state/apt.log" >&2
    missing "apt-get could not install docker.io; the whole log is $state/apt.log"
  fi
}

# A capability that the host itself lacks cannot be given to a privileged container: runc refuses to start it.
lacks_sys_resource() {
  bounding=$(awk '/^CapBnd/ {print $2}' /proc/self/status)
  [ $(((0x$bounding >> 24) & 1)) = 0 ]
}

# Files of processes that were killed: their numbers may belong to others by now, and then the engine does not start.
forget_killed() {
  for file in $pid_file /var/run/docker/containerd/containerd.pid; do
    name=dockerd
    [ "${file##*/}" = containerd.pid ] && name=containerd
    if [ -f "$file" ] && [ "$(cat "/proc/$(cat "$file")/comm" 2>/dev/null)" != $name ]; then rm -f "$file"; fi
  done
}

# Service and pod addresses of a cluster must never leave the machine, also while its nodes come up.
keep_cluster_addresses_here() {
  for range in 10.96.0.0/16 10.244.0.0/16; do
    ip route show type blackhole | grep -q "$range" || ip route add blackhole "$range" ||
      say "cannot add a blackhole route for $range; while nodes start, packets for it may leave this machine"
  done
}

# Packets of containers leave by the machine's own way out and may be no longer than it takes; kind's network follows.
packet_length() {
  cat "/sys/class/net/$(ip -4 route show default | awk '{print $5; exit}')/mtu" 2>/dev/null || echo 1500
}

start_engine() {
  set -- --storage-driver overlay2 --pidfile "$pid_file" --mtu "$(packet_length)"
  if lacks_sys_resource; then
    set -- "$@" --add-runtime "fit=$here/runc_fit.py" --default-runtime fit
  fi
  forget_killed
  say "starting dockerd; its log is $state/dockerd.log"
  setsid dockerd "$@" >"$state/dockerd.log" 2>&1 </dev/null 9>&- &
  engine=$!
  waited=0
  until works; do
    kill -0 $engine 2>/dev/null || { grep -v level=info "$state/dockerd.log" | tail -n 8 >&2; missing "dockerd ended"; }
    [ $waited -lt $deadline_s ] || missing "dockerd did not answer within $deadline_s s; its log is $state/dockerd.log"
    waited=$((waited + 1))
    sleep 1
  done
}

works && exit 0
[ -z "${DOCKER_HOST:-}" ] || missing "the engine at DOCKER_HOST=$DOCKER_HOST does not answer"
[ -e /run/systemd/system ] && command -v dockerd >/dev/null && missing "dockerd does not answer: systemctl start docker"
[ "$(id -u)" = 0 ] ||
  missing "no Docker engine answers this user: start it or join the group docker; root on Debian gets one installed here"
mkdir -p "$state"
state=$(cd "$state" && pwd)
# Two calls at once: the second one finds what the first one started.
exec 9>"$state/lock"
flock 9
works && exit 0
command -v dockerd >/dev/null || install_engine
keep_cluster_addresses_here
start_engine
