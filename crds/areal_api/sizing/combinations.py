"""Combinations of settings and model that fail after the start, and those without an effect."""

from __future__ import annotations

from collections.abc import Iterator

from areal_api.experiment import ExperimentSpec
from areal_api.sizing.model_shape import MAX_HEADS, ModelShape
from areal_api.sizing.trained_types import trained_types, training_problem

VARLEN_MAX_HEAD_SIZE = 256
VARLEN_HEAD_SIZE_MULTIPLE = 8


def combination_problems(spec: ExperimentSpec, shape: ModelShape) -> Iterator[str]:
    """What SGLang or the trainer refuses once it reads the model."""
    sizes = tensor_parallel_sizes(shape.heads, shape.kv_heads)
    for one in spec.servers.groups:
        parallel = one.servers.tensor_parallel
        if parallel not in sizes:
            yield (
                f"{one.key}.tensorParallel is {parallel}, which does not divide the model's {shape.heads} attention "
                f"heads and {shape.kv_heads} key-value heads; set it to one of {', '.join(map(str, sizes))}"
            )
    refused = training_problem(shape.kind, attn_impl=spec.config.actor.attn_impl, logit_changes=shape.logit_changes)
    if refused is not None:
        yield refused
    every = spec.config.actor.checkpoint_every
    if every > shape.layers:
        yield (
            f"actor.checkpoint_every is {every}, but the model has {shape.layers} layers; lower it, or set "
            "config.actor.gradient_checkpointing=false and leave it out"
        )
    yield from _layout_problems(spec, shape)
    yield from _attention_problems(spec, shape)


def tensor_parallel_sizes(heads: int, kv_heads: int) -> list[int]:
    """The sizes for which SGLang can divide the heads over GPUs, and divide or replicate the key-value heads."""
    return [
        n for n in range(1, min(heads, MAX_HEADS) + 1) if heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0)
    ]


def _layout_problems(spec: ExperimentSpec, shape: ModelShape) -> Iterator[str]:
    """Ranks that cannot divide the model's layers or tokens; ``model/tensor_parallel.py`` refuses the same."""
    actor = spec.config.actor
    tensor, context = actor.parallel.tensor, actor.parallel.context
    if shape.heads % (tensor * context):
        yield (
            f"actor.parallel is tensor {tensor} × context {context}, which does not divide the model's {shape.heads} "
            "attention heads; choose sizes whose product does"
        )
    if context > 1 and actor.attn_impl in ("eager", "flash_attention_2"):
        yield (
            f"actor.parallel.context is {context}, which divides packed tokens, but actor.attn_impl is "
            f"{actor.attn_impl}; leave attn_impl out, or set it to sdpa or varlen"
        )
    expert = actor.parallel.expert
    if expert > 1 and (not shape.experts or shape.experts % expert):
        yield (
            f"actor.parallel.expert is {expert}, which does not divide the model's {shape.experts} experts; choose a "
            "divisor, or 1 for a model without experts"
        )
    if tensor == 1:
        return
    mlp = tensor if shape.experts else shape.intermediate  # experts are not divided
    for what, count in (("key-value heads", shape.kv_heads), ("intermediate size", mlp)):
        if count % tensor:
            yield (
                f"actor.parallel.tensor is {tensor}, which does not divide the model's {what} {count}; choose one that "
                "does"
            )
    if shape.kind not in trained_types()["tensor_parallel"]:
        yield (
            f"actor.parallel.tensor is {tensor}, but transformers has no plan that the trainer can follow for dividing "
            f"the layers of {shape.kind}; set it to 1 and use actor.parallel.context or more data-parallel ranks"
        )
    if actor.lora is not None:
        yield (
            f"actor.parallel.tensor is {tensor}, but adapters (actor.lora) are not divided; set it to 1 and use "
            "actor.parallel.context or more data-parallel ranks"
        )


