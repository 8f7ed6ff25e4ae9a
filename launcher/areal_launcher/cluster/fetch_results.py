"""Fetches the results of a cluster run: a small pod mounts the run's volume and prints files to its log.

The trainer's pod has ended, so no command can run in it. The reader pod copies its image, node, service account and
security context. It requests no GPU, mounts the volume read-only, has a deadline and is owned by the experiment.
"""

from __future__ import annotations

import inspect
import io
import json
import lzma
import tarfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from areal_api import names, resource_names
from areal_api.experiment import API_VERSION, KIND, GRPOExperiment
from areal_api.render import experiment_yaml
from areal_launcher import run_files
from areal_launcher.cluster.client import Cluster, Object
from areal_launcher.cluster.in_pod import print_files
from areal_launcher.cluster.logs import attempt_of
from areal_launcher.errors import RunError

ARCHIVE_OVERHEAD_BYTES = 2**20  # headers and padding
MAX_DECOMPRESSOR_BYTES = 256 * 2**20
FILES = ("config.yaml", "stats.jsonl", "summary.json")
READ_TIMEOUT_S = 180.0  # deadline of the reader pod; with the image on the node it starts in seconds
POLL_S = 0.5
CONTAINER = "reader"
HOSTNAME = "kubernetes.io/hostname"
COPIED_FIELDS = (
    "imagePullSecrets",
    "nodeSelector",
    "runtimeClassName",
    "schedulerName",
    "securityContext",
    "serviceAccountName",
    "tolerations",
)
RESOURCES = {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}}


@dataclass(frozen=True)
class ResultsSource:
    """Location of a run's files in the cluster."""

    namespace: str
    name: str
    uid: str
    claim: str
    directory: str  # path in the pods
    template: Object  # pod spec of the trainer
    node: str | None  # node of the trainer's first pod, which has the image


def source_of(cluster: Cluster, body: Object) -> ResultsSource:
    """Location of an experiment's results. Raises ``RunError`` if it has no trainer Job."""
    metadata = body["metadata"]
    namespace, name = str(metadata["namespace"]), str(metadata["name"])
    labels = resource_names.selector(resource_names.component_labels(name, resource_names.TRAINER))
    jobs = cluster.list("Job", namespace, labels=labels)
    if not jobs:
        raise RunError(f"the trainer Job of {name} no longer exists, so its files cannot be read")
    job = max(jobs, key=attempt_of)
    template = job["spec"]["template"]["spec"]
    pods = [pod for pod in cluster.list("Pod", namespace, labels=labels) if attempt_of(pod) == attempt_of(job)]
    env = {entry["name"]: entry.get("value") for entry in template["containers"][0]["env"]}
    return ResultsSource(
        namespace=namespace,
        name=name,
        uid=str(metadata["uid"]),
        claim=resource_names.volume_claim(name),
        directory=str(env[names.RUN_DIR]),
        template=template,
        node=pods[0]["spec"].get("nodeName") if pods else None,
    )


