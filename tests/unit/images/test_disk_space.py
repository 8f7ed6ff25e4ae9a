"""hack/cluster/gpu_room.sh and prune.sh with stand-ins of docker, kind, curl and df."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[3] / "hack/cluster"
GB = 10**9


def program(folder: Path, name: str, script: str) -> None:
    """A shell script that appends its arguments to ``folder``/calls."""
    file = folder / name
    file.write_text(f'#!/bin/sh\necho "{name} $*" >>{folder}/calls\n{script}\n')
    file.chmod(0o755)


def run(script: str, folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    variables = {"PATH": f"{folder}:{os.environ['PATH']}", "AREAL_BIN": str(folder), **environ}
    command = [str(SCRIPTS / script), *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine with 40 GB free, whose engine works and has nothing."""
    program(tmp_path, "df", f"echo Avail; echo {40 * GB}")
    program(tmp_path, "docker", f'case "$1" in info) echo {tmp_path} ;; *) exit 1 ;; esac')
    program(tmp_path, "curl", "exit 1")
    program(tmp_path, "kind", "exit 0")
    return tmp_path


def test_the_images_for_gpus_need_more_than_their_size_and_less_space_is_refused(machine: Path) -> None:
    done = run("gpu_room.sh", machine)
    assert (done.returncode, "needs 40 GB of disk space" in done.stderr, "40 GB are free" in done.stderr) == (
        0,
        True,
        True,
    )
    program(machine, "df", f"echo Avail; echo {40 * GB - 1}")
    done = run("gpu_room.sh", machine)
    assert done.returncode == 3
    assert "free 1 GB there" in done.stderr


def test_what_exists_already_needs_no_space(machine: Path) -> None:
    program(machine, "df", "echo Avail; echo 0")
    program(machine, "curl", "exit 0")
    program(machine, "kind", "echo areal-worker")
    program(machine, "docker", "echo localhost:5000/areal-sglang:latest")
    assert run("gpu_room.sh", machine).returncode == 0


# On the node: names of images with their digests, as containerd lists them.
ON_NODE = """\
REF TYPE DIGEST SIZE PLATFORMS LABELS
localhost:5000/areal-sglang:1111 x sha256:gpu 11GB linux/amd64 -
localhost:5000/areal-sglang@sha256:gpu x sha256:gpu 11GB linux/amd64 -
sha256:id-of-gpu x sha256:gpu 11GB linux/amd64 -
localhost:5000/areal-sglang:2222-cpu x sha256:cpu 7GB linux/amd64 -
localhost:5000/areal-sglang:0000-cpu x sha256:cpu 7GB linux/amd64 -
sha256:id-of-cpu x sha256:cpu 7GB linux/amd64 -
localhost:5000/areal-trainer:1111 x sha256:runs 11GB linux/amd64 -
sha256:id-of-runs x sha256:runs 11GB linux/amd64 -
localhost:5000/areal-operator:latest x sha256:op 1GB linux/amd64 -
docker.io/library/other:1111 x sha256:other 1GB linux/amd64 -
"""
TAGS = ["areal-sglang/_manifests/tags/latest", "areal-sglang/_manifests/tags/latest-cpu"]
PUSHED = [
    "localhost:5000/areal-sglang:latest",
    "localhost:5000/areal-sglang:latest-cpu",
    "localhost:5000/areal-operator:2222",
]


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A node, a registry and an engine with images for both devices; a container on the node runs an old trainer."""
    (tmp_path / "on_node").write_text(ON_NODE)
    program(tmp_path, "kind", "echo areal-worker")
    program(tmp_path, "curl", "exit 0")
    program(
        tmp_path,
        "docker",
        f"""case "$*" in
        *"containers ls") printf 'CONTAINER IMAGE RUNTIME\\nc1 sha256:id-of-runs io.containerd\\n' ;;
        *"images ls") cat {tmp_path}/on_node ;;
        *_manifests/tags/\\*) printf '%s\\n' {" ".join(TAGS)} ;;
        "image ls"*) printf '%s\\n' {" ".join(PUSHED)} ;;
        esac""",
    )
    return tmp_path


def removed(folder: Path) -> set[str]:
    """The images that the script removed: on the node, in the registry, and from the engine."""
    calls = (folder / "calls").read_text().splitlines()
    return {call.split()[-1] for call in calls if " rm " in call and "run --rm" not in call}


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (
            "cpu",
            {
                *("localhost:5000/areal-sglang:1111", "localhost:5000/areal-sglang@sha256:gpu", "sha256:id-of-gpu"),
                "localhost:5000/areal-sglang:0000-cpu",  # another name of an image that stays
                "/var/lib/registry/docker/registry/v2/repositories/areal-sglang/_manifests/tags/latest",
                *("localhost:5000/areal-sglang:latest", "areal-sglang:latest"),
            },
        ),
        (
            "cuda",
            {
                *("localhost:5000/areal-sglang:1111", "localhost:5000/areal-sglang@sha256:gpu", "sha256:id-of-gpu"),
                *("localhost:5000/areal-sglang:0000-cpu", "localhost:5000/areal-sglang:2222-cpu", "sha256:id-of-cpu"),
                "/var/lib/registry/docker/registry/v2/repositories/areal-sglang/_manifests/tags/latest-cpu",
                *("localhost:5000/areal-sglang:latest-cpu", "areal-sglang:latest-cpu"),
            },
        ),
    ],
)
def test_images_of_the_other_device_and_of_earlier_contents_are_removed_everywhere(
    cluster: Path, device: str, expected: set[str]
) -> None:
    done = run("prune.sh", cluster, "2222", DEVICE=device)
    assert done.returncode == 0, done.stderr
    assert removed(cluster) == expected
