"""Kubeflow Trainer, JobSet and KubeRay as separate processes against a control plane."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml

from hack.cluster.control_plane import ControlPlane, binaries, free_ports
from hack.testbed.controller_process import ControllerProcess, local_webhooks
from hack.testbed.kube_api import Api, Object, eventually

BUILD = Path(__file__).parents[1] / "cluster" / "peer_operators.sh"
TRAINER, JOBSET, KUBERAY = USERS = ("trainer", "jobset", "kuberay")  # users of the control plane, which need all rights
TRAINER_NAMESPACE = "kubeflow-system"
TRAINER_SECRET = "kubeflow-trainer-webhook-cert"
TRAINER_CERTIFICATES = "/tmp/k8s-webhook-server/serving-certs"  # fixed in Kubeflow Trainer
OF_JOBSETS = [{"key": "jobset.sigs.k8s.io/jobset-name", "operator": "Exists"}]


class PeerOperator(Protocol):
    """One controller, or several that work together."""

    name: str
    kind: str
    users: Sequence[str]

    def install(self) -> None:
        """Install the resource definitions."""
        ...

    def start(self) -> None:
        """Start it and wait until it is ready."""
        ...

    def kill(self) -> None:
        """Kill it."""
        ...

    @property
    def pids(self) -> list[int]:
        """Its processes."""
        ...

    def resource(self, name: str) -> Object:
        """A custom resource that leads to two pods."""
        ...


class _Process:
    """A controller's binary, its folder and its process."""

    def __init__(self, user: str, plane: ControlPlane, folder: Path) -> None:
        self.plane = plane
        self.built = binaries(BUILD)
        self.folder = folder / user
        self.folder.mkdir()
        self.webhook_port, self.health_port = free_ports(2)
        self.process = ControllerProcess(self.folder / "log", f"http://127.0.0.1:{self.health_port}/readyz")
        self._user = user

    def define(self, crds: Path) -> None:
        """Apply the resource definitions of a folder."""
        for file in sorted((self.built / "config" / crds).glob("*_*.yaml")):
            self.plane.define(file)

    def apply(self, name: str, *objects: Object) -> None:
        path = self.folder / name
        path.write_text(yaml.safe_dump_all(objects))
        self.plane.kubectl("apply", "--server-side", "-f", str(path))

    def kubeconfig(self, ca: str | None = None) -> Path:
        """A kubeconfig in the folder; ``ca``: path of the API server's certificate as the controller sees it."""
        config = yaml.safe_load(self.plane.kubeconfig(self._user).read_text())
        if ca is not None:
            config["clusters"][0]["cluster"]["certificate-authority"] = ca
        path = self.folder / "kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return path

    def certificates(self) -> Path:
        """A folder with the API server's certificate and key, which are valid for loopback."""
        folder = self.folder / "certificates"
        folder.mkdir(exist_ok=True)
        for suffix in ("crt", "key"):
            shutil.copy(self.plane.ca.with_suffix(f".{suffix}"), folder / f"tls.{suffix}")
        return folder


