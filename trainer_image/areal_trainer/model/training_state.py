"""State of a model and its optimizer for torch.distributed.checkpoint, readable by any number of ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
)


def training_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Trained parameters and optimizer state. Collective.

    All values are tensors of at least one dimension, which safetensors can hold. Frozen parameters and the optimizer's
    settings are not part of it.
    """
    states = get_optimizer_state_dict(model, optimizer)["state"]
    # Tied weights have several names; safetensors stores each tensor once.
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - dict(model.named_parameters()).keys()
    parameters = get_model_state_dict(model, options=StateDictOptions(ignore_frozen_params=True))
    return {
        "model": {name: tensor for name, tensor in parameters.items() if name not in tied},
        "optimizer": {
            "state": {
                name: {key: tensor if tensor.dim() else tensor.reshape(1) for key, tensor in tensors.items()}
                for name, tensors in states.items()
            }
        },
    }


def restore_training_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restore a state that was read into the result of ``training_state``. Collective.

    Moments keep their type and device: ``Optimizer.load_state_dict`` would give them those of the parameters.
    """
    # Not strict: tied names and frozen parameters are missing.
    set_model_state_dict(model, state["model"], options=StateDictOptions(strict=False))
    current = get_optimizer_state_dict(model, optimizer)["state"]
    for name, tensors in state["optimizer"]["state"].items():
        for key, tensor in tensors.items():
            kept = current[name][key]
            kept.copy_(tensor.reshape(kept.shape) if not kept.dim() else tensor)
