"""The images for GPUs, run by Docker as pods run them, on a machine without a GPU.

``make images DEVICE=cuda`` builds them, 11 GB, so this test does not.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.scenario
SERVER, TRAINER = "areal-sglang:latest", "areal-trainer:latest"
AS_POD = ["--rm", "--read-only", "--user=1000:1000", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
AS_POD += ["--tmpfs=/tmp:exec,size=4g", "--network=none"]
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


@pytest.fixture(scope="module", autouse=True)
def images() -> None:
    """The images must be here."""
    for image in (SERVER, TRAINER):
        try:
            done = subprocess.run(["docker", "image", "inspect", image], capture_output=True, timeout=60)
        except FileNotFoundError:
            pytest.skip("Docker is not installed")
        if done.returncode:
            pytest.skip(f"there is no image {image}; make images DEVICE=cuda builds it")


def run(image: str, script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script in an image, as a pod would."""
    command = ["docker", "run", *AS_POD, "--entrypoint=sh", image, "-ec", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(
    ("image", "modules"),
    [(SERVER, "torch, sglang, flashinfer, areal_server.launch"), (TRAINER, "torch, transformers, areal_trainer.train")],
)
def test_packages_can_be_imported_without_a_driver(image: str, modules: str) -> None:
    done = run(image, f"python3 -c 'import {modules}'")
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("image", [SERVER, TRAINER])
def test_nvcc_compiles_a_kernel_for_hopper(image: str) -> None:
    done = run(
        image, f"cat >/tmp/k.cu <<'END'\n{KERNEL}END\nnvcc -arch=sm_90a -shared -Xcompiler -fPIC -o /tmp/k.so /tmp/k.cu"
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_flashinfer_compiles_a_kernel_that_can_be_loaded(tmp_path: Path) -> None:
    code = "from flashinfer.jit.activation import gen_act_and_mul_module as m; m('silu').build(verbose=False)"
    done = run(SERVER, f'FLASHINFER_CUDA_ARCH_LIST=9.0a python3 -c "{code}"; find /tmp/.cache -name "*.so" | grep silu')
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]


def test_a_server_says_in_one_line_that_there_is_no_gpu() -> None:
    start = "python3 -m areal_server.launch --config /tmp/c.yaml --device cuda --port 30000"
    done = run(SERVER, f"echo '{json.dumps(CONFIG)}' >/tmp/c.yaml; {start}")
    assert done.returncode == 1
    assert "needs as many GPUs, but this machine has 0" in done.stderr.strip().splitlines()[-1]


def test_trainer_and_server_share_their_large_layers() -> None:
    layers: list[list[str]] = []
    for image in (SERVER, TRAINER):
        command = ["docker", "image", "inspect", "--format={{json .RootFS.Layers}}", image]
        layers.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    shared = [first for first, second in zip(*layers, strict=True) if first == second]
    assert len(shared) >= 2
