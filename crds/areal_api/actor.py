"""The policy that is trained: model, optimizer, and the algorithm's coefficients."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from areal_api.section import Section

Level = Literal["batch", "group"]
# bfloat16 has 8 significant bits: a change by less than 0.4 % of a value may be lost.
MAX_BFLOAT16_BETA = 0.99


class NormConfig(Section):
    """Normalisation of rewards (over sequences) or advantages (over response tokens): (x − mean) / (std + eps)."""

    mean_level: Level | None = Field("batch", description="What the mean is taken over; null subtracts nothing.")
    std_level: Level | None = Field(
        "batch", description="What the standard deviation is taken over; null divides by nothing."
    )
    mean_leave1out: bool = Field(False, description="Leave the sample itself out of its mean (RLOO).")
    std_unbiased: bool = Field(True, description="Divide the variance by N − 1 instead of N.")
    eps: float = Field(1e-5, gt=0, description="Added to the standard deviation.")


class MicroBatchSpec(Section):
    """How a minibatch is split for the forward and backward passes; the gradient does not depend on it."""

    n_mbs: int = Field(1, ge=1, description="Fewest microbatches of a minibatch.")
    max_tokens_per_mb: int | None = Field(
        None,
        ge=1,
        description="Most tokens of a microbatch; null is one microbatch.",
        json_schema_extra={"unit": "tokens"},
    )


class OptimizerConfig(Section):
    """Optimizer and learning-rate schedule."""

    type: Literal["adam", "sgd"] = Field("adam", description="adam is AdamW (decoupled weight decay).")
    lr: float = Field(1e-3, ge=0, description="Peak learning rate.")
    weight_decay: float = Field(0.01, ge=0, description="Weight decay.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Adam: decay of the first moment.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Adam: decay of the second moment.")
    eps: float = Field(1e-8, gt=0, description="Adam: added to the root of the second moment.")
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="Shape of the learning rate after warm-up."
    )
    min_lr_ratio: float = Field(0.0, ge=0, le=1, description="Learning rate at the end of the schedule ÷ lr.")
    warmup_steps_proportion: float = Field(
        0.001, ge=0, le=1, description="Share of all steps in which the learning rate rises linearly to lr."
    )
    gradient_clipping: float = Field(
        1.0, gt=0, description="Largest norm of the gradient; above it the gradient is scaled down."
    )
    state_dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Adam: type in which the moments are kept. bfloat16 halves their memory and needs beta1 and beta2 "
        "of at most 0.99.",
    )
    offload: bool = Field(
        False, description="Adam: keep the moments in host memory and move them through the GPU at each step."
    )

    @property
    def state_bytes(self) -> int:
        """Bytes of state per parameter."""
        if self.type == "sgd":
            return 0
        return 8 if self.state_dtype == "float32" else 4

    @model_validator(mode="after")
    def _state_can_be_kept_so(self) -> Self:
        if self.type == "sgd" and (self.offload or self.state_dtype != "float32"):
            key, value = ("offload", "true") if self.offload else ("state_dtype", self.state_dtype)
            raise ValueError(f"{key} is {value}, but type sgd keeps no state; leave {key} out")
        for key in ("beta1", "beta2"):
            beta = getattr(self, key)
            if self.state_dtype == "bfloat16" and beta > MAX_BFLOAT16_BETA:
                raise ValueError(
                    f"state_dtype is bfloat16, which rounds away the changes of a moment with {key} {beta}; set {key} "
                    f"to at most {MAX_BFLOAT16_BETA}, or state_dtype to float32"
                )
        return self


class FSDPConfig(Section):
    """Fully sharded data parallelism."""

    offload_params: bool = Field(False, description="Keep parameters, gradients and optimizer state in host memory.")
    reshard_after_forward: bool = Field(True, description="Free a layer's gathered parameters after its forward pass.")
    replicas: int | None = Field(
        None,
        ge=1,
        description="Copies of the model, each sharded over an equal part of the ranks (hybrid sharding); null is one "
        "copy per node on cuda if its state takes at most a quarter of the node's GPU memory, and otherwise 1.",
    )


class ParallelConfig(Section):
    """Ranks that share their sequences: the rest of the ranks, tensor × context times fewer, is data parallel.

    Consecutive ranks form a tensor-parallel group, and consecutive groups of those a context-parallel one. Ranks that
    divide experts keep their sequences. The reference model is laid out in the same way.
    """

    tensor: int = Field(
        1,
        ge=1,
        le=64,
        description="Ranks that divide the weights of every layer (tensor parallelism); it must divide the model's "
        "attention and key-value heads.",
    )
    context: int = Field(
        1,
        ge=1,
        le=64,
        description="Ranks that divide the tokens of a microbatch, and in attention the heads (context parallelism, "
        "as in Ulysses); tensor × context must divide the model's attention heads.",
    )

    expert: int = Field(
        1,
        ge=1,
        le=64,
        description="Ranks that divide the experts of every layer and send tokens to them (expert parallelism). They "
        "are consecutive data-parallel or context-parallel ranks; it must divide their number and the model's experts.",
    )

    @property
    def ranks(self) -> int:
        """Ranks that share their sequences."""
        return self.tensor * self.context

    def problem(self, ranks: int) -> str | None:
        """Why a trainer of so many ranks cannot be laid out like this."""
        if ranks % self.ranks == 0:
            return None
        return (
            f"actor.parallel is tensor {self.tensor} × context {self.context}, which does not divide the {ranks} ranks "
            "of the trainer (trainer.nodes × trainer.processesPerNode); make them a multiple"
        )


class LoRAConfig(Section):
    """Low-rank adapters (LoRA): the model is frozen, and products of two small matrices beside its layers are trained.

    A layer computes W·x + alpha ÷ rank · B·A·x, with A rank × in and B out × rank. B starts at 0.
    """

    rank: int = Field(32, ge=1, le=4096, description="Rows of A and columns of B.")
    alpha: float = Field(16.0, gt=0, description="The product of A and B is scaled by alpha ÷ rank.")
    target_modules: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field(
        ["all-linear"],
        min_length=1,
        max_length=64,
        description="Linear layers that get adapters, by the last part of their name, such as q_proj; all-linear is "
        "all but the output embedding.",
    )


class TrainEngineConfig(Section):
    """A model in the trainer."""

    path: str = Field("", description="Hugging Face model: hub name or local directory.")
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16", description="Type of the computation; master weights and optimizer state are float32."
    )
    attn_impl: Literal["varlen", "flash_attention_2", "sdpa", "eager"] | None = Field(
        None,
        description="Attention of the transformers model; null is varlen (PyTorch's own kernel) on cuda, and sdpa on "
        "cpu or in float32.",
    )
    gradient_checkpointing: bool | None = Field(
        None, description="Recompute activations in the backward pass to save memory; null is true on cuda."
    )
    mb_spec: MicroBatchSpec = Field(default_factory=MicroBatchSpec, description="Split into microbatches.")
    fsdp: FSDPConfig = Field(default_factory=FSDPConfig, description="Sharding of the model over ranks.")

    def recomputes_activations(self, device: str) -> bool:
        """Resolved ``gradient_checkpointing`` on a device, cuda or cpu."""
        return device == "cuda" if self.gradient_checkpointing is None else self.gradient_checkpointing

    def replicas_problem(self, ranks: int, *, tensor: int = 1, section: str = "actor") -> str | None:
        """Why ``fsdp.replicas`` copies, whose layers ``tensor`` ranks divide, cannot be spread over ``ranks``."""
        replicas = self.fsdp.replicas
        if replicas is None or ranks % (replicas * tensor) == 0:
            return None
        of = f" ÷ actor.parallel.tensor {tensor}" if tensor > 1 else ""
        return (
            f"{section}.fsdp.replicas is {replicas}, which does not divide the {ranks} ranks of the trainer "
            f"(trainer.nodes × trainer.processesPerNode){of}; choose a divisor"
        )


class CorrectionConfig(Section):
    """Corrections for stale samples, relative to the behaviour policy that generated them; docs/algorithms.md.

    The weight of a token is proximal ÷ behaviour probability. All keys but kl_penalty, kl_budget and kl_skip need the
    decoupled loss. Dropped tokens stay in the denominator of the loss.
    """

    kl_penalty: float | None = Field(
        None,
        ge=0,
        description="Weight of the KL from the behaviour policy in the loss, relative to the root mean square of the "
        "nonzero advantages; null is 0.5 for asynchronous and 0 for synchronous training.",
    )
    weight_level: Literal["token", "sequence"] = Field(
        "token", description="Level of the weights; sequence is the geometric mean of a sequence's token weights."
    )
    truncate: bool = Field(
        False,
        description="Truncated importance sampling: limit weights to [min_weight, behav_imp_weight_cap] instead of "
        "dropping tokens.",
    )
    min_weight: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="IcePop's mask: also drop tokens with a smaller weight; null keeps them.",
    )
    max_binary_kl: float | None = Field(
        None,
        gt=0,
        description="KPop's mask: drop tokens whose proximal and behaviour probabilities, as those of a coin, have a "
        "larger KL divergence in either direction; null keeps them.",
        json_schema_extra={"unit": "nats"},
    )
    max_prob_diff: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Drop tokens whose proximal and behaviour probabilities differ by more; null keeps them.",
    )
    max_sequence_weight: float | None = Field(
        None,
        gt=1,
        description="Drop sequences whose geometric mean weight is above this or below its inverse; null keeps them.",
    )
    eps_clip: float | None = Field(
        None,
        gt=0,
        description="Drop tokens whose ratio to the behaviour policy moved further than this towards their advantage.",
    )
    kl_budget: float | None = Field(
        None,
        gt=0,
        description="KL from the behaviour policy per token above which the learning rate of an update is scaled by "
        "√(budget ÷ KL); null never scales.",
        json_schema_extra={"unit": "nats"},
    )
    kl_skip: float | None = Field(
        None,
        gt=0,
        description="KL from the behaviour policy per token above which an update is skipped; null never skips.",
        json_schema_extra={"unit": "nats"},
    )

    @property
    def of_decoupled_loss(self) -> dict[str, object]:
        """The keys that are set and need the decoupled loss, with their values."""
        keys = ("truncate", "min_weight", "max_binary_kl", "max_prob_diff", "max_sequence_weight", "eps_clip")
        chosen: dict[str, object] = {key: getattr(self, key) for key in keys if getattr(self, key)}
        if self.weight_level != "token":
            chosen["weight_level"] = self.weight_level
        return chosen

    @model_validator(mode="after")
    def _corrections_agree(self) -> Self:
        if self.kl_skip is not None and self.kl_budget is not None and self.kl_skip <= self.kl_budget:
            raise ValueError(
                f"kl_skip is {self.kl_skip}, not above kl_budget {self.kl_budget}, so no update would ever be scaled; "
                "raise kl_skip or lower kl_budget"
            )
        if self.weight_level == "sequence" and self.max_sequence_weight is not None:
            raise ValueError(
                f"max_sequence_weight is {self.max_sequence_weight}, but weight_level sequence already bounds the "
                "sequence's weight by min_weight and behav_imp_weight_cap; leave max_sequence_weight out"
            )
        return self


class PPOActorConfig(TrainEngineConfig):
    """The policy and its update. GRPO and its relatives differ by these keys alone."""

    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="Optimizer.")
    lora: LoRAConfig | None = Field(None, description="Train adapters instead of the whole model (LoRA).")
    parallel: ParallelConfig = Field(
        default_factory=ParallelConfig, description="Ranks that divide weights and tokens instead of sequences."
    )
    checkpoint_every: int = Field(
        1,
        ge=1,
        le=1024,
        description="With gradient_checkpointing: recompute the activations of every n-th layer. The others keep "
        "theirs.",
    )
    offload_activations: bool = Field(
        False,
        description="With gradient_checkpointing: keep what the recomputation starts from, a layer's input, in host "
        "memory.",
    )
    disable_dropout: bool = Field(False, description="Set every dropout probability of the model to 0.")
    temperature: float = Field(
        1.0, gt=0, description="Temperature applied to the trainer's logits; equal to gconfig.temperature."
    )
    ppo_n_minibatches: int = Field(
        4, ge=1, description="Optimizer steps a training step: the batch is split into this many minibatches."
    )
    eps_clip: float = Field(0.2, ge=0, description="PPO clip range below 1 (and above, without eps_clip_higher).")
    eps_clip_higher: float | None = Field(None, ge=0, description="PPO clip range above 1 (DAPO's clip-higher).")
    c_clip: float | None = Field(
        None, gt=1, description="Dual clip: bound of the loss, in |advantage|, where the advantage is negative."
    )
    importance_sampling_level: Literal["token", "sequence"] = Field(
        "token", description="Level of the ratio; sequence is GSPO."
    )
    use_sapo_loss: bool = Field(False, description="Soft gate instead of clipping (SAPO); not with the decoupled loss.")
    sapo_tau_pos: float = Field(1.0, gt=0, description="SAPO: temperature of the gate where the advantage is positive.")
    sapo_tau_neg: float = Field(1.05, gt=0, description="SAPO: temperature of the gate where it is negative.")
    use_cispo_loss: bool = Field(
        False,
        description="Clip the ratio as a constant weight of the log-prob instead of the loss (CISPO); needs "
        "eps_clip_higher.",
    )
    m2_threshold: float | None = Field(
        None, gt=0, description="M2PO: bound of the second moment of log(proximal ÷ behaviour); null is off."
    )
    use_decoupled_loss: bool = Field(
        False, description="Clip against the proximal policy and weigh by proximal ÷ behaviour probability."
    )
    recompute_logprob: bool = Field(
        False, description="Recompute the old log-probs in the trainer instead of taking the server's."
    )
    behav_imp_weight_cap: float | None = Field(
        5.0,
        gt=1,
        description="Tokens with a larger proximal ÷ behaviour weight are dropped from the loss; null keeps all.",
    )
    correction: CorrectionConfig = Field(default_factory=CorrectionConfig, description="Corrections for stale samples.")
    reward_scaling: float = Field(10.0, description="Factor on the raw reward after reward_bias.")
    reward_bias: float = Field(-0.5, description="Added to the raw reward.")
    reward_clip: float = Field(20.0, gt=0, description="Bound of the absolute scaled reward.")
    reward_norm: NormConfig | None = Field(None, description="Normalisation of the scaled rewards.")
    adv_norm: NormConfig | None = Field(None, description="Normalisation of the advantages.")
    discount: float = Field(1.0, ge=0, le=1, description="γ of generalised advantage estimation.")
    gae_lambda: float = Field(1.0, ge=0, le=1, description="λ of generalised advantage estimation.")
    kl_ctl: float = Field(
        0.0, ge=0, description="Weight of the KL penalty in the reward; above 0 the reference model is loaded."
    )
    kl_estimator: Literal["k1", "k2", "k3"] = Field(
        "k1", description="Estimator of the KL divergence to the reference model."
    )
    overlong_reward_penalty: bool = Field(
        False, description="Penalise completions that come near max_new_tokens (DAPO)."
    )
    overlong_tokens: int | None = Field(
        None, ge=1, description="Length of the penalised tail.", json_schema_extra={"unit": "tokens"}
    )
    overlong_penalty_factor: float | None = Field(None, gt=0, description="Penalty at max_new_tokens.")
    mask_no_eos_with_zero: bool = Field(
        False, description="Give completions that were cut off at their length no reward signal (advantage 0)."
    )
    dynamic_sampling: bool = Field(
        False, description="Reject groups whose rewards are all equal and sample others (DAPO)."
    )
    on_collapse: Literal["warn", "stop", "rollback"] = Field(
        "warn",
        description="When the mean reward of 3 steps (more if they have less than 96 prompts) falls below a quarter of "
        "its best: warn, stop the run, or return to the newest recovery checkpoint from before the first warning and "
        "train on with half the learning rate. A run that ends collapsed fails in any case.",
    )
    max_rollbacks: int = Field(
        2, ge=1, le=20, description="With on_collapse rollback: rollbacks after which another collapse stops the run."
    )
    router_aux_loss_coef: float = Field(
        0.0, ge=0, description="Mixture of experts: weight of the auxiliary loss for an even load of the experts."
    )
    router_replay: bool = Field(
        False,
        description="Mixture of experts: train with the experts that the servers chose for each token, instead of the "
        "trainer's choice (R3).",
    )
    weight_update_mode: Literal["disk", "distributed"] = Field("disk", description="How new weights reach the servers.")
    weight_deltas: bool = Field(
        False,
        description="With storage.shared false, whether servers that hold the version before download only what "
        "changed since. Every version is also published as a whole, for all other servers.",
    )
    max_logprob_diff: float = Field(
        1.0,
        gt=0,
        description="Largest mean |log-prob of the server − log-prob of the trainer| a token, of the samples of the "
        "weights in training; above it the run stops. Older samples also differ by the updates since then, which "
        "on_collapse is for.",
        json_schema_extra={"unit": "nats"},
    )

    @model_validator(mode="after")
    def _checkpointing_is_on(self) -> Self:
        if self.gradient_checkpointing is not False:
            return self
        for key, default in (("checkpoint_every", 1), ("offload_activations", False)):
            value = getattr(self, key)
            if value != default:
                raise ValueError(
                    f"{key} is {str(value).lower()}, which needs gradient_checkpointing, but that is false; leave "
                    f"{key} out, or set gradient_checkpointing to true"
                )
        return self

    @model_validator(mode="after")
    def _state_is_offloaded_once(self) -> Self:
        if self.optimizer.offload and self.fsdp.offload_params:
            raise ValueError(
                "optimizer.offload is true, but fsdp.offload_params already keeps the optimizer in host memory; set "
                "one of them to false"
            )
        return self

    @model_validator(mode="after")
    def _experts_can_be_divided(self) -> Self:
        if self.parallel.expert == 1:
            return self
        if self.parallel.tensor > 1 or self.lora is not None:
            other = "lora" if self.parallel.tensor == 1 else f"parallel.tensor {self.parallel.tensor}"
            raise ValueError(
                f"parallel.expert is {self.parallel.expert}, which does not combine with {other}; set it to 1, or "
                f"leave {other.partition(' ')[0]} out"
            )
        return self

    @model_validator(mode="after")
    def _variants_are_whole(self) -> Self:
        if self.overlong_reward_penalty and (self.overlong_tokens is None or self.overlong_penalty_factor is None):
            raise ValueError("overlong_reward_penalty needs overlong_tokens and overlong_penalty_factor; set both")
        if self.m2_threshold is not None and not (self.use_decoupled_loss or self.recompute_logprob):
            raise ValueError(
                "m2_threshold needs the trainer's own log-probs; set use_decoupled_loss or recompute_logprob"
            )
        if self.use_sapo_loss and self.use_decoupled_loss:
            raise ValueError("use_sapo_loss and use_decoupled_loss exclude each other; set one of them to false")
        if self.use_sapo_loss and self.c_clip is not None:
            raise ValueError(f"c_clip is {self.c_clip}, and use_sapo_loss clips nothing; leave c_clip out")
        return self

    @model_validator(mode="after")
    def _cispo_is_whole(self) -> Self:
        if not self.use_cispo_loss:
            return self
        if not self.eps_clip_higher:
            raise ValueError(
                "use_cispo_loss needs eps_clip_higher above 0; set it, for example to 4.0 with eps_clip 1.0"
            )
        if self.use_sapo_loss:
            raise ValueError("use_cispo_loss and use_sapo_loss exclude each other; set one of them to false")
        if self.c_clip is not None:
            raise ValueError(f"c_clip is {self.c_clip}, and use_cispo_loss has no dual clip; leave c_clip out")
        if self.importance_sampling_level != "token":
            raise ValueError(
                f"importance_sampling_level is {self.importance_sampling_level}, and use_cispo_loss is defined by "
                "tokens; leave importance_sampling_level out"
            )
        return self

    @model_validator(mode="after")
    def _corrections_fit_the_loss(self) -> Self:
        correction = self.correction
        if not self.use_decoupled_loss:
            for key, value in correction.of_decoupled_loss.items():
                raise ValueError(
                    f"correction.{key} is {value}, which needs the proximal policy; set use_decoupled_loss=true, or "
                    f"leave correction.{key} out"
                )
        if correction.truncate and self.behav_imp_weight_cap is None:
            raise ValueError(
                "correction.truncate is true, but behav_imp_weight_cap is null; set the cap to truncate to"
            )
        return self
