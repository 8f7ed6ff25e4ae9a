"""What grpo sees of a machine's GPUs, driver, compiler and packages, with stand-ins of nvidia-smi and nvcc."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from areal_api import names
from areal_api.experiment import ExperimentSpec
from areal_launcher.cli import main
from areal_launcher.fit import fit_here, fit_in_cluster, fit_in_jobs
from areal_launcher.gpu_machine import GpuMachine, this_machine, visible_gpus
from benchmarks.memory import qwen25

GIB = 2**30


def spec(model: Path, *, attention: str | None = None, **sections: Any) -> ExperimentSpec:
    """A run on GPUs whose memory, disk and lengths fit."""
    (model / "config.json").write_text(json.dumps(qwen25("Qwen2.5-1.5B")))
    config = {
        "experiment_name": "e",
        "cluster": {"fileroot": str(model)},
        "actor": {"path": str(model), "attn_impl": attention, "mb_spec": {"max_tokens_per_mb": 4096}},
        "gconfig": {"max_new_tokens": 1024},
        "train_dataset": {"path": "d", "batch_size": 4},
    }
    devices = {"servers": {"device": "cuda"}, "trainer": {"device": "cuda"}}
    merged = {key: {**devices.get(key, {}), **sections.get(key, {})} for key in {**devices, **sections}}
    return ExperimentSpec.model_validate({"config": config, "storage": {"size": "1Ti"}, **merged})


def program(folder: Path, name: str, text: str) -> Path:
    """A program that prints ``text``."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
    file.chmod(0o755)
    return file


@pytest.fixture(autouse=True)
def large_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("areal_launcher.fit.free_bytes", lambda run: 2**44)


