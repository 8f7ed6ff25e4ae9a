"""A Kubernetes control plane on loopback: etcd, API server, controller manager and scheduler. No nodes, no Docker."""

from __future__ import annotations

import ctypes
import json
import os
import random
import secrets
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import yaml

BUILD = Path(__file__).parent / "build.sh"
ADMIN = "admin"
START_S = 60.0
FIRST_PORT, LAST_PORT = 20_000, 65_535  # of servers in tests
GANG_API = "scheduling.k8s.io/v1alpha2"
GANG_GATES = "--feature-gates=GenericWorkload=true,GangScheduling=true"
PR_SET_PDEATHSIG = 1  # prctl(2): killed tests leave no processes behind
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class Network:
    """Addresses of one IP version: of the API server in a URL, the one that pods would use, and those of Services."""

    host: str
    advertised: str
    services: str


IPV4 = Network("127.0.0.1", "192.0.2.1", "10.96.0.0/16")
IPV6 = Network("[::1]", "2001:db8::1", "fd00:10:96::/112")


class BuildError(Exception):
    """The binaries could not be built; the message says why."""


def binaries(build: Path = BUILD) -> Path:
    """Run a build script, by default that of Kubernetes, and return its output folder. Raises ``BuildError``."""
    built = subprocess.run([str(build)], capture_output=True, text=True, check=False, timeout=1800)
    if built.returncode:
        raise BuildError(built.stderr.strip().splitlines()[-1] if built.stderr.strip() else "the build failed")
    return Path(built.stdout.strip())


