"""The trainer's Job: torchrun, the init container, progress reports."""

from __future__ import annotations

import subprocess
from pathlib import Path

from areal_api import names
from areal_operator.manifests.pod import CONFIG_FILE
from support.operator_manifests import env_of, made, pods


def test_the_trainer_has_the_addresses_of_all_servers_up_to_max_replicas() -> None:
    (_, trainer) = pods(servers={"replicas": 1, "maxReplicas": 2})
    assert env_of(trainer)[names.SERVER_ADDRS] == (
        "case-server-0.case-server.ns.svc:30000,case-server-1.case-server.ns.svc:30000"
    )


def test_torchrun_is_configured_by_its_environment() -> None:
    (_, pod) = pods(trainer={"nodes": 2, "processesPerNode": 4})
    env = env_of(pod)
    assert {key: value for key, value in env.items() if key.startswith("PET_")} == {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "4",
        "PET_MASTER_ADDR": "case-trainer-1-0.case-trainer.ns.svc",
        "PET_MASTER_PORT": "29500",
        "PET_MAX_RESTARTS": "0",
        "PET_NODE_RANK": {
            "fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}
        },
    }
    assert pod["containers"][0]["command"] == ["python3", "-m", "torch.distributed.run", "-m", "areal_trainer.train"]
    assert pod["subdomain"] == "case-trainer"


def test_the_resolved_configuration_is_copied_to_the_run_directory(tmp_path: Path) -> None:
    (_, pod) = pods()
    shell, option, script, *arguments = pod["initContainers"][0]["command"]
    assert arguments == ["prepare", "/opt/areal/runs/case/trial0"]
    (tmp_path / "resolved").write_text("seed: 1\n")
    script = script.replace(CONFIG_FILE, str(tmp_path / "resolved"))
    run = tmp_path / "a run" / "trial0"
    subprocess.run([shell, option, script, "prepare", str(run)], check=True, env={"HOSTNAME": "pod-0", "PATH": "/bin"})
    assert [path.name for path in run.iterdir()] == ["config.yaml"]
    assert (run / "config.yaml").read_text() == "seed: 1\n"


def test_the_job_never_retries_and_marks_disruptions() -> None:
    spec = made("Job")["spec"]
    assert (spec["backoffLimit"], spec["completionMode"], spec["template"]["spec"]["restartPolicy"]) == (
        0,
        "Indexed",
        "Never",
    )
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule == {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


def test_the_init_container_has_the_trainers_cpu_and_memory() -> None:
    limits = {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": 1}
    (_, trainer) = pods(trainer__resources={"limits": limits})
    assert trainer["initContainers"][0]["resources"] == {"limits": {"cpu": "4", "memory": "16Gi"}}
    (_, trainer) = pods()
    assert trainer["initContainers"][0]["resources"] == {"requests": {"cpu": "3", "memory": "24Gi"}}


def test_the_progress_token_is_for_this_experiment_alone() -> None:
    (_, pod) = pods()
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "areal-progress"]
    (source,) = volume["projected"]["sources"]
    assert source["serviceAccountToken"]["audience"] == "progress.areal.dev/uid-1"
    env = env_of(pod)
    assert env[names.PROGRESS_URL] == "http://operator:8080/v1/namespaces/ns/experiments/case/progress"
    assert env[names.PROGRESS_TOKEN_FILE] == "/var/run/areal/token"
