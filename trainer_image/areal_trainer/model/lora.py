"""Low-rank adapters (LoRA) through PEFT: beside a frozen weight W, a trained product of B [out, r] and A [r, in].

Servers know nothing of adapters: what is published and saved as a model is W + scaling · B·A, under W's name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from areal_api.actor import LoRAConfig
from areal_trainer.model.experts import routers

ALL_LINEAR = "all-linear"
ADAPTER_DIR = "adapter"  # in a saved model
_NAME = "default"  # of the adapter
_SEED = 1  # of the random A
# Matrices of experts in files. PEFT turns targets of these names into adapters of all experts, also where they name a
# dense layer or a shared expert.
_EXPERT_MATRICES = frozenset(("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"))

Gather = Callable[[Tensor], "Tensor | None"]  # of a sharded tensor the whole one, on a rank that wants it


def add_adapters(model: PreTrainedModel, config: LoRAConfig, *, section: str) -> None:
    """Freeze ``model`` and put trainable float32 adapters beside its linear layers.

    They change no output before the first step.
    Raises ``ValueError`` for a target that is no linear layer of the model, and lists those that are.
    """
    targets = target_layers(model, config, section=section)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)  # the same A on every machine, for any number of ranks
        inject_adapter_in_model(_peft_config(config, targets), model, adapter_name=_NAME)
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            parameter.data = parameter.data.float()  # PEFT gives them the type of the frozen weights


def target_layers(model: PreTrainedModel, config: LoRAConfig, *, section: str) -> list[str]:
    """Names of the linear layers that ``config`` selects. Raises ``ValueError`` as ``add_adapters`` does.

    In a mixture of experts the dense layers and the shared experts get no adapters.
    """
    head = model.get_output_embeddings()
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    if routers(model):
        linear = [name for name in linear if name.rpartition(".")[2] not in _EXPERT_MATRICES]
    kinds = {name.rpartition(".")[2] for name in linear}
    for wanted in config.target_modules:
        if wanted != ALL_LINEAR and wanted not in kinds:
            raise ValueError(
                f"{section}.lora.target_modules: {wanted!r} is no linear layer of {type(model).__name__}; choose of "
                f"{', '.join(sorted(kinds))}, or {ALL_LINEAR}"
            )
    chosen = set(config.target_modules)
    return [name for name in linear if ALL_LINEAR in chosen or name.rpartition(".")[2] in chosen]


def merged_parameters(model: nn.Module) -> dict[str, MergedParameter]:
    """Every parameter of the model as it was before ``add_adapters``, by its name."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    found: dict[str, MergedParameter] = {}
    for name, parameter in model.named_parameters():
        layer_name, adapted, rest = name.rpartition(".base_layer.")
        if adapted:
            found[f"{layer_name}.{rest}"] = MergedParameter(parameter, layers[layer_name] if rest == "weight" else None)
        elif not is_adapter(name):
            found[name] = MergedParameter(parameter, None)
    return found


@dataclass(frozen=True)
class MergedParameter:
    """A parameter with the adapters that are merged into it, None without."""

    parameter: nn.Parameter
    layer: LoraLayer | None

    def whole(self, gather: Gather, dtype: torch.dtype) -> Tensor | None:
        """The tensor in ``dtype`` where ``gather`` makes one of a sharded tensor, and None elsewhere. Collective.

        Sums are taken in float32 before they are rounded.
        """
        if self.layer is None:
            return gather(self.parameter.detach().to(dtype))
        a, b = (gather(matrix[_NAME].weight.detach()) for matrix in (self.layer.lora_A, self.layer.lora_B))
        whole = gather(self.parameter.detach())
        if whole is None or a is None or b is None:
            return None
        scaling = self.layer.scaling[_NAME]
        return torch.addmm(whole.float(), b.float(), a.float(), alpha=scaling).to(dtype)


def write_adapters(model: nn.Module, gather: Gather, directory: Path | None, config: LoRAConfig, *, base: str) -> None:
    """Write the adapters in PEFT's format, for ``PeftModel.from_pretrained``. Collective.

    ``directory`` is None where ``gather`` returns nothing. ``base`` is the model that they belong to.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            whole = gather(parameter.detach())
            if whole is not None:
                saved_name = f"base_model.model.{name.replace(f'.{_NAME}.', '.')}"
                tensors[saved_name] = whole.float().cpu().contiguous()
    if directory is None:
        return
    directory.mkdir()
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    layers = [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    saved = _peft_config(config, layers)
    saved.base_model_name_or_path = base
    saved.inference_mode = True
    saved.save_pretrained(str(directory))


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return f".lora_A.{_NAME}." in name or f".lora_B.{_NAME}." in name


def _peft_config(config: LoRAConfig, targets: list[str]) -> LoraConfig:
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # PEFT only divides it by r
        lora_dropout=0.0,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