class ControlPlane:
    """Starts and stops the components; ``kubeconfig`` and ``token`` give access to the API server."""

    def __init__(
        self, folder: Path, bin_dir: Path, *, ipv6: bool = False, audited: bool = False, gangs: bool = False
    ) -> None:
        """``audited``: the API server logs the requests of all users but the admin and itself to ``audit_log``.
        ``gangs``: Kubernetes' own gang scheduling, which is alpha, is on."""
        self._folder = folder
        self._bin = bin_dir
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, list[str]] = {}
        self._tokens: dict[str, str] = {ADMIN: secrets.token_hex(16)}
        self._admins = {ADMIN}
        self._audited = audited
        self._gangs = gangs
        self._etcd_port, self._etcd_peer_port, self._port = free_ports(3)
        self._network = IPV6 if ipv6 else IPV4
        self.url = f"https://{self._network.host}:{self._port}"

    @property
    def ca(self) -> Path:
        """The API server's certificate."""
        return self._folder / "apiserver.crt"

    def token(self, user: str = ADMIN) -> str:
        """A user's bearer token."""
        return self._tokens[user]

    @property
    def audit_log(self) -> Path:
        """Requests as JSON lines, of an audited control plane."""
        return self._folder / "audit.log"

    def add_user(self, user: str, *, admin: bool = False) -> None:
        """Add a user; call before ``start``. RBAC decides its permissions unless it is an ``admin``."""
        self._tokens[user] = secrets.token_hex(16)
        if admin:
            self._admins.add(user)

    def start(self) -> None:
        """Start all components and wait until the API server is ready."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._write_files()
        peer, client = f"http://127.0.0.1:{self._etcd_peer_port}", f"http://127.0.0.1:{self._etcd_port}"
        self._commands = {
            "etcd": [
                f"--data-dir={self._folder / 'etcd'}",
                f"--listen-client-urls={client}",
                f"--advertise-client-urls={client}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}",
                "--unsafe-no-fsync",
                "--log-level=error",
            ],
            "kube-apiserver": [
                f"--etcd-servers={client}",
                f"--bind-address={self._network.host.strip('[]')}",
                f"--advertise-address={self._network.advertised}",
                f"--secure-port={self._port}",
                f"--cert-dir={self._folder}",
                f"--token-auth-file={self._folder / 'tokens.csv'}",
                "--authorization-mode=RBAC",
                f"--service-cluster-ip-range={self._network.services}",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={self._folder / 'sa.pub'}",
                f"--service-account-signing-key-file={self._folder / 'sa.key'}",
                "--enable-priority-and-fairness=false",
                "--allow-privileged=true",  # as in clusters; policies are what refuses privileged pods
                *self._audit_flags(),
            ],
            "kube-controller-manager": [
                f"--kubeconfig={self.kubeconfig()}",
                f"--service-account-private-key-file={self._folder / 'sa.key'}",
                "--controllers=*,-node-lifecycle-controller,-node-ipam-controller,-certificatesigningrequest-signing-controller",
                "--leader-elect=false",
                "--secure-port=0",
                "--kube-api-qps=1000",
                "--kube-api-burst=2000",
                "--concurrent-gc-syncs=50",
            ],
            "kube-scheduler": [
                f"--kubeconfig={self.kubeconfig()}",
                "--leader-elect=false",
                "--secure-port=0",
            ],
        }
        if self._gangs:
            self._commands["kube-apiserver"] += [GANG_GATES, f"--runtime-config={GANG_API}=true"]
            self._commands["kube-controller-manager"].append("--feature-gates=GenericWorkload=true")
            self._commands["kube-scheduler"].append(GANG_GATES)
        self._launch("etcd")
        self._launch("kube-apiserver")
        self._wait_ready()
        self._launch("kube-controller-manager")
        self._launch("kube-scheduler")

    def stop(self) -> None:
        """Stop all components."""
        for name in reversed(list(self._processes)):
            self._end(name)

    def restart_api_server(self) -> None:
        """Kill and restart the API server."""
        self._end("kube-apiserver")
        self._launch("kube-apiserver")
        self._wait_ready()

    def stop_api_server(self) -> None:
        """Kill the API server."""
        self._end("kube-apiserver")

    def kubeconfig(self, user: str = ADMIN) -> Path:
        """The path of a user's kubeconfig."""
        path = self._folder / f"{user}.kubeconfig"
        if path.exists():  # components that run may be reading it
            return path
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "c", "cluster": {"server": self.url, "certificate-authority": str(self.ca)}},
            ],
            "users": [{"name": user, "user": {"token": self.token(user)}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": user, "namespace": "default"}}],
            "current-context": "c",
        }
        path.write_text(yaml.safe_dump(config))
        return path

    def kubectl(self, *arguments: str, user: str = ADMIN) -> str:
        """Run kubectl and return its output. Raises ``CalledProcessError``."""
        command = [str(self._bin / "kubectl"), f"--kubeconfig={self.kubeconfig(user)}", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    def define(self, file: Path) -> None:
        """Apply a custom resource definition and wait until the API server serves it.

        ``kubectl wait`` fails while the status has no conditions yet. Raises ``CalledProcessError``, ``TimeoutError``.
        """
        self.kubectl("apply", "--server-side", "-f", str(file))
        deadline = time.monotonic() + START_S
        while True:
            status = json.loads(self.kubectl("get", "-f", str(file), "-o", "json"))["status"]
            conditions = {one["type"]: one["status"] for one in status.get("conditions") or []}
            if conditions.get("Established") == "True":
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"{file.name} was not established after {START_S:.0f} s: {conditions}")
            time.sleep(0.1)

    def _write_files(self) -> None:
        groups = ',"system:masters"'
        lines = [
            f"{token},{user},{user}{groups if user in self._admins else ''}" for user, token in self._tokens.items()
        ]
        (self._folder / "tokens.csv").write_text("\n".join(lines) + "\n")
        command = [str(self._bin / "kubeadm"), "init", "phase", "certs", "sa", f"--cert-dir={self._folder}"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    def _audit_flags(self) -> list[str]:
        if not self._audited:
            return []
        rules = [{"level": "Metadata", "users": [user for user in self._tokens if user != ADMIN]}, {"level": "None"}]
        policy = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": rules}
        path = self._folder / "audit.yaml"
        path.write_text(yaml.safe_dump(policy))
        return [f"--audit-policy-file={path}", f"--audit-log-path={self.audit_log}", "--audit-log-mode=blocking"]

    def _launch(self, name: str) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [str(self._bin / name), *self._commands[name]],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env={**os.environ, "GOGC": "200", "GOMAXPROCS": "2"},
                preexec_fn=die_with_parent,
            )

    def _end(self, name: str) -> None:
        process = self._processes.pop(name, None)
        if process is None:
            return
        process.send_signal(signal.SIGKILL)
        process.wait()

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            problem = self._not_ready()
            if problem is None:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"the API server was not ready after {START_S:.0f} s: {problem}; see {self._folder}")
            time.sleep(0.1)

    def _not_ready(self) -> str | None:
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise BuildError(f"{name} exited with status {process.returncode}; see {self._folder / name}.log")
        if not self.ca.exists():
            return "it has no certificate yet"
        request = urllib.request.Request(f"{self.url}/readyz", headers={"Authorization": f"Bearer {self.token()}"})
        try:
            context = ssl.create_default_context(cafile=str(self.ca))
            with urllib.request.urlopen(request, context=context, timeout=2.0):
                return None
        except (urllib.error.URLError, OSError) as error:
            return str(error)


def die_with_parent() -> None:
    """In a child process: exit when the parent does."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    """Free ports. The kernel gives none of them to an outgoing connection, which would take the port of a process that
    is about to start, or to start again."""
    first, last = _outgoing_ports()
    candidates = [port for port in range(FIRST_PORT, LAST_PORT + 1) if not first <= port <= last]
    sockets: list[socket.socket] = []
    try:
        for port in random.sample(candidates, len(candidates)):
            sockets.append(socket.socket())
            try:
                sockets[-1].bind(("", port))
            except OSError:  # in use
                sockets.pop().close()
            if len(sockets) == count:
                return [int(one.getsockname()[1]) for one in sockets]
        raise RuntimeError(f"fewer than {count} ports outside of {first}-{last} are free")
    finally:
        for one in sockets:
            one.close()


def _outgoing_ports() -> tuple[int, int]:
    """First and last port that the kernel gives to outgoing connections."""
    first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    return int(first), int(last)