def _attention_problems(spec: ExperimentSpec, shape: ModelShape) -> Iterator[str]:
    actor, on_gpu = spec.config.actor, spec.trainer.device == "cuda"
    chosen = actor.attn_impl
    if chosen in ("varlen", "flash_attention_2") and not on_gpu:
        yield (
            f"actor.attn_impl is {chosen}, which needs a GPU, but trainer.device is cpu; "
            "set config.actor.attn_impl=sdpa"
        )
        return
    if chosen in ("varlen", "flash_attention_2") and actor.dtype == "float32":
        yield f"actor.attn_impl is {chosen}, which has no float32; set config.actor.dtype=bfloat16"
    varlen = chosen == "varlen" or (chosen is None and on_gpu and actor.dtype != "float32")
    if varlen and (shape.head_dim > VARLEN_MAX_HEAD_SIZE or shape.head_dim % VARLEN_HEAD_SIZE_MULTIPLE):
        yield (
            f"the model's heads have size {shape.head_dim}; varlen, the default on cuda, takes multiples of "
            f"{VARLEN_HEAD_SIZE_MULTIPLE} up to {VARLEN_MAX_HEAD_SIZE}; set config.actor.attn_impl=sdpa"
        )


def server_warnings(spec: ExperimentSpec) -> Iterator[str]:
    """Settings with which SGLang may not start on a GPU."""
    sglang = spec.config.sglang
    others = [
        {name.replace("-", "_") for name in one.servers.args}
        for one in spec.servers.groups
        if one.servers.device == "cuda"
    ]
    chosen = sglang.attention_backend is not None or all("attention_backend" in names for names in others)
    if others and sglang.dtype == "float32" and not chosen:
        yield (
            "sglang.dtype is float32, which SGLang's default attention on GPUs does not take; set "
            "config.sglang.dtype=bfloat16, or config.sglang.attention_backend=triton"
        )


def layout_warnings(spec: ExperimentSpec) -> Iterator[str]:
    """Layouts of ranks that work, but slowly."""
    tensor, per_node = spec.config.actor.parallel.tensor, spec.trainer.processes_per_node
    if tensor > 1 and spec.trainer.nodes > 1 and per_node % tensor:
        yield (
            f"actor.parallel.tensor is {tensor}, which does not divide the {per_node} ranks of a node "
            "(trainer.processesPerNode), so every layer is summed between nodes; choose a divisor"
        )


def useless_settings(spec: ExperimentSpec) -> Iterator[str]:
    """Settings that are valid and do nothing together with others."""
    config, trainer = spec.config, spec.trainer
    if config.actor.fsdp.offload_params and trainer.device == "cpu":
        yield "actor.fsdp.offload_params has no effect with trainer.device cpu: parameters are in host memory already"
    recomputes = config.actor.recomputes_activations(trainer.device)
    if config.actor.checkpoint_every > 1 and not recomputes:
        yield "actor.checkpoint_every has no effect: with trainer.device cpu gradient_checkpointing is false by default"
    if config.actor.offload_activations and trainer.device == "cpu":
        yield "actor.offload_activations has no effect with trainer.device cpu: activations are in host memory already"
    if config.actor.optimizer.offload and trainer.device == "cpu":
        yield "actor.optimizer.offload has no effect with trainer.device cpu: the state is in host memory already"
    if not config.actor.fsdp.reshard_after_forward and trainer.ranks == 1:
        yield "actor.fsdp.reshard_after_forward has no effect with one rank, which gathers nothing"
    if config.ref is not None and config.actor.kl_ctl == 0:
        yield "ref has no effect with actor.kl_ctl 0: no reference model is loaded"
    for one in config.held_out:
        if one.gconfig.n_samples > 1 and (one.gconfig.greedy or one.gconfig.temperature == 0):
            yield (
                f"evaluation of {one.key} draws {one.gconfig.n_samples} samples per problem greedily, which are all "
                "equal; set n_samples to 1, or greedy to false and a temperature above 0"
            )
    evaluator = config.evaluator
    if config.valid_dataset is None and (evaluator.freq_epochs or evaluator.freq_steps or evaluator.freq_secs):
        yield "evaluator has no effect without valid_dataset"
