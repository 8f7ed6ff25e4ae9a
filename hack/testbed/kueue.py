"""The real Kueue as a separate process against a control plane, with its resource definitions and webhooks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from hack.cluster.control_plane import ControlPlane, binaries, free_ports
from hack.testbed.controller_process import ControllerProcess, local_webhooks
from hack.testbed.kube_api import Api, Object

BUILD = Path(__file__).parents[1] / "cluster" / "kueue.sh"
USER = "kueue"
SERVED = "v1beta2"  # alone: other versions would need the conversion webhook
FRAMEWORKS = ("batch/job", "pod", "statefulset")
EXTERNAL = "GRPOExperiment.v1alpha1.areal.dev"
WEBHOOKS = ("workload", "clusterqueue", "cohort", "resourceflavor", "job", "pod", "statefulset")
CERTIFICATES = "/etc/kueue/metrics/certs"  # Kueue always reads the certificate of its metrics endpoint here


class KueueProcess:
    """Kueue; it may be killed and restarted. It uses the API server's certificate, which is valid for loopback."""

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        self._plane = plane
        self._folder = folder
        self._built = binaries(BUILD)
        self._webhook_port, self._health_port = free_ports(2)
        self._process = ControllerProcess(folder / "kueue.log", f"http://127.0.0.1:{self._health_port}/readyz")

    def install(self) -> None:
        """Install the resource definitions and, once Kueue runs, its webhooks."""
        definitions = []
        for path in sorted((self._built / "config" / "components" / "crd" / "bases").glob("*.yaml")):
            definition = yaml.load(path.read_text(), yaml.CSafeLoader)
            for version in definition["spec"]["versions"]:
                version["served"] = version["name"] in (SERVED, "v1alpha1")
            definitions.append(definition)
        path = self._write("definitions.yaml", definitions)
        self._plane.kubectl("apply", "--server-side", "-f", str(path))
        self._plane.kubectl("wait", "--for=condition=Established", f"-f={path}", "--timeout=30s")

    def start(self, **configuration: Any) -> None:
        """Start it and wait until it answers; ``configuration`` are further keys of its configuration."""
        config = self._write("config.yaml", [{**self._configuration(), **configuration}])
        certificates = self._folder / "certificates"
        certificates.mkdir(exist_ok=True)
        for suffix in ("crt", "key"):
            shutil.copy(self._plane.ca.with_suffix(f".{suffix}"), certificates / f"tls.{suffix}")
        mount = f"mount -t tmpfs tmpfs /etc && mkdir -p {CERTIFICATES} && cp {certificates}/* {CERTIFICATES}"
        command = f"{mount} && exec {self._built / 'kueue'} --config={config} --feature-gates=VisibilityOnDemand=false"
        self._process.start(command, {"KUBECONFIG": str(self._plane.kubeconfig(USER))})
        self._process.wait_ready()
        webhooks = self._write("webhooks.yaml", self._webhooks())
        self._plane.kubectl("apply", "--server-side", "-f", str(webhooks))

    def kill(self) -> None:
        """Kill it. Its webhooks stay, so that nothing that they watch can be created."""
        self._process.kill()

    def _configuration(self) -> Object:
        certificates = str(self._folder / "certificates")
        return {
            "apiVersion": "config.kueue.x-k8s.io/v1beta2",
            "kind": "Configuration",
            "namespace": "kueue-system",
            "health": {"healthProbeBindAddress": f"127.0.0.1:{self._health_port}"},
            "metrics": {"bindAddress": "0"},
            "webhook": {"host": "127.0.0.1", "port": self._webhook_port, "certDir": certificates},
            "leaderElection": {"leaderElect": False},
            "internalCertManagement": {"enable": False},
            "integrations": {"frameworks": list(FRAMEWORKS), "externalFrameworks": [EXTERNAL]},
        }

    def _webhooks(self) -> list[Object]:
        manifests = self._built / "config" / "components" / "webhook" / "manifests.yaml"
        configurations = local_webhooks(manifests, self._plane, self._webhook_port)
        for configuration in configurations:
            hooks = configuration["webhooks"]
            configuration["webhooks"] = [one for one in hooks if one["name"][1:].partition(".")[0] in WEBHOOKS]
            configuration["metadata"]["name"] = f"kueue-{configuration['metadata']['name']}"
        return configurations

    def _write(self, name: str, objects: list[Object]) -> Path:
        path = self._folder / name
        path.write_text(yaml.dump_all(objects, Dumper=yaml.CSafeDumper))
        return path


class Queues:
    """ClusterQueues, LocalQueues, flavors and priorities of a test; names are made unique by ``prefix``."""

    def __init__(self, api: Api, prefix: str) -> None:
        self._api = api
        self.prefix = prefix

    def named(self, name: str) -> str:
        """The name of a cluster-scoped object of this test."""
        return f"{self.prefix}-{name}"

    def flavor(self, name: str = "flavor", **spec: Any) -> str:
        """Create a ResourceFlavor; returns its name."""
        return self._create("ResourceFlavor", name, spec)

    def cluster_queue(self, name: str, cpus: int, *, flavors: tuple[str, ...] = (), **spec: Any) -> str:
        """Create a ClusterQueue with a quota of CPUs in each of ``flavors`` (full names); returns its name."""
        resources = [{"name": "cpu", "nominalQuota": cpus}]
        groups = [{"coveredResources": ["cpu"], "flavors": [{"name": one, "resources": resources} for one in flavors]}]
        return self._create("ClusterQueue", name, {"namespaceSelector": {}, "resourceGroups": groups, **spec})

    def local_queue(self, namespace: str, cluster_queue: str, name: str = "team") -> str:
        """Create a LocalQueue for a ClusterQueue (full name); returns its name."""
        body = {"kind": "LocalQueue", "apiVersion": "kueue.x-k8s.io/v1beta2", "metadata": {"name": name}}
        self._api.create({**body, "spec": {"clusterQueue": cluster_queue}}, namespace)
        return name

    def priority(self, name: str, value: int) -> str:
        """Create a WorkloadPriorityClass; returns its name."""
        full = self.named(name)
        body = {"kind": "WorkloadPriorityClass", "apiVersion": "kueue.x-k8s.io/v1beta2", "metadata": {"name": full}}
        self._api.create({**body, "value": value})
        return full

    def pod_priority(self, name: str, value: int) -> str:
        """Create a PriorityClass of Kubernetes; returns its name."""
        full = self.named(name)
        body = {"kind": "PriorityClass", "apiVersion": "scheduling.k8s.io/v1", "metadata": {"name": full}}
        self._api.create({**body, "value": value})
        return full

    def _create(self, kind: str, name: str, spec: Object) -> str:
        full = self.named(name)
        body = {"kind": kind, "apiVersion": "kueue.x-k8s.io/v1beta2", "metadata": {"name": full}, "spec": spec}
        self._api.create(body)
        return full
