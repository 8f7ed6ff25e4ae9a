"""The checks. Each returns what it saw, or raises ``CheckFailed``; none needs a GPU to be imported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from areal_api.cuda_toolkit import toolkit_environment
from areal_trainer.fabric import Host, detect
from areal_trainer.model.attention import SegmentIndex, segment_attention
from areal_trainer.model.layout import Segment
from areal_trainer.model.varlen_attention import VarlenIndex, varlen_attention

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "sglang", "flashinfer-python", "transformers", "triton", "nvidia-nccl-cu13", "cuda-toolkit")
KERNEL = """
#include <cub/cub.cuh>
__global__ void sum(float* x) {
  typedef cub::BlockReduce<float, 128> Reduce;
  __shared__ typename Reduce::TempStorage storage;
  float total = Reduce(storage).Sum(x[threadIdx.x]);
  if (threadIdx.x == 0) x[0] = total;
}
"""
TOLERANCE = 0.02  # of bfloat16, for values of order 1
COMMAND_S = 1800.0
SHOWN_LINES = 30


class CheckFailed(Exception):
    """What a check found wrong."""


def environment() -> str:
    """Versions of packages and driver, and the network that NCCL would use."""
    lines = [f"Python {sys.version.split()[0]}"]
    for name in PACKAGES:
        try:
            lines.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            lines.append(f"{name} is not installed")
    if tool := shutil.which("nvidia-smi"):
        query = "--query-gpu=index,name,memory.total,driver_version,compute_cap"
        lines += output([tool, query, "--format=csv,noheader"]).splitlines()
    lines.append(str(detect(Host.current(), os.environ)))
    lines.append(f"{shutil.disk_usage(ROOT).free / 2**30:.0f} GiB of disk are free")
    return "\n".join(lines)


def compiler(architecture: str) -> str:
    """nvcc compiles a kernel that uses CUB. ``architecture``: such as sm_90a."""
    try:
        variables = {**os.environ, **toolkit_environment(os.environ)}
    except ValueError as error:
        raise CheckFailed(str(error)) from error
    home = variables.get("CUDA_HOME")
    nvcc = f"{home}/bin/nvcc" if home else shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.cu")
        source.write_text(KERNEL)
        arguments = [
            f"-arch={architecture}",
            "-shared",
            "-Xcompiler",
            "-fPIC",
            "-o",
            f"{folder}/kernel.so",
            str(source),
        ]
        output([nvcc, *arguments], variables)
    return f"{nvcc} compiled a kernel for {architecture}"


def attention(device: torch.device) -> str:
    """PyTorch's variable-length kernel and sdpa agree, forward and backward, with a shared prefix and without."""
    generator = torch.Generator().manual_seed(1)
    segments = [Segment(0, 96), Segment(96, 40, 0, 96), Segment(136, 33)]
    tokens = 169
    heads = [torch.randn(1, count, tokens, 64, generator=generator) for count in (8, 2, 2)]
    results = []
    for function, index in ((segment_attention, SegmentIndex), (varlen_attention, VarlenIndex)):
        q, k, v = (x.to(device, torch.bfloat16).requires_grad_() for x in heads)
        out, _ = function(torch.nn.Module(), q, k, v, None, segments=index.of(segments, device))  # type: ignore[operator]
        out.float().square().sum().backward()
        results.append([out, *(x.grad / x.grad.abs().max() for x in (q, k, v) if x.grad is not None)])
    differences = [(a.detach().float() - b.detach().float()).abs().max() for a, b in zip(*results, strict=True)]
    worst = float(torch.stack(differences).max())
    if not worst <= TOLERANCE:  # also if it is not a number
        raise CheckFailed(f"varlen and sdpa differ by {worst:.4f}, more than {TOLERANCE}")
    return f"varlen and sdpa differ by at most {worst:.4f}"


def collectives(device: str, ranks: int) -> str:
    """``ranks`` processes sum and broadcast tensors: with NCCL on cuda, with gloo on cpu."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    printed = output([*torchrun, "-m", "hack.gpu_smoke.ranks"], {**os.environ, "AREAL_DEVICE": device})
    return next(line for line in printed.splitlines() if line.startswith("ranks: "))


def training(device: str, mode: str, *, steps: int, folder: Path) -> str:
    """``grpo run`` of examples/tiny with weight updates by ``mode``; the run stops if servers and trainer disagree."""
    overrides = [
        f"servers.device={device}",
        f"trainer.device={device}",
        f"config.cluster.fileroot={folder}",
        f"config.trial_name={mode}",
        f"config.actor.weight_update_mode={mode}",
        f"config.total_train_steps={steps}",
        "config.valid_dataset=null",
        "config.evaluator.freq_steps=null",
    ]
    if device == "cuda":  # SGLang's fastest kernels take neither float32 nor the small heads of this model
        overrides += [
            "config.actor.dtype=bfloat16",
            "config.sglang.dtype=bfloat16",
            "servers.args.attention_backend=triton",
        ]
    return run_grpo("examples/tiny/experiment.yaml", overrides, folder / "tiny" / mode, steps)


def gsm8k(*, gpus: int, steps: int, folder: Path) -> str:
    """A few steps of examples/gsm8k with its own model from the hub, on 8 GPUs or on 2."""
    overrides = [] if gpus >= 8 else ["servers.replicas=1", "trainer.processesPerNode=1"]
    overrides += [f"config.cluster.fileroot={folder}", "config.trial_name=smoke", f"config.total_train_steps={steps}"]
    return run_grpo("examples/gsm8k/experiment.yaml", overrides, folder / "gsm8k" / "smoke", steps)


def run_grpo(experiment: str, overrides: Sequence[str], run: Path, steps: int) -> str:
    """Run to the end and read the summary."""
    output([sys.executable, "-m", "areal_launcher.cli", "run", str(ROOT / experiment), *overrides])
    try:
        summary = json.loads((run / "summary.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckFailed(f"{run} has no summary.json: {error}") from error
    if (summary.get("outcome"), summary.get("steps")) != ("succeeded", steps):
        raise CheckFailed(f"the run did not succeed with {steps} steps: {summary}")
    return f"{steps} steps, outcome {summary['outcome']}"


def output(command: Sequence[str], variables: dict[str, str] | None = None) -> str:
    """What a command prints. Raises ``CheckFailed`` with its last lines if it fails."""
    try:
        done = subprocess.run(
            command, env=variables, cwd=ROOT, capture_output=True, text=True, timeout=COMMAND_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CheckFailed(f"{command[0]}: {error}") from error
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-SHOWN_LINES:])
        raise CheckFailed(f"{' '.join(command[:6])} … ended with status {done.returncode}:\n{last}")
    return done.stdout
