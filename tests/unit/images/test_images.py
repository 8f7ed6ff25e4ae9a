"""Checks of the image builds that need no build."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

import pytest

from images.project import requirements, write_metadata

ROOT = Path(__file__).parents[3]
PACKAGES = {
    folder.name: folder
    for part in ("crds", "trainer_image", "sglang_image", "launcher", "operator")
    for folder in (ROOT / part).glob("areal_*")
}
# Packages of the processes, by Dockerfile.
PROCESSES = {
    "Dockerfile.trainer": ["areal_trainer"],
    "Dockerfile.sglang": ["areal_server"],
    "operator/Dockerfile": ["areal_operator", "areal_launcher"],  # the operator, and the page
}
PROJECT = {
    "name": "my-project",
    "version": "1.2",
    "dependencies": ["rich>=13", "pyyaml"],
    "optional-dependencies": {"web": ["fastapi>=1"], "dev": ["math-verify[antlr4_13_2]>=0.8"]},
    "entry-points": {"some.plugins": {"mine": "package.module:register"}},
}


def text(dockerfile: str) -> str:
    return (ROOT / dockerfile).read_text()


def stages(dockerfile: str) -> dict[str, str]:
    """Instructions by stage name ("" for an unnamed stage), without comments and with continuation lines joined."""
    plain = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", text(dockerfile), flags=re.MULTILINE))
    found: dict[str, str] = {}
    for stage in re.split(r"^(?=FROM )", plain, flags=re.MULTILINE)[1:]:
        first = stage.splitlines()[0].split()
        found[first[3] if len(first) > 3 else ""] = stage.strip()
    return found


def copied(stage: str) -> list[str]:
    """Sources of COPY instructions from the build context."""
    return [source for line in re.findall(r"^COPY (?!--from)(.*)", stage, re.MULTILINE) for source in line.split()[:-1]]


def imported_packages(package: str) -> set[str]:
    """The project's packages that ``package`` imports, directly or indirectly, including itself."""
    needed, waiting = set[str](), {package}
    while waiting:
        name = waiting.pop()
        needed.add(name)
        for path in PACKAGES[name].rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                waiting |= {module.split(".")[0] for module in modules} & PACKAGES.keys() - needed
    return needed


@pytest.mark.parametrize("dockerfile", PROCESSES)
def test_hadolint_reports_nothing(dockerfile: str) -> None:
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    assert hadolint.exists(), "hadolint is missing: make setup installs it"
    result = subprocess.run([hadolint, ROOT / dockerfile], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("dockerfile", "package"), [(dockerfile, package) for dockerfile, found in PROCESSES.items() for package in found]
)
def test_an_image_contains_and_finds_every_package_that_its_process_imports(dockerfile: str, package: str) -> None:
    sources = [ROOT / source for stage in stages(dockerfile).values() for source in copied(stage)]
    for needed in imported_packages(package):
        folder = PACKAGES[needed]
        assert any(source in (folder, *folder.parents) for source in sources), f"{dockerfile} does not copy {needed}"
        for path in re.findall(r"PYTHONPATH=(\S+)", text(dockerfile)):
            assert f"/opt/areal/{folder.parent.name}" in path.split(":"), f"{dockerfile} does not find {needed}"


