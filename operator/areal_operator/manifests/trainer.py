"""The trainer: one Indexed Job per attempt, with one pod per node that runs torchrun."""

from __future__ import annotations

from pathlib import Path

from areal_api import names, resource_names
from areal_api.commands import (
    TORCHRUN_MODULE,
    bucket_env,
    check_bucket_command,
    script_arguments,
    trainer_env,
    with_code,
)
from areal_api.experiment import TrainerSpec
from areal_operator.manifests import code
from areal_operator.manifests.agents import tool_urls
from areal_operator.manifests.base import Build, Manifest, owned
from areal_operator.manifests.pod import (
    API_KEY_FILE,
    CONFIG_FILE,
    compute_threads,
    container,
    environment,
    mounts,
    pod_template,
    resources,
    without_devices,
)
from areal_operator.manifests.servers import PYTHON
from areal_operator.manifests.shared import API_KEY, headless_service

MEMORY_PER_GPU_GIB = 24  # host memory requested by default; for the copies of checkpoints among others
TOKEN_DIR = "/var/run/areal"
GATEWAY_KEY_DIR = "/etc/areal/gateway-key"
TOKEN_S = 3600  # the kubelet renews the token
SERVERS = "areal.dev/servers"  # annotation: number of servers whose addresses the trainer was started with
HUB_CACHE = ".huggingface"  # on the run's volume: trainer pods and later attempts download nothing again
CONTAINER, INIT_CONTAINER = "trainer", "prepare"
BUCKET_CONTAINER = "bucket"
OWN_CONTAINERS = (INIT_CONTAINER, BUCKET_CONTAINER, code.DOWNLOAD_CONTAINER, code.CONTAINER, CONTAINER)
DISRUPTED = "DisruptionTarget"
COMPLETION_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def trainer_job(build: Build) -> Manifest:
    """The Job of the current attempt. It never retries: one lost rank ends it, and the operator starts the next.

    podFailurePolicy marks disruptions, so that the Job's failure names them even after its pods are gone.
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
        annotations={SERVERS: str(build.experiment.spec.max_replicas), **code.job_annotations(build)},
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


def service(build: Build) -> tuple[Manifest, ...]:
    """The headless Service of the trainer's pods, if anything calls one by its name: other nodes of the trainer, or
    servers that download weights."""
    spec = build.experiment.spec
    if spec.trainer.nodes == 1 and spec.storage.shared:
        return ()
    name, port = resource_names.trainer(build.name), resource_names.MASTER_PORT
    return (headless_service(build, name, resource_names.TRAINER, port),)


def _template(build: Build, labels: Manifest) -> Manifest:
    trainer = build.experiment.spec.trainer
    template = pod_template(
        build,
        trainer,
        labels=labels,
        containers={
            "initContainers": [_prepare(build), *_check_bucket(build), *_code(build)],
            "containers": [_trainer(build)],
        },
        group=None if build.gang is None else build.gang.trainer,
    )
    spec = {
        **template["spec"],
        "restartPolicy": "Never",
        "subdomain": resource_names.trainer(build.name),
        "terminationGracePeriodSeconds": trainer.termination_grace_period_seconds,
    }
    spec["volumes"] = [*spec["volumes"], *code.volumes(build)]
    if build.settings.progress_url is not None:
        token = {"path": "token", "audience": resource_names.progress_audience(build.uid), "expirationSeconds": TOKEN_S}
        source = {"sources": [{"serviceAccountToken": token}], "defaultMode": 0o440}
        spec["volumes"] = [*spec["volumes"], {"name": "areal-progress", "projected": source}]
    if build.experiment.spec.has_gateway:
        secret = {"secretName": resource_names.gateway_key_secret(build.name, build.uid), "defaultMode": 0o440}
        spec["volumes"] = [*spec["volumes"], {"name": "areal-gateway-key", "secret": secret}]
    return {**template, "spec": spec}


def _prepare(build: Build) -> Manifest:
    """Creates the run directory and copies the resolved configuration into it; a full volume already fails here.

    It gets the trainer's CPU and memory. That reserves nothing more, because init containers run before the others,
    and it satisfies every LimitRange and quota that the trainer itself satisfies.
    """
    trainer = build.experiment.spec.trainer
    script = f'mkdir -p "$1" && cp {CONFIG_FILE} "$1/config.yaml.$HOSTNAME" && '
    script += 'mv "$1/config.yaml.$HOSTNAME" "$1/config.yaml"'
    result = container(
        trainer,
        name=INIT_CONTAINER,
        image=build.image("trainer"),
        command=["/bin/sh", "-c", script, "prepare", str(build.run_dir)],
        env=[],
        amounts=without_devices(_resources(trainer)),
    )
    return {**result, "volumeMounts": mounts(build, trainer, run_volume="read-write")}


def _check_bucket(build: Build) -> list[Manifest]:
    """Tries the bucket with the trainer's credentials, so that the run ends with one sentence before it trains."""
    command = check_bucket_command(build.experiment.spec, python=PYTHON)
    return [] if command is None else [_preparing(build, BUCKET_CONTAINER, command, [])]


def _code(build: Build) -> list[Manifest]:
    """Fetches the user's code and installs its packages; no container without ``spec.code``."""
    mounted, commands = code.mounts_to_prepare(build), code.commands(build, layers=code.layers_of_run(build))
    return [_preparing(build, name, [PYTHON, *command], mounted) for name, command in commands]


