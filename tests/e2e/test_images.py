"""The images, run by Docker as the operator's pods run them: as user 1000 on a read-only root file system."""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from areal_api.load import load_experiment
from areal_operator.manifests.base import Build
from areal_operator.manifests.servers import server_set
from areal_operator.manifests.trainer import trainer_job
from areal_operator.settings import Settings
from support.containers import PodHost, docker

ROOT = Path(__file__).parents[2]
OPERATOR, SERVER, TRAINER = "areal-operator:latest", "areal-sglang:latest-cpu", "areal-trainer:latest-cpu"
IMAGES = {("trainer", "cpu"): TRAINER, ("server", "cpu"): SERVER}
BUILD_S, READY_S, TRAIN_S = 1800.0, 300.0, 300.0
STEPS = 3


def build_images() -> str:
    """Build the images if something has changed; returns their tag, a digest."""
    result = subprocess.run(
        [ROOT / "hack/cluster/images.sh"],
        capture_output=True,
        text=True,
        timeout=BUILD_S,
        env={**os.environ, "REGISTRY": ""},
    )
    if result.returncode == 3:
        pytest.skip(f"the images cannot be built: {result.stderr.strip().splitlines()[-1]}")
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.strip()


@pytest.fixture(scope="module")
def tag() -> str:
    return build_images()


@pytest.fixture
def host(tag: str, tmp_path: Path) -> Iterator[PodHost]:
    """Runs the containers of a short run of the tiny example on an isolated network."""
    network = f"areal-test-{uuid.uuid4().hex[:8]}"
    experiment = load_experiment(ROOT / "examples/tiny/experiment.yaml", [f"config.total_train_steps={STEPS}"])
    build = Build(experiment, "default", "uid", 1, "s3cret", "gateway-key", Settings(images=IMAGES, progress_url=None))
    host = PodHost(build, network, tmp_path)
    host.prepare()
    docker("network", "create", "--internal", network)
    yield host
    if names := docker("ps", "--all", "--quiet", "--filter", f"network={network}").split():
        docker("rm", "--force", *names)
    docker("network", "rm", network)


def until_ended(container: str, timeout_s: float) -> None:
    """Wait for a container to exit with status 0."""
    code = docker("wait", container, timeout_s=timeout_s)
    assert code == "0", subprocess.run(["docker", "logs", container], capture_output=True, text=True).stderr[-3000:]


def until_ready(container: str) -> None:
    """Wait for the server in a container, probing from inside because its network is isolated."""
    ask = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:30000/ready', timeout=5).status)"
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        running = docker("inspect", "--format", "{{.State.Running}}", container) == "true"
        logs = subprocess.run(["docker", "logs", "--tail", "30", container], capture_output=True, text=True)
        assert running, logs.stdout + logs.stderr
        if subprocess.run(["docker", "exec", container, "python3", "-c", ask], capture_output=True).returncode == 0:
            return
        time.sleep(1.0)
    raise AssertionError(f"the server was not ready within {READY_S:.0f} s:\n{logs.stdout}{logs.stderr}")


def pod_of(manifest: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = manifest["spec"]["template"]["spec"]
    return pod


def test_server_and_trainer_learn_on_read_only_file_systems(host: PodHost) -> None:
    server = host.start(pod_of(server_set(host.build, 1))["containers"][0], SERVER, host=host.server_host())
    until_ready(server)
    pod = pod_of(trainer_job(host.build))
    until_ended(host.start(pod["initContainers"][0], TRAINER, host="prepare"), 60.0)
    until_ended(host.start(pod["containers"][0], TRAINER, host="trainer"), TRAIN_S)
    (summary,) = (host.folder / "run").glob("*/*/summary.json")
    found = json.loads(summary.read_text())
    assert (found["outcome"], found["steps"]) == ("succeeded", STEPS)


def test_the_operator_reports_that_it_is_not_in_a_cluster(tag: str) -> None:
    arguments = ["--rm", "--read-only", "--user", "1000:1000", "--cap-drop=ALL", "--tmpfs", "/tmp", "--network=none"]
    result = subprocess.run(["docker", "run", *arguments, OPERATOR], capture_output=True, text=True, timeout=60)
    assert result.returncode != 0
    assert "found neither a service account nor a kubeconfig" in result.stderr


def test_the_page_starts_in_the_operators_image_and_reports_that_it_is_not_in_a_cluster(tag: str) -> None:
    arguments = ["--rm", "--read-only", "--user", "1000:1000", "--cap-drop=ALL", "--network=none"]
    command = [OPERATOR, "-m", "areal_launcher.cluster.page_service"]
    result = subprocess.run(
        ["docker", "run", *arguments, "--entrypoint=python3", *command], capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, "no cluster is configured" in result.stderr) == (2, True)


@pytest.mark.parametrize("image", [OPERATOR, SERVER, TRAINER])
def test_an_image_runs_as_a_named_user_and_contains_the_packages(tag: str, image: str) -> None:
    script = "id -un; python3 -c 'import areal_api; print(areal_api.__file__)'; pwd"
    arguments = ["--rm", "--read-only", "--network=none", "--entrypoint", "sh"]
    user, module, folder = docker("run", *arguments, image, "-c", script).splitlines()
    assert (user, module, folder) == ("areal", "/opt/areal/crds/areal_api/__init__.py", "/opt/areal")


def test_trainer_and_server_share_their_large_layers(tag: str) -> None:
    layers: list[list[str]] = []
    for image in (SERVER, TRAINER):
        layers.append(json.loads(docker("image", "inspect", "--format", "{{json .RootFS.Layers}}", image)))
    shared = [first for first, second in zip(*layers, strict=True) if first == second]
    sizes = docker("history", "--human=false", "--format", "{{.Size}}", TRAINER).split()
    written = sorted(int(size) for size in sizes if size != "0")
    assert len(shared) >= 2
    assert sum(written[: len(layers[1]) - len(shared)]) < 20e6 < sum(written[-2:])


@pytest.mark.parametrize("image", [OPERATOR, SERVER, TRAINER])
def test_an_image_contains_no_trace_of_the_machine_that_built_it(tag: str, image: str) -> None:
    history = docker("history", "--no-trunc", image)
    assert not [word for word in ("CERT", "http://", "https://", "ca-certificates") if word in history]
    search = "find / -xdev \\( -path '/run/secrets/*' -o -path '/build/*' -o -name 'pip.conf' \\) 2>/dev/null || :"
    assert docker("run", "--rm", "--entrypoint", "sh", "--network=none", image, "-c", search) == ""


def test_a_second_build_gives_the_same_tag(tag: str) -> None:
    assert build_images() == tag