class KubeflowTrainer:
    """Kubeflow Trainer with JobSet, which it needs. Its validating webhooks are not registered."""

    name = "Kubeflow Trainer + JobSet"
    kind = "TrainJob"
    users: Sequence[str] = (TRAINER, JOBSET)

    def __init__(self, plane: ControlPlane, api: Api, folder: Path) -> None:
        self._api = api
        self._trainer, self._jobset = (_Process(user, plane, folder) for user in self.users)

    def install(self) -> None:
        """Install both projects' resource definitions and the objects that Kubeflow Trainer needs to start."""
        self._jobset.define(Path("jobset/crd/bases"))
        self._trainer.define(Path("trainer/crds"))
        metadata = {"name": TRAINER_SECRET, "namespace": TRAINER_NAMESPACE}
        configuration = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration"}
        self._trainer.apply(
            "install.yaml",
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": TRAINER_NAMESPACE}},
            {"apiVersion": "v1", "kind": "Secret", "metadata": metadata},
            {**configuration, "metadata": {"name": "validator.trainer.kubeflow.org"}, "webhooks": []},
            _runtime(),
        )

    def start(self) -> None:
        """Start JobSet, then Kubeflow Trainer."""
        self._start_jobset()
        self._start_trainer()

    def kill(self) -> None:
        """Kill both."""
        self._trainer.process.kill()
        self._jobset.process.kill()

    @property
    def pids(self) -> list[int]:
        """Of both."""
        return [self._trainer.process.pid, self._jobset.process.pid]

    def resource(self, name: str) -> Object:
        """A TrainJob of two nodes."""
        spec = {"runtimeRef": {"name": "torch-distributed"}, "trainer": {"numNodes": 2}}
        return {
            "apiVersion": "trainer.kubeflow.org/v1alpha1",
            "kind": self.kind,
            "metadata": {"name": name},
            "spec": spec,
        }

    def _start_jobset(self) -> None:
        own = self._jobset
        config = own.folder / "config.yaml"
        body = {
            "apiVersion": "config.jobset.x-k8s.io/v1alpha1",
            "kind": "Configuration",
            "leaderElection": {"leaderElect": False},
            "internalCertManagement": {"enable": False},
            "health": {"healthProbeBindAddress": f"127.0.0.1:{own.health_port}"},
            "metrics": {"bindAddress": "0"},
            "webhook": {"host": "127.0.0.1", "port": own.webhook_port, "certDir": str(own.certificates())},
        }
        config.write_text(yaml.safe_dump(body))
        own.process.start(f"exec {own.built / 'jobset'} --config={config}", {"KUBECONFIG": str(own.kubeconfig())})
        own.process.wait_ready()
        manifests = own.built / "config" / "jobset" / "webhook" / "manifests.yaml"
        configurations = local_webhooks(manifests, own.plane, own.webhook_port)
        for configuration in configurations:
            configuration["metadata"]["name"] = f"jobset-{configuration['metadata']['name']}"
            for hook in configuration["webhooks"]:
                if "pod" in hook["name"]:
                    hook["objectSelector"] = {"matchExpressions": OF_JOBSETS}
        own.apply("webhooks.yaml", *configurations)

    def _start_trainer(self) -> None:
        """Start it where /tmp holds nothing but its certificates, which come from the Secret that it writes."""
        own = self._trainer
        certificates = own.folder / "certificates"
        certificates.mkdir(exist_ok=True)
        shutil.copy(own.plane.ca, own.folder / "ca.crt")
        own.kubeconfig("/mnt/ca.crt")
        script = (
            f"mount --bind {own.folder} /mnt && mount --bind {own.built} /media && mount -t tmpfs tmpfs /tmp && "
            f"mkdir -p {TRAINER_CERTIFICATES} && mount --bind /mnt/certificates {TRAINER_CERTIFICATES} && "
            f"exec /media/trainer --health-probe-bind-address=127.0.0.1:{own.health_port} "
            f"--webhook-server-port={own.webhook_port}"
        )
        own.process.start(script, {"KUBECONFIG": "/mnt/kubeconfig"})

        def data() -> dict[str, str] | None:
            own.process.check()
            return ((self._api.get("Secret", TRAINER_NAMESPACE, TRAINER_SECRET) or {}).get("data")) or None

        for name, value in eventually(data, "Kubeflow Trainer wrote its certificates", 60.0).items():
            (certificates / name).write_bytes(base64.b64decode(value))
        own.process.wait_ready()


class KubeRay:
    """KubeRay, without its optional webhooks."""

    name = "KubeRay"
    kind = "RayCluster"
    users: Sequence[str] = (KUBERAY,)

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        self._own = _Process(KUBERAY, plane, folder)

    def install(self) -> None:
        """Install its resource definitions."""
        self._own.define(Path("kuberay/crd/bases"))

    def start(self) -> None:
        """Start it and wait until it is ready."""
        own = self._own
        flags = (
            f"--enable-leader-election=false --metrics-addr=0 --health-probe-bind-address=127.0.0.1:{own.health_port}"
        )
        own.process.start(f"exec {own.built / 'kuberay'} {flags}", {"KUBECONFIG": str(own.kubeconfig())})
        own.process.wait_ready()

    def kill(self) -> None:
        """Kill it."""
        self._own.process.kill()

    @property
    def pids(self) -> list[int]:
        """Of its process."""
        return [self._own.process.pid]

    def resource(self, name: str) -> Object:
        """A RayCluster of a head and a worker."""
        workers = {"groupName": "workers", "replicas": 1, "minReplicas": 1, "maxReplicas": 1}
        spec = {
            "rayVersion": "2.46.0",
            "headGroupSpec": {"rayStartParams": {}, "template": _pod("ray-head")},
            "workerGroupSpecs": [{**workers, "rayStartParams": {}, "template": _pod("ray-worker")}],
        }
        return {"apiVersion": "ray.io/v1", "kind": self.kind, "metadata": {"name": name}, "spec": spec}


def _pod(container: str) -> Object:
    resources = {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}}
    return {"spec": {"containers": [{"name": container, "image": "image:1", "resources": resources}]}}


def _runtime() -> Object:
    """A ClusterTrainingRuntime like the torch-distributed one that Kubeflow Trainer ships."""
    metadata: Any = {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}}
    job = {"name": "node", "template": {"metadata": metadata, "spec": {"template": _pod("node")}}}
    policy = {"numNodes": 1, "torch": {"numProcPerNode": "auto"}}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "ClusterTrainingRuntime",
        "metadata": {"name": "torch-distributed"},
        "spec": {"mlPolicy": policy, "template": {"spec": {"replicatedJobs": [job]}}},
    }
