"""GPUs, driver and packages of this machine, and what a run on GPUs would miss here."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from areal_api import names
from areal_api.cuda_toolkit import find_nvcc
from areal_api.experiment import ExperimentSpec
from areal_api.sizing.gpus import Gpu

MIB = 2**20
NVIDIA_SMI_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 60.0
# PyTorch is built for CUDA 13, which needs this driver. Extensions are compiled by a toolkit of the same major version.
MIN_DRIVER = 580
CUDA_MAJOR = 13


@dataclass(frozen=True)
class GpuMachine:
    """What nvidia-smi reports: the GPUs of this machine and the version of its driver. Empty without a driver."""

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None

    @property
    def smallest_gpu(self) -> Gpu | None:
        """The GPU with the least memory."""
        return min(self.gpus, key=lambda gpu: gpu.bytes, default=None)


def this_machine() -> GpuMachine:
    """What nvidia-smi reports here."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return GpuMachine()
    query = [tool, "--query-gpu=driver_version,memory.total,name", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=False)
    except (subprocess.TimeoutExpired, OSError):
        return GpuMachine()
    rows = [line.split(",", 2) for line in done.stdout.splitlines() if line.count(",") >= 2]
    known = [row for row in rows if row[1].strip().isdecimal()] if done.returncode == 0 else []
    gpus = tuple(Gpu(name.strip(), int(size) * MIB) for _, size, name in known)
    return GpuMachine(gpus, known[0][0].strip() if known else None)


def visible_gpus(environ: Mapping[str, str]) -> list[str]:
    """Ids of the GPUs this process may use, from CUDA_VISIBLE_DEVICES if set, else from nvidia-smi."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        ids = [name.strip() for name in visible.split(",")]
        # Like CUDA: the list ends at the first invalid id.
        return ids[: next((i for i, name in enumerate(ids) if name in ("", "-1")), len(ids))]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=index", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ValueError(
            f"nvidia-smi did not answer within {NVIDIA_SMI_TIMEOUT_S:.0f} s, so the GPUs of this machine are unknown; "
            "repair the driver, or set CUDA_VISIBLE_DEVICES"
        ) from error
    return done.stdout.split() if done.returncode == 0 else []


def software_problems(spec: ExperimentSpec, machine: GpuMachine, environ: Mapping[str, str]) -> Iterator[str]:
    """What a run on the GPUs of ``machine``, which is this one, would miss; nothing where it has no GPU."""
    if not machine.gpus:
        return
    release = re.match(r"\d+", machine.driver or "")
    if release is not None and int(release[0]) < MIN_DRIVER:
        yield (
            f"NVIDIA's driver here is {machine.driver}, but PyTorch is built for CUDA {CUDA_MAJOR}, which needs "
            f"{MIN_DRIVER} or newer; update the driver"
        )
    if spec.servers.device == "cuda":
        yield from nvcc_problems(environ)
    yield from flash_attention_problems(spec, environ)


def nvcc_problems(environ: Mapping[str, str]) -> Iterator[str]:
    """A compiler that is missing, does not run, or is of another version of CUDA than PyTorch."""
    try:
        nvcc = find_nvcc(environ)
        done = subprocess.run(
            [nvcc, "--version"], capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except ValueError as error:
        yield str(error)
        return
    except (subprocess.TimeoutExpired, OSError) as error:
        yield f"{nvcc} does not run ({error}); set CUDA_HOME to a toolkit of CUDA {CUDA_MAJOR}"
        return
    release = re.search(r"release (\d+)\.(\d+)", done.stdout)
    if release is None:
        yield f"{nvcc} --version names no release; set CUDA_HOME to a toolkit of CUDA {CUDA_MAJOR}"
    elif int(release[1]) != CUDA_MAJOR:
        yield (
            f"{nvcc} is of CUDA {release[1]}.{release[2]}, but PyTorch is built for CUDA {CUDA_MAJOR}; set CUDA_HOME "
            f"to a toolkit of CUDA {CUDA_MAJOR}, such as that of make setup DEVICE=cuda"
        )


def flash_attention_problems(spec: ExperimentSpec, environ: Mapping[str, str]) -> Iterator[str]:
    """flash_attention_2 without flash-attn 2 in the trainer's environment, which is of this machine.

    flash-attn-4, which SGLang installs, is another package that provides the same module.
    """
    if not needs_flash_attention(spec):
        return
    python = environ.get(names.TRAINER_PYTHON) or sys.executable
    code = "import importlib.metadata as m; print(m.version('flash-attn'))"
    try:
        done = subprocess.run(
            [python, "-c", code], capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        yield f"the trainer's interpreter {python} does not run ({error}); correct {names.TRAINER_PYTHON}"
        return
    version = done.stdout.strip() if done.returncode == 0 else None
    if version is None or not version.startswith("2."):
        found = "is not installed" if version is None else f"has version {version}"
        yield (
            f"actor.attn_impl is flash_attention_2, which needs flash-attn 2, but flash-attn {found} in the trainer's "
            "environment; leave attn_impl out to use PyTorch's own kernel, or install flash-attn"
        )


def needs_flash_attention(spec: ExperimentSpec) -> bool:
    """Whether the trainer imports flash-attn. On cpu the implementation is refused for the device."""
    return spec.trainer.device == "cuda" and spec.config.actor.attn_impl == "flash_attention_2"


def image_flash_attention_problems(spec: ExperimentSpec) -> Iterator[str]:
    """flash_attention_2 in pods of this project's image, which has no flash-attn 2. Other images are not known."""
    if spec.trainer.image is None and needs_flash_attention(spec):
        yield (
            "actor.attn_impl is flash_attention_2, but the trainer's image has no flash-attn 2; leave attn_impl out to "
            "use PyTorch's own kernel, or set trainer.image to an image that has it"
        )
