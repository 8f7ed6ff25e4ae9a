"""The images for GPUs in pods of the kind cluster, whose nodes have no GPU.

``make gpu-images`` builds them, 11 GB, and runs these tests; other targets do not build them.
"""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from typing import Any

import pytest

from hack.cluster.kind_cluster import REGISTRY, KindCluster
from hack.testbed.kube_api import eventually

pytestmark = pytest.mark.scenario
SERVER, TRAINER = "areal-sglang", "areal-trainer"
PULL_S, RUN_S = 1800.0, 600.0
KERNEL = """
#include <cub/cub.cuh>
__global__ void sum(float* x) {
  typedef cub::BlockReduce<float, 128> Reduce;
  __shared__ typename Reduce::TempStorage storage;
  float total = Reduce(storage).Sum(x[threadIdx.x]);
  if (threadIdx.x == 0) x[0] = total;
}
"""
CONFIG = {
    "experiment_name": "e",
    "actor": {"path": "examples/tiny/model", "ppo_n_minibatches": 1},
    "train_dataset": {"path": "none.jsonl"},
}
COMPILE_ONCE = """
set -e
if find /tmp/.cache -name '*.so' | grep -q silu; then echo the kernel was kept; exit 0; fi
FLASHINFER_CUDA_ARCH_LIST=9.0a python3 -c "
from flashinfer.jit.activation import gen_act_and_mul_module as module
module('silu').build(verbose=False)"
exit 1
"""


@pytest.fixture(scope="module", autouse=True)
def images(cluster: KindCluster) -> None:
    """The cluster's registry must have the images."""
    for image in (SERVER, TRAINER):
        try:
            urllib.request.urlopen(f"http://{REGISTRY}/v2/{image}/manifests/latest", timeout=30).close()
        except urllib.error.HTTPError:
            pytest.skip(f"the registry has no {image}:latest; make gpu-images builds it")


def start(cluster: KindCluster, namespace: str, image: str, script: str, **spec: Any) -> None:
    """Start a pod like the operator's: user 1000, read-only root, /tmp on a volume of the pod."""
    container = {
        "name": "main",
        "image": f"{REGISTRY}/{image}:latest",
        "command": ["sh", "-c", script],
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "gpu"},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "nodeSelector": {"kubernetes.io/hostname": cluster.worker},
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
            **spec,
        },
    }
    cluster.kubectl("--namespace", namespace, "apply", "--filename", "-", text=json.dumps(body))


def ended(cluster: KindCluster, namespace: str) -> tuple[int, str]:
    """Exit status and output of the pod."""

    def state() -> dict[str, Any]:
        status = json.loads(cluster.kubectl("--namespace", namespace, "get", "pod", "gpu", "--output=json"))["status"]
        containers: list[dict[str, Any]] = status.get("containerStatuses", [])
        return dict(containers[0]["state"]) if containers else {}

    eventually(lambda: "running" in state() or "terminated" in state(), "the image is pulled", PULL_S, pause_s=2.0)
    eventually(lambda: "terminated" in state(), "the pod ends", RUN_S, pause_s=1.0)
    return int(state()["terminated"]["exitCode"]), cluster.kubectl("--namespace", namespace, "logs", "gpu")


def run(cluster: KindCluster, namespace: str, image: str, script: str) -> tuple[int, str]:
    """Run a shell script in a pod."""
    start(cluster, namespace, image, script)
    return ended(cluster, namespace)


@pytest.mark.parametrize(
    ("image", "modules"),
    [(SERVER, "torch, sglang, flashinfer, areal_server.launch"), (TRAINER, "torch, transformers, areal_trainer.train")],
)
def test_packages_can_be_imported_without_a_driver(
    cluster: KindCluster, namespace: str, image: str, modules: str
) -> None:
    status, output = run(cluster, namespace, image, f"python3 -c 'import {modules}' 2>&1")
    assert status == 0, output[-2000:]


@pytest.mark.parametrize("image", [SERVER, TRAINER])
def test_nvcc_compiles_a_kernel_for_hopper(cluster: KindCluster, namespace: str, image: str) -> None:
    compile_it = "nvcc -arch=sm_90a -shared -Xcompiler -fPIC -o /tmp/k.so /tmp/k.cu 2>&1"
    status, output = run(cluster, namespace, image, f"cat >/tmp/k.cu <<'END'\n{KERNEL}END\n{compile_it}")
    assert status == 0, output[-2000:]


def test_kernels_compiled_at_run_time_survive_a_restart_of_the_container(cluster: KindCluster, namespace: str) -> None:
    start(cluster, namespace, SERVER, COMPILE_ONCE, restartPolicy="OnFailure")

    def output() -> str:
        try:
            return cluster.kubectl("--namespace", namespace, "logs", "gpu")
        except subprocess.CalledProcessError:  # the container waits for its next start
            return ""

    eventually(lambda: "the kernel was kept" in output(), "the second start finds the kernel", PULL_S, pause_s=2.0)


def test_a_server_parses_its_arguments_and_says_in_one_line_that_there_is_no_gpu(
    cluster: KindCluster, namespace: str
) -> None:
    launch = "python3 -m areal_server.launch --config /tmp/c.yaml --device cuda --port 30000 2>&1"
    script = f"{launch} --no-such-option; echo '{json.dumps(CONFIG)}' >/tmp/c.yaml; {launch}"
    status, output = run(cluster, namespace, SERVER, script)
    assert "unrecognized arguments: --no-such-option" in output
    assert (status, "needs as many GPUs, but this machine has 0" in output.strip().splitlines()[-1]) == (1, True)


def test_a_trainer_says_that_there_is_no_gpu(cluster: KindCluster, namespace: str) -> None:
    script = f"echo '{json.dumps(CONFIG)}' >/tmp/c.yaml; python3 -m areal_trainer.train --config /tmp/c.yaml 2>&1"
    status, output = run(cluster, namespace, TRAINER, f"export AREAL_DEVICE=cuda; {script}")
    assert status == 2, output[-2000:]
    assert "torch sees no GPU here" in output
