"""The trainer's transformers model: loading, sharding over ranks, and log-probs."""

# P tokens of a pass, N trained tokens of it, H hidden size

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from transformers import AttentionInterface
from transformers.utils import GENERATION_CONFIG_NAME

from areal_api.actor import LoRAConfig, TrainEngineConfig
from areal_api.sizing.replicas import model_replicas
from areal_trainer.algo.logprobs import token_logprobs
from areal_trainer.cores import share_of_cores
from areal_trainer.model import attention, varlen_attention
from areal_trainer.model.attention import SegmentIndex
from areal_trainer.model.context_parallel import SharedPass, over_heads
from areal_trainer.model.expert_parallel import divide_experts, experts_of
from areal_trainer.model.experts import LoadBalance, routers
from areal_trainer.model.gathering import balanced, gathered
from areal_trainer.model.layout import Cost, Layout
from areal_trainer.model.loading import generation_config, load, longest_exact
from areal_trainer.model.lora import add_adapters, merged_parameters, write_adapters
from areal_trainer.model.onednn_linear import use_faster_linear
from areal_trainer.model.published_names import PublishedNames
from areal_trainer.model.router_replay import RouterReplay
from areal_trainer.model.tensor_parallel import check_division, divide
from areal_trainer.model.varlen_attention import VarlenIndex
from areal_trainer.ranks import CONTEXT, DATA, TENSOR, Ranks

logger = logging.getLogger(__name__)

SHARD, REPLICATE, OF_COPY = "shard", "replicate", "shard_of_copy"  # dimensions of meshes
SAME_EXPERTS, EXPERT = "same_experts", "expert"

SEGMENT_ATTENTIONS = {
    attention.NAME: over_heads(attention.segment_attention),
    varlen_attention.NAME: over_heads(varlen_attention.varlen_attention),
}