@pytest.fixture
def gpu_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bin folder of a machine with one GPU and nothing missing."""
    folder = tmp_path / "bin"
    program(folder, "nvidia-smi", "580.65.06, 81559, NVIDIA H100 80GB HBM3")
    program(folder, "nvcc", "Cuda compilation tools, release 13.0, V13.0.88")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    return folder


def test_a_machine_with_everything_has_no_problem(gpu_machine: Path, tmp_path: Path) -> None:
    machine = this_machine()
    assert (machine.driver, [gpu.name for gpu in machine.gpus]) == ("580.65.06", ["NVIDIA H100 80GB HBM3"])
    assert fit_here(spec(tmp_path)).problems == ()


def test_the_smallest_gpu_counts(gpu_machine: Path) -> None:
    program(gpu_machine, "nvidia-smi", "580.1, 81559, A, with a comma\n580.1, 24564, B\n580.1, [N/A], C")
    assert [gpu.name for gpu in this_machine().gpus] == ["A, with a comma", "B"]
    smallest = this_machine().smallest_gpu
    assert smallest is not None
    assert smallest.bytes == 24564 * 2**20


@pytest.mark.parametrize("text", ["", "No devices were found", "a,b", "\0", "580, 99999999999999999999x, A"])
def test_what_nvidia_smi_prints_without_a_gpu_is_no_gpu(gpu_machine: Path, text: str) -> None:
    program(gpu_machine, "nvidia-smi", text)
    assert this_machine() == GpuMachine()


def test_a_driver_that_hangs_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setattr("areal_launcher.gpu_machine.NVIDIA_SMI_TIMEOUT_S", 0.2)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ValueError, match="nvidia-smi did not answer within 0 s"):
        visible_gpus({})


def test_a_driver_that_is_too_old_is_a_problem_with_the_fix(gpu_machine: Path, tmp_path: Path) -> None:
    program(gpu_machine, "nvidia-smi", "570.124.06, 81559, NVIDIA H100 80GB HBM3")
    (problem,) = fit_here(spec(tmp_path)).problems
    assert "driver here is 570.124.06" in problem
    assert "580 or newer; update the driver" in problem


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("Cuda compilation tools, release 12.4, V12.4.131", "is of CUDA 12.4, but PyTorch is built for CUDA 13"),
        ("", "names no release; set CUDA_HOME"),
    ],
)
def test_a_compiler_of_another_cuda_is_a_problem(
    gpu_machine: Path, tmp_path: Path, printed: str, expected: str
) -> None:
    program(gpu_machine, "nvcc", printed)
    (problem,) = fit_here(spec(tmp_path)).problems
    assert expected in problem


def test_a_missing_compiler_matters_to_servers_on_gpus_alone(
    gpu_machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    (problem,) = fit_here(spec(tmp_path)).problems
    assert "CUDA_HOME is /nowhere, which has no bin/nvcc" in problem
    assert fit_here(spec(tmp_path, servers={"device": "cpu"})).problems == ()


def test_a_machine_without_gpus_is_not_asked_for_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    assert fit_here(spec(tmp_path)).problems == ()


def check(tmp_path: Path, capsys: pytest.CaptureFixture[str], *options: str, **sections: Any) -> list[str]:
    """The problems that `grpo check` reports."""
    experiment = {
        "apiVersion": "areal.dev/v1alpha1",
        "kind": "GRPOExperiment",
        "metadata": {"name": "e"},
        "spec": spec(tmp_path, **sections).model_dump(mode="json", by_alias=True, exclude_unset=True),
    }
    (tmp_path / "e.yaml").write_text(json.dumps(experiment))
    status = main(["check", str(tmp_path / "e.yaml"), "--json", *options])
    report = json.loads(capsys.readouterr().out)
    assert (status, report["fits"]) == (1 if report["problems"] else 0, not report["problems"])
    problems: list[str] = report["problems"]
    return problems


def test_grpo_check_reports_the_driver_and_the_compiler(
    gpu_machine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program(gpu_machine, "nvidia-smi", "550.54.14, 81559, NVIDIA H100 80GB HBM3")
    program(gpu_machine, "nvcc", "release 12.4, V12.4.131")
    problems = check(tmp_path, capsys, "--gpu", "H100-80GB")
    assert [problem.split(", but")[0].split(" is ")[-1] for problem in problems] == ["550.54.14", "of CUDA 12.4"]


def test_grpo_check_compares_with_this_machine_if_no_other_place_is_named(
    gpu_machine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("areal_launcher.check.free_bytes", lambda run: 2**34)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    volume = {"storage": {"size": "1Gi"}}  # of a cluster
    disk, placement = check(tmp_path, capsys, servers={"replicas": 2}, **volume)
    assert "the file system of cluster.fileroot has 16.0 GiB free" in disk
    assert placement.startswith("no node has room for server-1 (1 GPUs): the nodes have 2 GPUs free")
    for elsewhere in (("--gpu", "H100-80GB"), ("--nodes", "8")):
        (other,) = check(tmp_path, capsys, *elsewhere, servers={"replicas": 2}, **volume)
        assert other.startswith("storage.size is 1Gi")


def interpreter(folder: Path, version: str | None) -> str:
    """A Python in whose environment flash-attn has a version."""
    if version is not None:
        (folder / f"flash_attn-{version}.dist-info").mkdir(parents=True)
        (folder / f"flash_attn-{version}.dist-info" / "METADATA").write_text(f"Name: flash-attn\nVersion: {version}\n")
    file = folder / "python"
    file.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
    file.chmod(0o755)
    return str(file)


@pytest.mark.parametrize("place", [fit_here, fit_in_jobs])
@pytest.mark.parametrize(("version", "found"), [(None, "is not installed"), ("4.0.0b1", "has version 4.0.0b1")])
def test_flash_attention_without_its_package_is_a_problem_here_and_in_jobs(
    gpu_machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, version: str | None, found: str
) -> None:
    monkeypatch.setenv(names.TRAINER_PYTHON, interpreter(tmp_path, version))
    (problem,) = place(spec(tmp_path, attention="flash_attention_2")).problems
    assert f"flash-attn {found}" in problem
    assert "leave attn_impl out" in problem


@pytest.mark.parametrize("place", [fit_here, fit_in_jobs])
def test_flash_attention_with_its_package_is_none(
    gpu_machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any
) -> None:
    monkeypatch.setenv(names.TRAINER_PYTHON, interpreter(tmp_path, "2.8.3"))
    assert place(spec(tmp_path, attention="flash_attention_2")).problems == ()


def test_an_interpreter_that_does_not_run_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(names.TRAINER_PYTHON, "/no/such/python")
    (problem,) = fit_in_jobs(spec(tmp_path, attention="flash_attention_2")).problems
    assert "/no/such/python does not run" in problem


def test_jobs_in_a_container_have_packages_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(names.TRAINER_PYTHON, "/no/such/python")
    slurm = {"containerImage": "registry/image"}
    assert fit_in_jobs(spec(tmp_path, attention="flash_attention_2", slurm=slurm)).problems == ()


def test_the_projects_image_has_no_flash_attention(tmp_path: Path) -> None:
    (problem,) = fit_in_cluster(spec(tmp_path, attention="flash_attention_2")).problems
    assert "set trainer.image to an image that has it" in problem
    own = {"image": "registry/trainer:flash"}
    assert fit_in_cluster(spec(tmp_path, attention="flash_attention_2", trainer=own)).problems == ()
