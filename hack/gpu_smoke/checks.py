"""The checks. Each returns what it saw, or raises ``CheckFailed``; none needs a GPU to be imported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from areal_api.cuda_toolkit import find_nvcc, toolkit_environment
from areal_trainer.fabric import Host, detect
from areal_trainer.model.attention import SegmentIndex, segment_attention
from areal_trainer.model.layout import Segment
from areal_trainer.model.varlen_attention import VarlenIndex, varlen_attention
from hack.gpu_smoke import server, updates

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
ATTENTIONS: dict[str, tuple[Callable[..., Any], Any]] = {
    "packed sdpa": (segment_attention, SegmentIndex),
    "varlen": (varlen_attention, VarlenIndex),
}
TOLERANCE = 0.02  # of bfloat16, for values of order 1
COMMAND_S = 1800.0
SHOWN_LINES = 30


class CheckFailed(Exception):
    """What a check found wrong."""


def environment() -> str:
    """Commit, versions of packages and driver, and the network that NCCL would use."""
    lines = [commit(), f"Python {sys.version.split()[0]}"]
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


def commit() -> str:
    """The commit of this checkout, and whether files were changed since."""
    try:
        found = output(["git", "rev-parse", "--short", "HEAD"]).strip()
        changed = output(["git", "status", "--porcelain", "--untracked-files=no"]).strip()
    except CheckFailed:
        return "not a checkout of git"
    return f"commit {found}{', with changes' if changed else ''}"


def has_compiler() -> bool:
    """Whether a server would find nvcc here."""
    try:
        find_nvcc(os.environ)
    except ValueError:
        return False
    return True


def compiler(architecture: str) -> str:
    """nvcc compiles a kernel that uses CUB. ``architecture``: such as sm_90a."""
    try:
        nvcc, variables = find_nvcc(os.environ), {**os.environ, **toolkit_environment(os.environ)}
    except ValueError as error:
        raise CheckFailed(str(error)) from error
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
        output([str(nvcc), *arguments], variables)
    return f"{nvcc} compiled a kernel for {architecture}"


def attention(device: torch.device, implementations: Sequence[str]) -> str:
    """Implementations agree with sdpa on each sequence alone, forward and backward, with a shared prefix and without.

    ``implementations``: of ``ATTENTIONS``.
    """
    generator = torch.Generator().manual_seed(1)
    segments = [Segment(0, 96), Segment(96, 40, 0, 96), Segment(136, 33)]
    heads = [torch.randn(1, count, 169, 64, generator=generator).to(device, torch.bfloat16) for count in (8, 2, 2)]
    expected = _with_gradients(lambda q, k, v: plain_attention(q, k, v, segments), heads)
    found: list[str] = []
    for name in implementations:
        function, index = ATTENTIONS[name]
        indexed = index.of(segments, device)
        results = _with_gradients(
            lambda q, k, v: function(torch.nn.Module(), q, k, v, None, segments=indexed)[0],  # noqa: B023 - used here
            heads,
        )
        differences = [(a - b).abs().max() for a, b in zip(results, expected, strict=True)]
        worst = float(torch.stack(differences).max())
        if not worst <= TOLERANCE:  # also if it is not a number
            raise CheckFailed(f"{name} and sdpa differ by {worst:.4f}, more than {TOLERANCE}")
        found.append(f"{name} and sdpa differ by at most {worst:.4f}")
    return "\n".join(found)


def _with_gradients(function: Callable[..., torch.Tensor], heads: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The output, and the gradients of queries, keys and values relative to their largest element."""
    inputs = [x.clone().requires_grad_() for x in heads]
    out = function(*inputs)
    out.float().square().sum().backward()
    gradients = [x.grad for x in inputs if x.grad is not None]
    return [out.detach().float(), *((grad / grad.abs().max()).float() for grad in gradients)]


def plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
    """PyTorch's sdpa of each segment after its prefix: of [1, heads, tokens, size] to [1, tokens, heads, size]."""
    parts = []
    for segment in segments:
        own = slice(segment.start, segment.start + segment.length)
        prefix = slice(segment.prefix_start, segment.prefix_start + segment.prefix_length)
        keys, values = (torch.cat([x[:, :, prefix], x[:, :, own]], dim=2) for x in (k, v))
        mask = torch.ones(segment.length, keys.shape[2], dtype=torch.bool, device=q.device).tril(segment.prefix_length)
        parts.append(
            torch.nn.functional.scaled_dot_product_attention(
                q[:, :, own], keys, values, attn_mask=mask, enable_gqa=True
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2)


def collectives(device: str, ranks: int) -> str:
    """``ranks`` processes sum and broadcast tensors: with NCCL on cuda, with gloo on cpu."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    printed = output([*torchrun, "-m", "hack.gpu_smoke.ranks"], {**os.environ, "AREAL_DEVICE": device})
    return next(line for line in printed.splitlines() if line.startswith("ranks: "))


def server_start(device: str, folder: Path, gpus: Sequence[str]) -> str:
    """A server starts and answers a request."""
    model = server.save_model(folder / "model", torch.bfloat16 if device == "cuda" else torch.float32)
    started = time.monotonic()
    with server.running_server(device, model, folder / "start", gpus=gpus) as address:
        ready_s = time.monotonic() - started
        parameters = {"max_new_tokens": 8, "ignore_eos": True}
        answer = updates.post(address, "/generate", {"input_ids": [5, 9, 14], "sampling_params": parameters})
    if len(answer["output_ids"]) != 8:
        raise CheckFailed(f"the server answered {answer} instead of 8 tokens")
    return f"ready after {ready_s:.0f} s; it generated 8 tokens"


def weight_updates(device: str, modes: Sequence[str], folder: Path, gpus: Sequence[str]) -> str:
    """A server's tensors have the trainer's checksums after an update by each of ``modes``.

    The server takes the first GPU. The trainer takes the second; with one GPU it is on the CPU and uses ``disk`` alone.
    """
    model = server.save_model(folder / "model", torch.bfloat16 if device == "cuda" else torch.float32)
    trainer = device if device == "cpu" or len(gpus) > 1 else "cpu"
    visible = {"CUDA_VISIBLE_DEVICES": gpus[len(gpus) > 1]} if gpus else {}
    with server.running_server(device, model, folder / "updates", gpus=gpus[:1]) as address:
        command = [sys.executable, "-m", "hack.gpu_smoke.updates", address, str(model), str(folder / "updates"), device]
        printed = output([*command, trainer, ",".join(modes)], {**os.environ, **visible})
    found = [line.removeprefix("update: ") for line in printed.splitlines() if line.startswith("update: ")]
    if len(found) != len(modes):
        raise CheckFailed(f"{len(found)} of {len(modes)} updates were checked:\n{printed}")
    return "\n".join(found)


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
    """A few steps of examples/gsm8k with a model from the hub: on 8 GPUs, on 2, or the CPU's variant on none."""
    file = "examples/gsm8k/experiment.yaml" if gpus else "examples/gsm8k/cpu.yaml"
    overrides = [] if gpus >= 8 or not gpus else ["servers.replicas=1", "trainer.processesPerNode=1"]
    overrides += [f"config.cluster.fileroot={folder}", "config.trial_name=smoke", f"config.total_train_steps={steps}"]
    return run_grpo(file, overrides, folder / "gsm8k" / "smoke", steps)


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