def _preparing(build: Build, name: str, command: list[str], mounted: list[Manifest]) -> Manifest:
    """An init container with the trainer's image, environment, CPU and memory."""
    trainer = build.experiment.spec.trainer
    result = container(
        trainer,
        name=name,
        image=build.image("trainer"),
        command=command,
        env=environment(build, trainer, bucket_env(build.experiment.spec), []),
        amounts=without_devices(_resources(trainer)),
    )
    return {**result, "volumeMounts": [*mounts(build, trainer, run_volume="read-write"), *mounted]}


def _trainer(build: Build) -> Manifest:
    trainer = build.experiment.spec.trainer
    paths = code.paths(build)
    env = trainer_env(
        build.experiment,
        run_dir=Path(build.run_dir),
        config_file=Path(CONFIG_FILE),
        server_addrs=_server_addresses(build),
        api_key_file=Path(API_KEY_FILE),
        threads=compute_threads(trainer, trainer.processes_per_node),
    )
    result = container(
        trainer,
        name=CONTAINER,
        image=build.image("trainer"),
        command=with_code([PYTHON, "-m", TORCHRUN_MODULE, *script_arguments(trainer.script, paths)], paths),
        env=environment(
            build,
            trainer,
            {
                "HF_HOME": str(build.fileroot / HUB_CACHE),
                **_torchrun(build),
                **_progress(build),
                **_weights(build),
                **tool_urls(build),
                **env,
            },
            [
                {"name": "PET_NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": COMPLETION_INDEX}}},
                *_gateway_env(build),
            ],
        ),
        amounts=_resources(trainer),
    )
    mounted = [*mounts(build, trainer, run_volume="read-write"), *code.mounts_to_use(build)]
    if build.settings.progress_url is not None:
        mounted = [*mounted, {"name": "areal-progress", "mountPath": TOKEN_DIR, "readOnly": True}]
    if build.experiment.spec.has_gateway:
        mounted = [*mounted, {"name": "areal-gateway-key", "mountPath": GATEWAY_KEY_DIR, "readOnly": True}]
        result["readinessProbe"] = _gateway_probe()
    return {
        **result,
        "volumeMounts": mounted,
        "ports": [{"name": "torchrun", "containerPort": resource_names.MASTER_PORT, "protocol": "TCP"}],
    }


def _server_addresses(build: Build) -> list[str]:
    """Of all servers that the run may have, those of pools last."""
    spec = build.experiment.spec
    borrowed_from = spec.max_replicas if spec.servers.autoscale is None else spec.servers.autoscale.min
    addresses: list[str] = []
    for group in spec.servers.groups:
        owner = resource_names.pool_servers(build.name, group.pool)
        for index in range(spec.max_replicas if group.pool is None else group.servers.replicas):
            borrowed = group.pool is None and index >= borrowed_from
            addresses.append(
                resource_names.server_address(
                    build.name,
                    build.namespace,
                    index,
                    nodes=group.servers.nodes_per_server,
                    owner=resource_names.borrowed_server(build.name, index) if borrowed else owner,
                )
            )
    return addresses


def _gateway_env(build: Build) -> list[Manifest]:
    if not build.experiment.spec.has_gateway:
        return []
    return [
        {"name": names.POD_IP, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": names.GATEWAY_ADDRESS, "value": f"$({names.POD_IP}):{resource_names.GATEWAY_PORT}"},
        {"name": names.GATEWAY_KEY_FILE, "value": f"{GATEWAY_KEY_DIR}/{API_KEY}"},
    ]


def _gateway_probe() -> Manifest:
    """Ready once the gateway listens: agents start then. Only the first pod has a gateway."""
    script = f'[ "$PET_NODE_RANK" != 0 ] || exec 3<>"/dev/tcp/${names.POD_IP}/{resource_names.GATEWAY_PORT}"'
    probe = {"exec": {"command": ["/bin/bash", "-c", script]}}
    return {**probe, "periodSeconds": 2, "timeoutSeconds": 5, "failureThreshold": 3}


def _resources(trainer: TrainerSpec) -> Manifest:
    return resources(trainer, gpus=trainer.processes_per_node, gib_per_gpu=MEMORY_PER_GPU_GIB)


def _torchrun(build: Build) -> dict[str, str]:
    trainer = build.experiment.spec.trainer
    first = resource_names.trainer_host(build.name, build.namespace, build.attempt, 0)
    return {
        "PET_NNODES": str(trainer.nodes),
        "PET_NPROC_PER_NODE": str(trainer.processes_per_node),
        "PET_MASTER_ADDR": first if trainer.nodes > 1 else "127.0.0.1",
        "PET_MASTER_PORT": str(resource_names.MASTER_PORT),
        "PET_MAX_RESTARTS": "0",
        names.TORCHRUN_SHUTDOWN_TIMEOUT: str(trainer.termination_grace_period_seconds - 20),
    }


def _weights(build: Build) -> dict[str, str]:
    """Where servers without the run volume download published weights from: the first pod of this attempt."""
    if build.experiment.spec.storage.shared:
        return {}
    host = resource_names.trainer_host(build.name, build.namespace, build.attempt, 0)
    return {names.WEIGHTS_URL: f"http://{host}:{resource_names.WEIGHTS_PORT}"}


def _progress(build: Build) -> dict[str, str]:
    if build.settings.progress_url is None:
        return {}
    path = f"/v1/namespaces/{build.namespace}/experiments/{build.name}/progress"
    return {
        names.PROGRESS_URL: build.settings.progress_url + path,
        names.PROGRESS_TOKEN_FILE: f"{TOKEN_DIR}/token",
    }
