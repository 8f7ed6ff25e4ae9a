"""The results of a run in a cluster, brought here: a small pod mounts the run's volume and prints files to its log.

The trainer's own pod has ended, so nothing can be run in it. The reader is made of the trainer's pod (image, place,
account, security), asks for no GPU, writes nothing, ends by itself and goes with the experiment.
"""

from __future__ import annotations

import inspect
import io
import json
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from areal_api import names, resource_names
from areal_api.experiment import GRPOExperiment
from areal_api.render import experiment_yaml
from areal_launcher import run_files
from areal_launcher.cluster.client import Cluster, Object
from areal_launcher.cluster.in_pod import print_files
from areal_launcher.errors import RunError
from areal_launcher.local.prepare import experiment_file

FILES = ("config.yaml", "stats.jsonl", "summary.json")
READ_S = 180.0  # the reader's life, and how long it is waited for; an image that is on the node starts in seconds
POLL_S = 0.5
CONTAINER = "reader"
HOSTNAME = "kubernetes.io/hostname"
SAME = (
    "imagePullSecrets",
    "nodeSelector",
    "runtimeClassName",
    "schedulerName",
    "securityContext",
    "serviceAccountName",
    "tolerations",
)
SMALL = {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}}


@dataclass(frozen=True)
class Source:
    """Where the files of a run are in the cluster."""

    namespace: str
    name: str
    uid: str
    claim: str
    directory: str  # in the pods
    template: Object  # spec of the trainer's pods
    node: str | None  # where the trainer's first pod ran: the image is there


def source_of(cluster: Cluster, body: Object) -> Source:
    """Where the results of an experiment are; ``RunError`` where no trainer was started."""
    metadata = body["metadata"]
    namespace, name = str(metadata["namespace"]), str(metadata["name"])
    labels = resource_names.selector(resource_names.component_labels(name, resource_names.TRAINER))
    jobs = cluster.list("Job", namespace, labels=labels)
    if not jobs:
        raise RunError(f"{name} has no Job of its trainer any more, by which its files could be read")
    job = max(jobs, key=attempt_of)
    template = job["spec"]["template"]["spec"]
    pods = [pod for pod in cluster.list("Pod", namespace, labels=labels) if attempt_of(pod) == attempt_of(job)]
    env = {entry["name"]: entry.get("value") for entry in template["containers"][0]["env"]}
    return Source(
        namespace=namespace,
        name=name,
        uid=str(metadata["uid"]),
        claim=resource_names.volume_claim(name),
        directory=str(env[names.RUN_DIR]),
        template=template,
        node=pods[0]["spec"].get("nodeName") if pods else None,
    )


def attempt_of(obj: Object) -> int:
    """The attempt that a Job or a pod is of."""
    return int(obj["metadata"]["labels"][resource_names.ATTEMPT])


def pod_beside(source: Source, command: list[str], *, life_s: int) -> Object:
    """A pod that runs ``command`` where the trainer ran, with its volume, read-only, for at most ``life_s`` seconds."""
    template, trainer = source.template, source.template["containers"][0]
    volume = next(one for one in template["volumes"] if "persistentVolumeClaim" in one)
    mount = next(one for one in trainer["volumeMounts"] if one["name"] == volume["name"])
    container: Object = {
        "name": CONTAINER,
        "image": trainer["image"],
        "command": command,
        "workingDir": "/",
        "resources": SMALL,
        "securityContext": trainer["securityContext"],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": volume["name"], "mountPath": mount["mountPath"], "readOnly": True}],
    }
    if "imagePullPolicy" in trainer:
        container["imagePullPolicy"] = trainer["imagePullPolicy"]
    spec: Object = {
        **{key: template[key] for key in SAME if key in template},
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Never",
        "activeDeadlineSeconds": life_s,
        "terminationGracePeriodSeconds": 1,
        "volumes": [{"name": volume["name"], "persistentVolumeClaim": {"claimName": source.claim}}],
        "containers": [container],
    }
    if source.node is not None:
        same_node = {"matchExpressions": [{"key": HOSTNAME, "operator": "In", "values": [source.node]}]}
        preferred = [{"weight": 100, "preference": same_node}]
        spec["affinity"] = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}
    owner = {
        "apiVersion": "areal.dev/v1alpha1",
        "kind": "GRPOExperiment",
        "name": source.name,
        "uid": source.uid,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"{source.name}-reader-",
            "labels": {resource_names.MANAGED_BY: "grpo"},
            "ownerReferences": [owner],
        },
        "spec": spec,
    }


