"""The trainer: one Indexed Job an attempt, a pod a node, torchrun in each."""

from __future__ import annotations

from pathlib import Path

from areal_api import names, resource_names
from areal_api.commands import TORCHRUN_MODULE, script_arguments, trainer_env
from areal_operator.manifests.base import Build, Manifest, owned
from areal_operator.manifests.pod import (
    API_KEY_FILE,
    CONFIG_FILE,
    compute_threads,
    container,
    environment,
    mounts,
    pod_template,
)
from areal_operator.manifests.servers import PYTHON

GRACE_S = 180  # the step is finished and a recovery checkpoint written
TOKEN_DIR = "/var/run/areal"
TOKEN_S = 3600  # the kubelet renews it
SERVERS = "areal.dev/servers"  # how many servers the trainer knows the addresses of
DISRUPTED = "DisruptionTarget"
COMPLETION_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def trainer_job(build: Build) -> Manifest:
    """The Job of the current attempt. It never retries: one lost rank ends the attempt, the operator begins the next.

    The first rule of podFailurePolicy marks disruptions: the Job's failure then says so, also when its pods are gone.
    """
    nodes = build.experiment.spec.trainer.nodes
    labels = {
        **resource_names.component_labels(build.name, resource_names.TRAINER),
        resource_names.ATTEMPT: str(build.attempt),
    }
    return owned(
        build,
        api_version="batch/v1",
        kind="Job",
        name=resource_names.trainer_job(build.name, build.attempt),
        labels=labels,
        annotations={SERVERS: str(build.experiment.spec.max_replicas)},
        body={
            "spec": {
                "completionMode": "Indexed",
                "completions": nodes,
                "parallelism": nodes,
                "backoffLimit": 0,
                "suspend": False,
                "podReplacementPolicy": "Failed",
                "podFailurePolicy": {
                    "rules": [
                        {"action": "FailJob", "onPodConditions": [{"type": DISRUPTED, "status": "True"}]},
                    ]
                },
                "template": _template(build, labels),
            }
        },
    )


def _template(build: Build, labels: Manifest) -> Manifest:
    trainer = build.experiment.spec.trainer
    template = pod_template(
        build,
        trainer,
        labels=labels,
        containers={"initContainers": [_prepare(build)], "containers": [_trainer(build)]},
    )
    spec = {
        **template["spec"],
        "restartPolicy": "Never",
        "subdomain": resource_names.trainer(build.name),
        "terminationGracePeriodSeconds": GRACE_S,
    }
    if build.settings.progress_url is not None:
        token = {"path": "token", "audience": resource_names.progress_audience(build.uid), "expirationSeconds": TOKEN_S}
        source = {"sources": [{"serviceAccountToken": token}], "defaultMode": 0o440}
        spec["volumes"] = [*spec["volumes"], {"name": "areal-progress", "projected": source}]
    return {**template, "spec": spec}


def _prepare(build: Build) -> Manifest:
    """Makes the run directory and leaves the resolved configuration there; a volume that is full says so here."""
    trainer = build.experiment.spec.trainer
    script = f'mkdir -p "$1" && cp {CONFIG_FILE} "$1/config.yaml.$HOSTNAME" && '
    script += 'mv "$1/config.yaml.$HOSTNAME" "$1/config.yaml"'
    result = container(
        trainer,
        name="prepare",
        image=build.image("trainer"),
        command=["/bin/sh", "-c", script, "prepare", str(build.run_dir)],
        env=[],
        gpus=0,
    )
    small = {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"cpu": "1", "memory": "128Mi"}}
    return {**result, "resources": small, "volumeMounts": mounts(build, trainer)}


def _trainer(build: Build) -> Manifest:
    trainer = build.experiment.spec.trainer
    env = trainer_env(
        build.experiment,
        run_dir=Path(build.run_dir),
        config_file=Path(CONFIG_FILE),
        server_addrs=[
            resource_names.server_address(build.name, build.namespace, index)
            for index in range(build.experiment.spec.max_replicas)
        ],
        api_key_file=Path(API_KEY_FILE),
        threads=compute_threads(trainer, trainer.processes_per_node),
    )
    result = container(
        trainer,
        name="trainer",
        image=build.image("trainer"),
        command=[PYTHON, "-m", TORCHRUN_MODULE, *script_arguments(trainer.script)],
        env=environment(
            build,
            trainer,
            {**_torchrun(build), **_progress(build), **env},
            [{"name": "PET_NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": COMPLETION_INDEX}}}],
        ),
        gpus=trainer.processes_per_node,
    )
    mounted = mounts(build, trainer)
    if build.settings.progress_url is not None:
        mounted = [*mounted, {"name": "areal-progress", "mountPath": TOKEN_DIR, "readOnly": True}]
    return {
        **result,
        "volumeMounts": mounted,
        "ports": [{"name": "torchrun", "containerPort": resource_names.MASTER_PORT, "protocol": "TCP"}],
    }


def _torchrun(build: Build) -> dict[str, str]:
    trainer = build.experiment.spec.trainer
    first = resource_names.trainer_host(build.name, build.namespace, build.attempt, 0)
    return {
        "PET_NNODES": str(trainer.nodes),
        "PET_NPROC_PER_NODE": str(trainer.processes_per_node),
        "PET_MASTER_ADDR": first if trainer.nodes > 1 else "127.0.0.1",
        "PET_MASTER_PORT": str(resource_names.MASTER_PORT),
        "PET_MAX_RESTARTS": "0",
        names.TORCHRUN_SHUTDOWN_TIMEOUT: str(GRACE_S - 20),
    }


def _progress(build: Build) -> dict[str, str]:
    if build.settings.progress_url is None:
        return {}
    path = f"/v1/namespaces/{build.namespace}/experiments/{build.name}/progress"
    return {
        names.PROGRESS_URL: build.settings.progress_url + path,
        names.PROGRESS_TOKEN_FILE: f"{TOKEN_DIR}/token",
    }