def test_the_page_of_the_cluster_imports_nothing_that_its_image_lacks() -> None:
    (left_out,) = re.findall(r"--without (.*?) >", text("operator/Dockerfile"))
    script = (
        "import sys\n"
        f"for name in {left_out.split()!r}: sys.modules[name] = None\n"
        "import areal_launcher.cluster.page_service"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("dockerfile", ["Dockerfile.trainer", "Dockerfile.sglang"])
def test_images_contain_the_examples_at_the_paths_of_the_repository(dockerfile: str) -> None:
    assert {"examples/tiny", "examples/gsm8k"} <= set(copied(stages(dockerfile)["code"]))
    for target in ("cpu", "gpu"):
        assert "COPY --from=code /opt/areal /opt/areal" in stages(dockerfile)[target]


@pytest.mark.parametrize("dockerfile", PROCESSES)
def test_dockerignore_allows_everything_that_a_build_copies(dockerfile: str) -> None:
    allowed = re.findall(r"^!(.*)", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    mounted = re.findall(r"type=bind,source=([^,]+)", text(dockerfile))
    for source in [*mounted, *(source for stage in stages(dockerfile).values() for source in copied(stage))]:
        assert any(source == entry or source.startswith(f"{entry}/") for entry in allowed), source


@pytest.mark.parametrize("dockerfile", PROCESSES)
def test_every_image_runs_as_user_1000(dockerfile: str) -> None:
    for name, stage in stages(dockerfile).items():
        if name in ("cpu", "gpu", ""):
            assert re.findall(r"^USER (.*)", stage, re.MULTILINE) == ["1000:1000"]


@pytest.mark.parametrize("stage", ["requirements", "environment", "cuda-requirements", "cuda-environment"])
def test_trainer_and_server_share_the_stages_of_their_largest_layer(stage: str) -> None:
    assert stages("Dockerfile.trainer")[stage] == stages("Dockerfile.sglang")[stage]


@pytest.mark.parametrize("dockerfile", ["Dockerfile.trainer", "Dockerfile.sglang"])
def test_images_for_gpus_need_no_base_from_a_registry_but_can_have_the_pinned_sglangs(dockerfile: str) -> None:
    (pinned,) = re.findall(r"^sglang==(.*)", text("constraints.txt"), re.MULTILINE)
    assert f"for example lmsysorg/sglang:v{pinned};" in text(dockerfile)
    assert "\nARG SGLANG_IMAGE=\n" in text(dockerfile)
    found = stages(dockerfile)
    assert found["gpu-environment"].startswith("FROM ${SGLANG_IMAGE:-cuda-environment} AS")
    assert found["cuda-environment"].startswith("FROM ${BASE_IMAGE} AS")


@pytest.mark.parametrize("dockerfile", ["Dockerfile.trainer", "Dockerfile.sglang"])
def test_kernels_compiled_at_run_time_are_kept_in_one_writable_place(dockerfile: str) -> None:
    stage = stages(dockerfile)["gpu"]
    for variable in ("XDG_CACHE_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "CUDA_CACHE_PATH"):
        assert f"{variable}=/tmp/.cache" in stage


def toolkit(tmp_path: Path, *, nvcc: bool) -> tuple[Path, Path]:
    """An interpreter whose environment has a CUDA toolkit as pip installs it, and the toolkit's folder."""
    folder = tmp_path / "site" / "nvidia" / "cu13"
    (folder / "bin").mkdir(parents=True)
    (folder / "lib").mkdir()
    (folder / "lib" / "libcudart.so.13").touch()
    if nvcc:
        (folder / "bin" / "nvcc").touch(mode=0o755)
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho {folder}\n")
    python.chmod(0o755)
    return python, folder


def test_the_toolkit_of_wheels_gets_what_linkers_look_for(tmp_path: Path) -> None:
    python, folder = toolkit(tmp_path, nvcc=True)
    for _ in range(2):  # a second call changes nothing
        done = subprocess.run([ROOT / "images/cuda_toolkit.sh", python], capture_output=True, text=True, timeout=60)
        assert (done.stdout.strip(), done.returncode) == (str(folder), 0), done.stderr
    assert (folder / "lib64" / "libcudart.so").resolve() == folder / "lib" / "libcudart.so.13"
    assert b"libcuda.so.1" in (folder / "lib" / "stubs" / "libcuda.so").read_bytes()


def test_an_environment_without_nvcc_is_refused_with_the_fix(tmp_path: Path) -> None:
    python, _ = toolkit(tmp_path, nvcc=False)
    done = subprocess.run([ROOT / "images/cuda_toolkit.sh", python], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "install cuda-toolkit[nvcc,cccl]" in done.stderr


def test_images_and_make_setup_use_the_same_uv() -> None:
    (here,) = re.findall(r"^UV_VERSION := (.*)", text("Makefile"), re.MULTILINE)
    assert f"UV_VERSION={here}\n" in text("images/install.sh")


def test_requirements_are_those_of_the_project_and_its_extras() -> None:
    assert requirements(PROJECT, ["web"], []) == ["rich>=13", "pyyaml", "fastapi>=1"]
    assert requirements(PROJECT, ["dev"], ["rich", "math-verify"]) == ["pyyaml"]


@pytest.mark.parametrize(("extras", "without"), [(["wbe"], []), ([], ["fastapi"])])
def test_an_unknown_extra_or_package_is_refused(extras: list[str], without: list[str]) -> None:
    with pytest.raises(ValueError, match="known "):
        requirements(PROJECT, extras, without)


def test_the_metadata_of_an_image_names_the_entry_points(tmp_path: Path) -> None:
    write_metadata(PROJECT, tmp_path)
    (found,) = distributions(path=[str(tmp_path)])
    (entry,) = found.entry_points
    assert (found.name, found.version) == ("my-project", "1.2")
    assert (entry.group, entry.name, entry.value) == ("some.plugins", "mine", "package.module:register")
