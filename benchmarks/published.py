"""A model with the publisher's interface, and the plain copy that is the baseline."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import PreTrainedModel

from areal_trainer.weights.disk import latest_published

DTYPE = torch.bfloat16


class ModelPolicy:
    """Float32 master weights, published in bfloat16."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def named_full_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Under their Hugging Face names."""
        return ((name, parameter.detach()) for name, parameter in self.model.named_parameters())

    def named_own_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All of them: there is one rank."""
        return self.named_full_tensors()

    def buffers(self) -> dict[str, torch.Tensor]:
        """None: every tensor is a parameter."""
        return {}

    def save_model_config(self, directory: Path) -> None:
        """Write config.json."""
        self.model.config.save_pretrained(directory)


def copy_published(run: Path) -> None:
    """Copy the latest published weights, with fsync."""
    published = latest_published(run)
    assert published is not None
    copy = run / "copy"
    shutil.copyfile(published[1] / "model.safetensors", copy)
    with copy.open("rb") as file:
        os.fsync(file.fileno())