class LanguageModel(nn.Module):
    """Log-probs of the tokens of a pass. ``forward`` is the only entry point, so that FSDP gathers all parameters.

    Master weights are float32. FSDP computes in ``dtype``; a single rank in float32 runs the model without FSDP. With
    ``lora`` the model itself is frozen in ``dtype``, and the master weights of its adapters are float32.
    """

    def __init__(
        self,
        config: TrainEngineConfig,
        *,
        section: str,
        device: torch.device,
        temperature: float,
        lora: LoRAConfig | None = None,
        replays: bool = False,
        balances: bool = False,
        expert_ranks: int = 1,
    ) -> None:
        """``replays``: routers use the experts of a pass's layout. ``balances``: ``balance_loss`` is called.

        ``expert_ranks`` is ``actor.parallel.expert``.
        """
        super().__init__()
        self.device = device
        self.dtype = getattr(torch, config.dtype)
        self.attention = attention_implementation(config, section, device)
        self.temperature = temperature
        self._ranks = Ranks.current()
        # On a CPU all parameters are in host memory already.
        self.offloads = config.fsdp.offload_params and device.type == "cuda"
        self.sharded = self._ranks.world_size > 1 or self.dtype != torch.float32 or self.offloads
        if self.offloads:  # the optimizer runs on the CPU, in as many threads
            torch.set_num_threads(share_of_cores(self._ranks.local_size))
        for name, function in SEGMENT_ATTENTIONS.items():
            AttentionInterface.register(name, function)
        self.causal_lm, self._files = load(
            config.path,
            section=section,
            implementation=self.attention,
            packed=self.attention in SEGMENT_ATTENTIONS,
            dtype=torch.float32 if lora is None else self.dtype,
            in_parts=self.sharded,
        )
        self._names = PublishedNames(self.causal_lm, section=section)
        self._generation_config = generation_config(config.path)
        self._longest = longest_exact(self.causal_lm.config)
        self._shapes = {name: parameter.shape for name, parameter in self.causal_lm.named_parameters()}  # unsharded
        self._expert_ranks = expert_ranks
        self._shared = None if self._ranks.mesh is None else SharedPass.of(self._ranks.mesh)
        if self._shared is not None:
            check_division(
                self.causal_lm,
                tensor=self._shared.tensor_size,
                context=self._shared.context_size,
                packed=self.attention in SEGMENT_ATTENTIONS,
                has_adapters=lora is not None,
            )
        self.replay = RouterReplay(self.causal_lm, section=section) if replays else None
        self._balance = LoadBalance(self.causal_lm, section=section) if balances else None
        if lora is not None:
            add_adapters(self.causal_lm, lora, section=section)
        if device.type == "cpu" and self._ranks.size_of(TENSOR) == 1:  # oneDNN takes no DTensor
            use_faster_linear(self.causal_lm)
        self.cost = self._cost() if self.attention in SEGMENT_ATTENTIONS else None
        if self.sharded:
            self._shard(config, section)
        else:
            self.causal_lm.to(device)

    @property
    def name(self) -> str:
        """Class of the transformers model."""
        return type(self.causal_lm).__name__

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return int(self.causal_lm.get_input_embeddings().num_embeddings)

    def forward(self, layout: Layout, *, plain: bool = False, replay: bool = True) -> tuple[Tensor, Tensor]:
        """Log-prob and entropy (without gradient) of the N trained tokens, float32.

        Without ``replay`` routers choose the experts. With ``plain`` they do too, and the logits are those of
        transformers, one sequence at a time; the entropy is 0.
        """
        self._check_lengths(layout)
        if plain or not replay:
            layout = dataclasses.replace(layout, experts_PLK=None)
        if plain:
            return self._plain_logprobs(layout)
        weight_VH = self.causal_lm.get_output_embeddings().weight
        shared = self._shared
        if shared is None:
            return self._logprobs(self._hidden(layout), weight_VH, layout.source_N, layout.target_N)
        layout = shared.padded(layout)
        index_M = shared.predictions(layout)
        hidden_PH, weight_VH = shared.summed_gradient(self._hidden(layout)), shared.summed_gradient(weight_VH)
        source_M = layout.source_N[index_M] - shared.tokens(layout).start
        values = self._logprobs(hidden_PH, weight_VH, source_M, layout.target_N[index_M])
        index_M, count = index_M.to(self.device), len(layout.token_N)
        logp_N, entropy_N = (shared.joined(one_M, index_M, count) for one_M in values)
        return logp_N, entropy_N

    def _logprobs(
        self, hidden_PH: Tensor, weight_VH: Tensor, source_N: Tensor, target_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Log-prob and entropy of the tokens ``target_N`` after the hidden states at ``source_N``."""
        hidden_NH, target_N = hidden_PH[source_N.to(self.device)], target_N.to(self.device)
        # hidden_NH[n] predicts target_N[n]. token_logprobs predicts token i from hidden i - 1: prepend a dummy target.
        targets = torch.cat([target_N.new_zeros(1), target_N])
        index_N = torch.arange(1, len(targets), device=self.device)
        return token_logprobs(hidden_NH, weight_VH, targets, index_N, temperature=self.temperature)

    def recompute_activations(self, *, every: int, offload: bool) -> None:
        """Compute every ``every``-th layer again in the backward pass. ``offload``: its input waits in host memory."""
        self.causal_lm.gradient_checkpointing_enable(
            {"use_reentrant": False}, every_n_layers=every, offload=offload and self.device.type == "cuda"
        )

    def release(self) -> None:
        """Free what a forward pass without a backward pass leaves gathered: FSDP keeps the root's parameters whole.

        Until then ``parameters()`` yields whole tensors in place of those that the optimizer knows.
        """
        if isinstance(self, FSDPModule):
            self.reshard()

    def named_full_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every parameter unsharded, in ``dtype``, under its Hugging Face name; tied ones once. Collective.

        Only rank 0 gets them: on the others the iterator is empty, but must be consumed. Experts, one tensor in memory,
        are a matrix each, as in published files. Adapters are merged. Raises ``RuntimeError`` if a parameter is missing
        or changed its shape, which servers would not notice.
        """
        return self._named_tensors(dict.fromkeys(self._shapes, 0))

    def named_own_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The same, but each tensor on one of the ranks, so that all have about as much. Collective."""
        sizes = {name: shape.numel() for name, shape in self._shapes.items()}
        return self._named_tensors(balanced(sizes, self._ranks.world_size))

    def _named_tensors(self, owners: dict[str, int]) -> Iterator[tuple[str, Tensor]]:
        """Yield those parameters that this rank gets by ``owners``. One at a time is gathered, in their order."""
        parameters = merged_parameters(self.causal_lm)
        for name, merged in parameters.items():
            if merged.parameter.shape != self._shapes.get(name):
                found = list(merged.parameter.shape)
                raise RuntimeError(f"{name} is {found}, but was loaded as {self._shapes.get(name)}")
        missing = self._shapes.keys() - parameters.keys()
        if missing:
            raise RuntimeError(f"the model has lost {', '.join(sorted(missing))}")
        for name, owner in owners.items():
            gather = partial(gathered, to=owner, device=self.device)
            tensor = parameters[name].whole(gather, self.dtype)
            if tensor is not None:
                yield from self._names.tensors(name, tensor)

    def write_adapters(self, directory: Path | None, config: LoRAConfig, *, base: str) -> None:
        """Write the adapters in PEFT's format. Collective; ``directory`` is None on all ranks but the first."""
        write_adapters(self.causal_lm, partial(gathered, to=0, device=self.device), directory, config, base=base)

    def save_config(self, directory: Path) -> None:
        """Write config.json, with ``dtype`` as the type of the weights, and the model's own generation_config.json.

        The latter is copied unread: transformers refuses to save, or even to load, settings that published models have,
        such as a temperature without ``do_sample``.
        """
        config = self.causal_lm.config
        config.architectures = [type(self.causal_lm).__name__]
        config.dtype = self.dtype
        config.to_json_file(directory / "config.json")
        if self._generation_config is not None:
            (directory / GENERATION_CONFIG_NAME).write_bytes(self._generation_config)

    def _hidden(self, layout: Layout) -> Tensor:
        """Last hidden states of the P tokens of a pass; of this rank's share if ranks divide it."""
        backbone = self.causal_lm.base_model
        if self.attention == "eager":
            return self._padded_hidden(layout)
        mine = slice(None) if self._shared is None else self._shared.tokens(layout)
        self._prepare(None if layout.experts_PLK is None else layout.experts_PLK[mine], layout.is_real_P[mine])
        extra: dict[str, Any]
        if self.attention == attention.NAME:
            extra = {"segments": SegmentIndex.of(layout.segments, self.device), "shared": self._shared}
        elif self.attention == varlen_attention.NAME:
            extra = {"segments": VarlenIndex.of(layout.segments, self.device), "shared": self._shared}
        else:
            extra = _varlen(layout, self.device)
        states = backbone(
            input_ids=layout.input_ids_P[mine].to(self.device).unsqueeze(0),
            position_ids=layout.position_ids_P[mine].to(self.device).unsqueeze(0),
            use_cache=False,
            **extra,
        )
        return states.last_hidden_state[0]

    def balance_loss(self) -> Tensor | None:
        """The auxiliary loss of the last pass, which had gradients; None unless it ``balances``."""
        group = None if self._shared is None else self._shared.mesh.get_group(CONTEXT)
        return None if self._balance is None else self._balance.loss(group)

    def _prepare(self, experts_PLK: Tensor | None, real_P: Tensor | None) -> None:
        """Tell the routers about the tokens of the next pass: their experts, and which are not padding."""
        if self.replay is not None:
            self.replay.use(None if experts_PLK is None else experts_PLK.to(self.device))
        if self._balance is not None:
            self._balance.start(real_P)

    def _plain_logprobs(self, layout: Layout) -> tuple[Tensor, Tensor]:
        """Log-probs by transformers' own forward pass and eager attention. The layout must not share prompts."""
        self._prepare(None, None)
        self.causal_lm.set_attn_implementation("eager")
        try:
            rows = [layout.input_ids_P[s.start : s.start + s.length].to(self.device) for s in layout.segments]
            logits = [self.causal_lm(input_ids=row[None], use_cache=False).logits[0] for row in rows]
        finally:
            self.causal_lm.set_attn_implementation(self.attention)
        logits_NV = torch.cat(logits)[layout.source_N.to(self.device)].float() / self.temperature
        logp_N = logits_NV.log_softmax(-1).gather(1, layout.target_N.to(self.device)[:, None]).squeeze(1)
        return logp_N, torch.zeros_like(logp_N)

    def _check_lengths(self, layout: Layout) -> None:
        """Refuse sequences beyond the length at which the rotary embedding depends on the longest of a pass."""
        if self._longest is None:
            return
        longest = int(layout.position_ids_P.max()) + 1
        if longest > self._longest:
            raise ValueError(
                f"a sequence has {longest} tokens; beyond {self._longest} the rotary embedding of {self.name} depends "
                "on the longest sequence of a pass, which would change the others; lower gconfig.max_tokens to that"
            )

    def _padded_hidden(self, layout: Layout) -> Tensor:
        """Hidden states of right-padded rows, one per sequence. The causal mask hides the padding from all tokens."""
        longest = max(segment.length for segment in layout.segments)
        row_P = torch.cat([torch.full((s.length,), row) for row, s in enumerate(layout.segments)])
        at_P = row_P * longest + layout.position_ids_P
        ids = torch.zeros(len(layout.segments) * longest, dtype=torch.int64)
        ids[at_P] = layout.input_ids_P
        experts_PLK = layout.experts_PLK
        if experts_PLK is not None:
            experts_PLK = experts_PLK.new_full((len(ids), *experts_PLK.shape[1:]), -1).index_copy(0, at_P, experts_PLK)
        self._prepare(experts_PLK, torch.zeros(len(ids), dtype=torch.bool).index_fill_(0, at_P, True))
        states = self.causal_lm.base_model(input_ids=ids.view(-1, longest).to(self.device), use_cache=False)
        return states.last_hidden_state.flatten(0, 1)[at_P.to(self.device)]

    def _cost(self) -> Cost:
        config = self.causal_lm.config.get_text_config()
        embedded = sum(p.numel() for p in self.causal_lm.get_input_embeddings().parameters())
        parameters = sum(p.numel() for p in self.causal_lm.base_model.parameters()) - embedded
        # transformers raises for an attribute that differs between layers, as in Gemma 4; an estimate takes the first.
        size = vars(config).get("head_dim") or config.hidden_size // config.num_attention_heads
        # Attention kernels reach about half the FLOP rate of a large matrix multiplication.
        pair = 2 * 4 * config.num_hidden_layers * config.num_attention_heads * size
        return Cost(token=2 * parameters, pair=pair)

    def _shard(self, config: TrainEngineConfig, section: str) -> None:
        if not dist.is_initialized():
            raise RuntimeError(
                f"{section}.dtype {config.dtype} (or offload_params) uses FSDP, which needs a process group; "
                "enter areal_trainer.ranks.joined first"
            )
        layers = [m for m in self.causal_lm.modules() if type(m).__name__ in (self.causal_lm._no_split_modules or ())]
        policy = MixedPrecisionPolicy(param_dtype=self.dtype, reduce_dtype=torch.float32)
        mesh = self._mesh(config, section)
        whole = self.causal_lm.state_dict() if self._ranks.is_first and self._files is None else {}
        if self._ranks.size_of(TENSOR) > 1:
            assert self._ranks.mesh is not None
            divide(self.causal_lm, self._ranks.mesh[TENSOR])
        offload = CPUOffloadPolicy() if self.offloads else OffloadPolicy()
        for experts in experts_of(self.causal_lm, self._expert_ranks) if self._expert_ranks > 1 else ():
            of_experts = _mesh_of_experts(mesh, self._expert_ranks)
            divide_experts(experts, of_experts[EXPERT])
            fully_shard(
                experts,
                mesh=of_experts[SAME_EXPERTS] if mesh.ndim == 1 else of_experts[REPLICATE, SAME_EXPERTS],
                mp_policy=policy,
                offload_policy=offload,
                reshard_after_forward=config.fsdp.reshard_after_forward,
            )
        for router in routers(self.causal_lm):  # a rounded logit can choose another expert
            exact = MixedPrecisionPolicy(torch.float32, reduce_dtype=torch.float32, output_dtype=self.dtype)
            fully_shard(router, mesh=mesh, mp_policy=exact, offload_policy=offload)
        for layer in layers:
            fully_shard(
                layer,
                mesh=mesh,
                mp_policy=policy,
                offload_policy=offload,
                reshard_after_forward=config.fsdp.reshard_after_forward,
            )
        fully_shard(self, mesh=mesh, mp_policy=policy, offload_policy=offload)
        if self._files is not None:
            merged = merged_parameters(self.causal_lm)
            self._files.read(self.causal_lm, {name: one.parameter for name, one in merged.items()})
        elif self._ranks.world_size > 1:
            from_first = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
            set_model_state_dict(self.causal_lm, whole, options=from_first)
        for buffer in self.buffers():
            buffer.data = buffer.data.to(self.device)

    def _mesh(self, config: TrainEngineConfig, section: str) -> DeviceMesh:
        """The ranks over which parameters are sharded: all, but for those that divide the layers.

        With several copies of the model there are two dimensions, copies and shards of a copy. torchrun numbers the
        ranks node by node, so the shards of a copy are on as few nodes as possible.
        """
        ranks = self._ranks.world_size
        on_gpu = self.device.type == "cuda"
        replicas = model_replicas(
            config,
            section=section,
            parameters=sum(parameter.numel() for parameter in self.causal_lm.parameters()),
            nodes=node_count(ranks),
            ranks=ranks,
            gpu_bytes=torch.cuda.get_device_properties(self.device).total_memory if on_gpu else None,
            tensor=self._ranks.size_of(TENSOR),
        )
        shards = ranks // self._ranks.size_of(TENSOR) // replicas
        if replicas > 1:
            logger.info("%d copies of the model, each sharded over %d ranks", replicas, shards)
        mesh = self._ranks.mesh
        if mesh is None:
            flat = init_device_mesh(self.device.type, (ranks,), mesh_dim_names=(SHARD,))
        else:
            flat = mesh[DATA, CONTEXT]._flatten(SHARD)
        return flat if replicas == 1 else flat._unflatten(0, (replicas, shards), (REPLICATE, OF_COPY))


def _mesh_of_experts(mesh: DeviceMesh, size: int) -> DeviceMesh:
    """The ranks of ``mesh``, in groups of ``size`` consecutive ones that divide the experts of a layer."""
    shards = mesh.size(mesh.ndim - 1)
    if shards % size:
        raise ValueError(
            f"actor.parallel.expert is {size}, which does not divide the {shards} ranks of a copy of the model; "
            "choose a divisor, or set fsdp.replicas"
        )
    return mesh._unflatten(mesh.ndim - 1, (shards // size, size), (SAME_EXPERTS, EXPERT))


def node_count(world_size: int) -> int:
    """Nodes of this torchrun job; 1 if its nodes have different numbers of ranks."""
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    return world_size // per_node if world_size % per_node == 0 else 1


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability in the model to 0."""
    for module, name in _dropouts(model):
        setattr(module, name, 0.0)


def has_dropout(model: nn.Module) -> bool:
    """Whether a forward pass in training mode is random."""
    return any(getattr(module, name) > 0 for module, name in _dropouts(model))


def _dropouts(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Modules with the names of their dropout probabilities: transformers calls them attention_dropout, attn_drop, …"""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            yield module, "p"
            continue
        for name in [name for name, value in vars(module).items() if "drop" in name and isinstance(value, float)]:
            yield module, name


def attention_implementation(config: TrainEngineConfig, section: str, device: torch.device) -> str:
    """Name of the attention implementation in transformers."""
    on_gpu = device.type == "cuda"
    chosen = config.attn_impl or ("varlen" if on_gpu and config.dtype != "float32" else "sdpa")
    if chosen in ("varlen", "flash_attention_2"):
        if not on_gpu:
            raise ValueError(f"{section}.attn_impl is {chosen}, which needs a GPU; set attn_impl: sdpa")
        if config.dtype == "float32":
            raise ValueError(f"{section}.attn_impl {chosen} has no float32; set dtype: bfloat16 or attn_impl: sdpa")
    if chosen == "flash_attention_2":
        require_flash_attention(section)
    if chosen == "sdpa" and on_gpu:
        torch.backends.cuda.enable_cudnn_sdp(False)  # it compiles a plan for every new shape
    return {"sdpa": attention.NAME, "varlen": varlen_attention.NAME}.get(chosen, chosen)


def require_flash_attention(section: str) -> None:
    """Raise ``ValueError`` unless flash-attn 2 can be imported.

    flash-attn-4, which SGLang installs, brings a namespace package ``flash_attn`` without the functions of version 2.
    """
    try:
        from flash_attn import flash_attn_varlen_func  # noqa: F401
    except (ImportError, OSError) as error:
        raise ValueError(
            f"{section}.attn_impl is flash_attention_2, but flash-attn 2 cannot be imported ({error}); leave attn_impl "
            "out to use PyTorch's own kernel, or install flash-attn"
        ) from error


def _varlen(layout: Layout, device: torch.device) -> dict[str, Any]:
    lengths = torch.tensor([segment.length for segment in layout.segments])
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(device, torch.int32)
    longest = int(lengths.max())
    return {
        "cu_seq_lens_q": cu_seqlens,
        "cu_seq_lens_k": cu_seqlens,
        "max_length_q": longest,
        "max_length_k": longest,
    }
