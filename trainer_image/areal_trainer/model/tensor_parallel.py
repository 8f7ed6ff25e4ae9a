"""Tensor parallelism: the ranks of a group divide the matrices of every layer.

transformers states for each family which linear layers are divided by their outputs (``colwise``) and which by their
inputs (``rowwise``); PyTorch's parallel styles do it. Norms, embeddings and hidden states are whole on every rank.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from transformers import PreTrainedModel

# A norm of single heads works on the heads of its rank: its weight is whole, and its gradient is summed.
_STYLES: dict[str, Callable[[], ParallelStyle]] = {
    "colwise": ColwiseParallel,
    "rowwise": RowwiseParallel,
    "replicated_with_grad_allreduce": lambda: SequenceParallel(sequence_dim=2, use_local_output=True),
}
_PLANNED = re.compile(r"\blayers\.")  # embeddings stay whole


def check_division(model: PreTrainedModel, *, tensor: int, context: int, packed: bool, has_adapters: bool) -> None:
    """Raise ``ValueError`` for a layout that does not divide the model, or with which it would not be exact.

    ``packed``: whether attention works on the segments of a pass. ``has_adapters``: whether the model is to get some.
    """
    name, config = type(model).__name__, model.config.get_text_config()
    if context > 1 and not packed:
        raise ValueError(
            f"actor.parallel.context is {context}, which divides packed tokens, but {name} does not run packed with "
            "this attn_impl; set actor.attn_impl to sdpa, or on a GPU to varlen, or context to 1"
        )
    heads = config.num_attention_heads
    if heads % (tensor * context):
        raise ValueError(
            f"actor.parallel is tensor {tensor} × context {context}, which does not divide the {heads} attention heads "
            f"of {name}; choose sizes whose product does"
        )
    if tensor == 1:
        return
    if has_adapters:
        raise ValueError(
            f"actor.parallel.tensor is {tensor}, but adapters (actor.lora) are not divided; set it to 1 and use "
            "actor.parallel.context or more data-parallel ranks"
        )
    plan(model, tensor)


def plan(model: PreTrainedModel, size: int) -> dict[str, str]:
    """The style of each divided module, by its name.

    Raises ``ValueError`` for a model that has no plan, has other styles in it, or whose key-value heads or matrices
    ``size`` does not divide.
    """
    field = "actor.parallel.tensor"
    styles = {pattern: style for pattern, style in (model.tp_plan or {}).items() if _PLANNED.search(pattern)}
    name = type(model).__name__
    unknown = sorted(set(styles.values()) - set(_STYLES))
    if not styles or unknown:
        reason = f"a plan with {', '.join(unknown)}" if unknown else "no plan"
        raise ValueError(
            f"{field} is {size}, but transformers has {reason} for dividing the layers of {name}; set it to 1 and use "
            "actor.parallel.context or more data-parallel ranks"
        )
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    if heads % size:
        raise ValueError(
            f"{field} is {size}, which does not divide the {heads} key-value heads of {name}; choose one that does"
        )
    chosen = dict(_matching(model, styles))
    whole = _left_whole(model, set(chosen))
    if whole is not None:
        raise ValueError(
            f"{field} is {size}, but transformers' plan leaves {whole} of {name} out, whose gradient would then be a "
            "part; set it to 1 and use actor.parallel.context or more data-parallel ranks"
        )
    for module_name, style in chosen.items():
        module = model.get_submodule(module_name)
        if style == "replicated_with_grad_allreduce":
            continue
        if not isinstance(module, nn.Linear):
            raise ValueError(f"{field} is {size}, but {module_name} of {name} is no linear layer; set it to 1")
        divided = module.out_features if style == "colwise" else module.in_features
        if divided % size:
            raise ValueError(
                f"{field} is {size}, which does not divide the size {divided} of {module_name}; choose a divisor"
            )
    return chosen


def divide(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Divide the layers over the ranks of the one-dimensional ``mesh``. Each takes its part; nothing is sent."""
    for name, style in plan(model, mesh.size()).items():
        parallelize_module(model.get_submodule(name), mesh, _STYLES[style](), src_data_rank=None)


def _left_whole(model: nn.Module, chosen: set[str]) -> str | None:
    """A parameter that works beside divided modules, on what they have divided, without being in the plan."""
    parents = {name.rpartition(".")[0] for name in chosen}
    for name, _ in model.named_parameters():
        module = name.rpartition(".")[0]
        within = any(name.startswith(f"{parent}.") for parent in parents)
        if within and not any(module == one or module.startswith(f"{one}.") for one in chosen):
            return name
    return None


def _matching(model: nn.Module, styles: dict[str, str]) -> Iterator[tuple[str, str]]:
    patterns = [(re.compile(re.escape(pattern).replace(r"\*", r"\d+")), style) for pattern, style in styles.items()]
    for name, _ in model.named_modules():
        for pattern, style in patterns:
            if pattern.fullmatch(name):
                yield name, style
