"""Weights: publishing a version and reading it back, beside a copy of the same bytes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from areal_api import names
from areal_trainer.weights import publish_to_disk
from benchmarks.measure import Comparison, by_turns, rate
from benchmarks.models import save_qwen3

DTYPE = torch.bfloat16


class _Policy:
    """A model as the publisher sees the policy: float32 masters, published in bfloat16."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def named_full_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Under their Hugging Face names."""
        return ((name, parameter.detach()) for name, parameter in self.model.named_parameters())

    def save_model_config(self, directory: Path) -> None:
        """Write config.json."""
        self.model.config.save_pretrained(directory)


def run(*, small: bool, rounds: int) -> list[Comparison]:
    """GB/s of publish and load together; the baseline copies the files and makes the copy durable."""
    disable_progress_bar()
    layers, hidden, vocabulary = (1, 64, 64) if small else (16, 1024, 32768)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        parameters = save_qwen3(path / "model", layers=layers, hidden=hidden, vocabulary=vocabulary)
        policy = _Policy(AutoModelForCausalLM.from_pretrained(path / "model", dtype=torch.float32))
        receiver = AutoModelForCausalLM.from_pretrained(path / "model", dtype=DTYPE)
        size = 2 * parameters / 1e9
        comparisons = []
        for what, ours, baseline, goal in (
            ("publish and load", lambda: _load(receiver, _publish(policy, path)), lambda: _copy(path), 0.8),
            ("publish", lambda: _publish(policy, path), lambda: _copy(path), None),
        ):
            _publish(policy, path)
            rates = by_turns(lambda: rate(size, ours), lambda: rate(size, baseline), rounds=rounds)  # noqa: B023
            work = f"{what} {1000 * size:,.0f} MB of bfloat16 from float32 masters, checksummed and durable"
            comparisons.append(
                Comparison("weights", work, "GB/s", rates[0], "copy of the file, with fsync", rates[1], goal=goal)
            )
        return comparisons


def _publish(policy: _Policy, run: Path) -> Path:
    return publish_to_disk(policy, run=run, version=1, dtype=DTYPE, writes=True)


def _load(receiver: PreTrainedModel, directory: Path) -> None:
    """As a server does: every tensor mapped and copied into the parameter of its name."""
    parameters = dict(receiver.named_parameters())
    with safe_open(directory / "model.safetensors", framework="pt") as file, torch.no_grad():
        for name in file.keys():  # noqa: SIM118
            parameters[name].copy_(file.get_tensor(name))


def _copy(run: Path) -> None:
    copy = run / "copy"
    shutil.copyfile(names.weights_version_dir(run, 1) / "model.safetensors", copy)
    with copy.open("rb") as file:
        os.fsync(file.fileno())
