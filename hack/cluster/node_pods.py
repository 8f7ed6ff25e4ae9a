"""Acts on pods from their node: kills processes, cuts the network, queries servers."""

from __future__ import annotations

from typing import Any

from hack.cluster.kind_cluster import KindCluster

Object = dict[str, Any]
# Process IDs of pod $1, oldest first: its sandbox, which holds the network namespace, then its containers.
PROCESSES = """
processes() {
  for pid in $(pgrep .); do
    if grep -qs "$1" /proc/$pid/cgroup; then echo "$(sed 's/.*) //' /proc/$pid/stat | cut -d' ' -f20) $pid"; fi
  done | sort -n | cut -d' ' -f2
}
"""
KILL = """
for pid in $(processes "$1"); do
  if tr '\\0' ' ' </proc/$pid/cmdline | grep -q "$2"; then kill -9 $pid && exit 0; fi
done
echo "pod $1 runs no $2" >&2
exit 1
"""
CUT = """
set -- $(processes "$1")
nsenter --target "$1" --net iptables -w -I INPUT ! -i lo -j DROP
nsenter --target "$1" --net iptables -w -I OUTPUT ! -o lo -j DROP
"""
RESTORE = """
set -- $(processes "$1")
[ $# -gt 0 ] || exit 0 # the pod has ended, and its network namespace with it
nsenter --target "$1" --net iptables -w -F
"""
LEFT = "pgrep -af '[a]real_server|[a]real_trainer' || true"
ASK = """
exec 3<>/dev/tcp/$1/$2 || exit 0
printf 'GET %s HTTP/1.0\\r\\nAuthorization: Bearer %s\\r\\n\\r\\n' "$3" "$4" >&3
timeout 3 cat <&3 || true
"""


def kill_process(cluster: KindCluster, pod: Object, pattern: str) -> None:
    """SIGKILL the pod's oldest process whose command line matches; the pod remains."""
    _do(cluster, pod, KILL, pattern)


def cut_network(cluster: KindCluster, pod: Object) -> None:
    """Drop all traffic into and out of the pod, except loopback."""
    _do(cluster, pod, CUT)


def restore_network(cluster: KindCluster, pod: Object) -> None:
    """Undo ``cut_network``."""
    _do(cluster, pod, RESTORE)


def ask(cluster: KindCluster, pod: Object, port: int, path: str, key: str) -> str:
    """Body of a GET request sent from the pod's node; empty if there is no answer within 5 s."""
    address = (pod.get("status") or {}).get("podIP")
    if not address:
        return ""
    script = ["timeout", "5", "bash", "-c", f"({ASK}) 2>/dev/null || true", "ask", address, str(port), path, key]
    answer = cluster.on_node(pod["spec"]["nodeName"], "sh", "-c", '"$@" || true', "sh", *script)
    return answer.partition("\n\n")[2]  # text mode has removed the carriage returns


def processes_left(cluster: KindCluster) -> list[str]:
    """Servers and trainers still running on the worker, as lines of text."""
    return cluster.on_node(cluster.worker, "sh", "-c", LEFT).splitlines()


def running_container(pod: Object | None) -> str:
    """ID of a pod's running container; empty if none is running."""
    for container in ((pod or {}).get("status") or {}).get("containerStatuses") or ():
        if "running" in container.get("state", {}):
            return str(container.get("containerID"))
    return ""


def _do(cluster: KindCluster, pod: Object, script: str, *arguments: str) -> None:
    uid = pod["metadata"]["uid"].replace("-", "[-_]")
    cluster.on_node(pod["spec"]["nodeName"], "bash", "-euc", PROCESSES + script, "pod", uid, *arguments)