def reader_pod(source: ResultsSource, command: list[str], *, deadline_s: int) -> Object:
    """A pod that runs ``command`` on the trainer's node, its volume mounted read-only, for at most ``deadline_s``."""
    template, trainer = source.template, source.template["containers"][0]
    volume = next(volume for volume in template["volumes"] if "persistentVolumeClaim" in volume)
    mount = next(mount for mount in trainer["volumeMounts"] if mount["name"] == volume["name"])
    container: Object = {
        "name": CONTAINER,
        "image": trainer["image"],
        "command": command,
        "workingDir": "/",
        "resources": RESOURCES,
        "securityContext": trainer["securityContext"],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": volume["name"], "mountPath": mount["mountPath"], "readOnly": True}],
    }
    if "imagePullPolicy" in trainer:
        container["imagePullPolicy"] = trainer["imagePullPolicy"]
    spec: Object = {
        **{key: template[key] for key in COPIED_FIELDS if key in template},
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Never",
        "activeDeadlineSeconds": deadline_s,
        "terminationGracePeriodSeconds": 1,
        "volumes": [{"name": volume["name"], "persistentVolumeClaim": {"claimName": source.claim}}],
        "containers": [container],
    }
    if source.node is not None:
        same_node = {"matchExpressions": [{"key": HOSTNAME, "operator": "In", "values": [source.node]}]}
        preferred = [{"weight": 100, "preference": same_node}]
        spec["affinity"] = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}
    owner = {
        "apiVersion": API_VERSION,
        "kind": KIND,
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


def fetch(cluster: Cluster, source: ResultsSource, target: Path, experiment: GRPOExperiment) -> list[str]:
    """Fetch the small files of a run into ``target``; returns their names. Raises ``RunError`` on failure."""
    files = extract_files(read_archive(cluster, source))
    if not files:
        raise RunError(f"{source.directory} on the volume claim {source.claim} contains none of {', '.join(FILES)}")
    target.mkdir(parents=True, exist_ok=True)
    location = {
        "context": cluster.context,
        "namespace": source.namespace,
        "name": source.name,
        "claim": source.claim,
        "directory": source.directory,
    }
    run_files.write_atomic(run_files.cluster_file(target), json.dumps(location))
    run_files.write_atomic(run_files.experiment_file(target), experiment_yaml(experiment))
    for name, data in files.items():
        run_files.write_atomic(target / name, data)
    return sorted(files)


def read_archive(cluster: Cluster, source: ResultsSource, files: Collection[str] = FILES) -> bytes:
    """Get the archive of ``files`` printed by a reader pod. The pod is always deleted."""
    command = ["python3", "-c", inspect.getsource(print_files).replace("$(", "$$("), source.directory, *files]
    body = reader_pod(source, command, deadline_s=int(READ_TIMEOUT_S))
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
    """Wait until a reader pod has finished. Raises ``RunError`` if it failed."""
    wait_for(cluster, namespace, name, lambda status: terminated(status) is not None)


def wait_until_running(cluster: Cluster, namespace: str, name: str) -> None:
    """Wait until a reader pod is running. Raises ``RunError`` if it does not start."""
    wait_for(cluster, namespace, name, lambda status: status.get("phase") == "Running")


def wait_for(cluster: Cluster, namespace: str, name: str, condition: Callable[[Object], bool]) -> None:
    """Wait until ``condition`` holds for the pod's status. Raises ``RunError`` if it failed or is late."""
    deadline, reason = time.monotonic() + READ_TIMEOUT_S, "it was not started"
    while time.monotonic() < deadline:
        pod = cluster.get("Pod", namespace, name)
        if pod is None:
            raise RunError(f"pod {name} was deleted while reading the files")
        status = pod.get("status") or {}
        reason = waiting_reason(status) or reason
        ended = terminated(status)
        if status.get("phase") == "Failed" or (ended is not None and ended["exitCode"]):
            message = str((ended or status).get("message") or "").strip()
            raise RunError(f"pod {name} could not read the files: {message or (ended or status).get('reason')}")
        if condition(status):
            return
        time.sleep(POLL_S)
    raise RunError(f"pod {name} did not read the files within {READ_TIMEOUT_S:.0f} s: {reason}")


def terminated(status: Object) -> dict[str, Any] | None:
    """Termination state of the only container; None while it runs."""
    for container in status.get("containerStatuses") or ():
        ended = (container.get("state") or {}).get("terminated")
        if ended is not None:
            return dict(ended)
    return None


def waiting_reason(status: Object) -> str | None:
    """Why a pod is not running yet."""
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message") or condition.get("reason"))
    for container in status.get("containerStatuses") or ():
        waiting = (container.get("state") or {}).get("waiting")
        if waiting is not None:
            return ": ".join(str(waiting[key]) for key in ("reason", "message") if waiting.get(key))
    return None


def extract_files(data: bytes, files: Collection[str] = FILES) -> dict[str, bytes]:
    """Extract only ``files`` from an archive of at most ``MAX_PLAIN_BYTES``. Raises ``RunError`` if it is damaged.

    A few kilobytes of xz can expand to terabytes, so it is decompressed with a bound first.
    """
    contents: dict[str, bytes] = {}
    limit = print_files.MAX_PLAIN_BYTES + ARCHIVE_OVERHEAD_BYTES
    try:
        decompressor = lzma.LZMADecompressor(memlimit=MAX_DECOMPRESSOR_BYTES)
        plain = decompressor.decompress(data, max_length=limit)
        if not decompressor.eof:
            raise RunError(f"the archive of the files is incomplete or larger than {limit} bytes")
        with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isreg() and member.name in files else None
                if file is not None:
                    contents[member.name] = file.read()
                if len(contents) == len(files):
                    break
    except (lzma.LZMAError, tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise RunError(f"the archive of the files is damaged: {error}") from error
    return contents