def fetch(cluster: Cluster, source: Source, target: Path, experiment: GRPOExperiment) -> list[str]:
    """Bring the small files of a run into ``target``; their names. ``RunError`` says what hindered it."""
    files = unpacked(read_files(cluster, source))
    if not files:
        raise RunError(f"{source.directory} on the volume claim {source.claim} holds none of {', '.join(FILES)}")
    target.mkdir(parents=True, exist_ok=True)
    where = {
        "context": cluster.context,
        "namespace": source.namespace,
        "name": source.name,
        "claim": source.claim,
        "directory": source.directory,
    }
    run_files.write_whole(run_files.cluster_file(target), json.dumps(where))
    run_files.write_whole(experiment_file(target), experiment_yaml(experiment))
    for name, data in files.items():
        run_files.write_whole(target / name, data)
    return sorted(files)


def read_files(cluster: Cluster, source: Source) -> bytes:
    """The archive that a reader prints. The reader is removed, whatever happens."""
    command = ["python3", "-c", inspect.getsource(print_files).replace("$(", "$$("), source.directory, *FILES]
    body = pod_beside(source, command, life_s=int(READ_S))
    pod = cluster.create(body, source.namespace)["metadata"]["name"]
    try:
        wait_for_end(cluster, source.namespace, pod)
        log = cluster.log(source.namespace, pod, CONTAINER).decode(errors="replace")
    finally:
        cluster.delete("Pod", source.namespace, pod, grace_s=0)
    try:
        return print_files.decoded(log)
    except ValueError as error:
        raise RunError(f"the files of {source.name} cannot be read: {error}") from error


def wait_for_end(cluster: Cluster, namespace: str, name: str) -> None:
    """Wait until a reader has printed everything; ``RunError`` when it cannot."""
    wait_for(cluster, namespace, name, lambda status: terminated(status) is not None)


def wait_until_running(cluster: Cluster, namespace: str, name: str) -> None:
    """Wait until commands can be run in a reader; ``RunError`` when it does not start."""
    wait_for(cluster, namespace, name, lambda status: status.get("phase") == "Running")


def wait_for(cluster: Cluster, namespace: str, name: str, condition: Callable[[Object], bool]) -> None:
    """Wait for a state of a reader in which it has not failed."""
    deadline, why = time.monotonic() + READ_S, "it was not started"
    while time.monotonic() < deadline:
        pod = cluster.get("Pod", namespace, name)
        if pod is None:
            raise RunError(f"the pod {name} was deleted while it read the files")
        status = pod.get("status") or {}
        why = why_waiting(status) or why
        ended = terminated(status)
        if status.get("phase") == "Failed" or (ended is not None and ended["exitCode"]):
            said = str((ended or status).get("message") or "").strip()
            raise RunError(f"the pod {name} could not read the files: {said or (ended or status).get('reason')}")
        if condition(status):
            return
        time.sleep(POLL_S)
    raise RunError(f"the pod {name} did not read the files within {READ_S:.0f} s: {why}")


def terminated(status: Object) -> dict[str, Any] | None:
    """How the only container ended; None while it has not."""
    for container in status.get("containerStatuses") or ():
        ended = (container.get("state") or {}).get("terminated")
        if ended is not None:
            return dict(ended)
    return None


def why_waiting(status: Object) -> str | None:
    """Why a pod does not run yet."""
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message") or condition.get("reason"))
    for container in status.get("containerStatuses") or ():
        waiting = (container.get("state") or {}).get("waiting")
        if waiting is not None:
            return ": ".join(str(waiting[key]) for key in ("reason", "message") if waiting.get(key))
    return None


def unpacked(data: bytes) -> dict[str, bytes]:
    """The files of an archive that were asked for, and no others."""
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:xz") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() and member.name in FILES else None
            if file is not None:
                found[member.name] = file.read()
    return found
