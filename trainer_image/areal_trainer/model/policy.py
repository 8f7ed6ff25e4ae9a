"""The policy and the reference model.

A forward pass goes ``microbatches`` (choice of sequences) → ``layout`` (packing) → ``language_model`` (log-probs).
"""

# B sequences of this rank, T tokens of its batch, N trained tokens of a pass, K statistics

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from areal_api.actor import LoRAConfig, PPOActorConfig, TrainEngineConfig
from areal_api.stat_names import ACTOR_PREFIX
from areal_trainer.algo.corrections import (
    advantage_scale,
    behaviour_kl,
    behaviour_kl_penalty,
    trust_region_scale,
)
from areal_trainer.algo.m2po import second_moment_mask
from areal_trainer.algo.token_stats import Column, Stats, merge_stats, report, summarize
from areal_trainer.batch import PackedBatch
from areal_trainer.data.tokenizer import load_hf_tokenizer
from areal_trainer.model.exactness import check_exactness
from areal_trainer.model.experts import ExpertLoad
from areal_trainer.model.language_model import LanguageModel, disable_dropout, has_dropout
from areal_trainer.model.layout import Layout, PrefixGroup, group_by_prompt
from areal_trainer.model.lora import ADAPTER_DIR
from areal_trainer.model.microbatches import merged_over_ranks, microbatches, minibatches
from areal_trainer.model.optimizer import (
    OptimizerStep,
    by_mesh,
    learning_rate,
    make_optimizer,
    steps_summary,
    total_norm,
)
from areal_trainer.model.policy_loss import policy_loss
from areal_trainer.model.router_replay import RouterReplay
from areal_trainer.model.training_state import restore_training_state, training_state
from areal_trainer.ranks import CONTEXT, TENSOR, Ranks
from areal_trainer.routing import Routing
from areal_trainer.weights.disk import replace_directory, write_model
from areal_trainer.weights.finite import NonFiniteWeightsError

logger = logging.getLogger(__name__)

LOGPROB_DIFF = "rollout_logprob_diff"  # over all trained tokens; older versions also differ by later updates
BEHAVIOUR_KL = "behave_kl"  # KL(behaviour ‖ policy before the update) per token
UNREPLAYED_DIFF = "rollout_logprob_diff_without_replay"  # as LOGPROB_DIFF, with the routers' own experts
CURRENT_DIFF = "rollout_logprob_diff_current"  # over tokens of the current version: numerical differences only


class LogprobModel:
    """A language model that computes log-probs of batches. ``section`` is its configuration key in error messages."""

    def __init__(
        self,
        config: TrainEngineConfig,
        *,
        section: str,
        device: str,
        temperature: float,
        lora: LoRAConfig | None = None,
        replays: bool = False,
        balances: bool = False,
        expert_ranks: int = 1,
    ) -> None:
        place = torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else torch.device("cpu")
        self._mb_spec = config.mb_spec
        self._section = section
        self.model = LanguageModel(
            config,
            section=section,
            device=place,
            temperature=temperature,
            lora=lora,
            replays=replays,
            balances=balances,
            expert_ranks=expert_ranks,
        )

    def logprobs(self, batch: PackedBatch) -> Tensor:
        """Log-prob of each trained token, [T] float32 in host memory; 0 off the loss mask. Collective."""
        self.model.eval()
        logp_T = torch.zeros(len(batch.input_ids_T), dtype=torch.float32)
        with torch.no_grad():
            for layout in self._passes(batch, group_by_prompt(batch, cost=self.model.cost)):
                logp_N, _ = self.model(layout)
                logp_T[layout.token_N] = logp_N.cpu()
        self.model.release()
        return logp_T

    def check_exactness(self) -> None:
        """Raise ``ValueError`` if the model does not compute packed sequences exactly. Collective."""
        check_exactness(self.model, section=self._section)
        self.model.release()

    def _passes(self, batch: PackedBatch, units: list[PrefixGroup]) -> list[Layout]:
        return microbatches(batch, units, self._mb_spec, field=f"{self._section}.mb_spec")


class ReferenceModel(LogprobModel):
    """The frozen model of the KL penalty."""

    def __init__(
        self, config: TrainEngineConfig, *, device: str, temperature: float = 1.0, expert_ranks: int = 1
    ) -> None:
        """``expert_ranks``: ``actor.parallel.expert``."""
        super().__init__(config, section="ref", device=device, temperature=temperature, expert_ranks=expert_ranks)
        self.model.requires_grad_(False)


class Policy(LogprobModel):
    """The model being trained, with its optimizer and learning-rate schedule."""

    def __init__(
        self,
        config: PPOActorConfig,
        *,
        device: str,
        total_steps: int,
        seed: int,
        tokenizer_path: str | None = None,
        kl_penalty: float = 0.0,
    ) -> None:
        """``tokenizer_path``: tokenizer saved with the model; defaults to ``config.path``. ``kl_penalty``: the resolved
        ``config.correction.kl_penalty``."""
        if config.dtype == "float16":
            raise ValueError("actor.dtype float16 cannot hold small gradients; set bfloat16 or float32")
        self._ranks = Ranks.current()
        laid_out = (self._ranks.size_of(TENSOR), self._ranks.size_of(CONTEXT))
        if laid_out != (config.parallel.tensor, config.parallel.context):
            raise ValueError(
                f"actor.parallel is tensor {config.parallel.tensor} × context {config.parallel.context}, but the "
                "script laid its ranks out without it; pass config.actor.parallel to areal_trainer.ranks.joined"
            )
        super().__init__(
            config,
            section="actor",
            device=device,
            temperature=config.temperature,
            lora=config.lora,
            replays=config.router_replay,
            balances=config.router_aux_loss_coef > 0,
            expert_ranks=config.parallel.expert,
        )
        if config.recomputes_activations(device):
            self.model.recompute_activations(every=config.checkpoint_every, offload=config.offload_activations)
        torch.manual_seed(seed + self._ranks.rank)  # for dropout, the only randomness of an update
        if config.disable_dropout:
            disable_dropout(self.model)
        if self._ranks.size_of(TENSOR) > 1 and has_dropout(self.model):
            raise ValueError(
                f"actor.parallel.tensor is {config.parallel.tensor}, but {self.model.name} has dropout, which its "
                "ranks would not draw alike; set actor.disable_dropout to true"
            )
        self.config = config
        self.tokenizer_path = tokenizer_path or config.path
        self.version = 0
        """Weight version of the parameters; the training loop sets it."""
        self.lr_factor = 1.0
        """Factor on the learning rate, lowered after a collapse; the training loop sets it."""
        self._kl_penalty = kl_penalty
        self._total_steps = total_steps
        self._steps_done = 0  # calls of update, counted by the schedule
        self._expert_load = ExpertLoad(self.model)
        self._optimizer = make_optimizer(config.optimizer, self._trained())

    @property
    def routing(self) -> Routing | None:
        """The shape of the experts that servers must report with samples; None without ``router_replay``."""
        return None if self.model.replay is None else self.model.replay.routing

    @property
    def needs_logprobs(self) -> bool:
        """Whether ``update`` needs the result of ``logprobs``.

        With a single minibatch the proximal policy is the one whose gradient is computed, so the forward pass of the
        update gives its log-probs too, unless dropout makes that pass random or a mask needs them before it.
        """
        config = self.config
        if not (config.use_decoupled_loss or config.recompute_logprob):
            return False
        return config.ppo_n_minibatches > 1 or config.m2_threshold is not None or has_dropout(self.model)

    def update(
        self, batch: PackedBatch, *, advantages_T: Tensor, prox_logp_T: Tensor | None = None
    ) -> dict[str, float]:
        """Run ``ppo_n_minibatches`` optimizer steps and one schedule step; return statistics. Collective.

        ``prox_logp_T`` is the result of ``logprobs`` for this batch. None, if not ``needs_logprobs``, takes the old
        log-probs from the update's own forward pass, or from the server if neither ``use_decoupled_loss`` nor
        ``recompute_logprob`` is set.
        The loss of a minibatch is the mean over its trained tokens on all ranks. A minibatch without trained tokens, or
        with a non-finite gradient, does not change the parameters. Raises ``RuntimeError`` on every rank if server and
        trainer disagree by more than ``max_logprob_diff``.

        With ``kl_penalty`` the loss includes the KL from the behaviour policy; see ``corrections``. Above
        ``correction.kl_budget`` the learning rate is scaled down, and above ``correction.kl_skip`` the parameters stay
        as they are; see ``corrections.trust_region_scale``.
        """
        if prox_logp_T is None and self.needs_logprobs:
            raise ValueError("actor.use_decoupled_loss and actor.recompute_logprob need prox_logp_T from logprobs()")
        parts: list[Stats] = []
        if self.model.replay is not None:
            parts.append(self._difference_without_replay(batch, self.model.replay))
        scale = 1.0
        if prox_logp_T is not None:
            parts.append(self._checked(self._difference(batch, prox_logp_T, batch.loss_mask_T)))
            scale = self._scale(parts[-1])
        rate = learning_rate(self.config.optimizer, step=self._steps_done, total_steps=self._total_steps)
        rate *= self.lr_factor
        penalty = self._penalty(batch, advantages_T)
        steps: list[OptimizerStep] = []
        self.model.train()
        for units in minibatches(batch, self.config.ppo_n_minibatches, cost=self.model.cost):
            stats, differences = self._accumulate(batch, units, advantages_T, prox_logp_T, penalty)
            if prox_logp_T is None:
                merged = merge_stats(differences)
                # Later minibatches also differ by the steps of this update, so only the first is checked.
                parts.append(merged_over_ranks(merged) if steps else self._checked(merged))
                scale = self._scale(parts[-1])
            parts.append(merged_over_ranks(merge_stats(stats)))
            steps.append(self._apply_gradient(rate * scale, scale, tokens=int(parts[-1]["actor_loss"][1])))
        self._steps_done += 1
        found = report(merge_stats(parts)) | steps_summary(steps) | self._expert_load.take()
        if self.model.replay is not None:
            found |= self.model.replay.take()
        return {f"{ACTOR_PREFIX}{name}": value for name, value in found.items()}

    def warm_up(self, batch: PackedBatch) -> None:
        """Compute and discard log-probs and gradients of ``batch``, to allocate memory and load kernels. Collective.

        Weights, optimizer, schedule and random numbers do not change.
        """
        device = self.model.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            prox_logp_T = self.logprobs(batch)
            self.model.train()
            for units in minibatches(batch, self.config.ppo_n_minibatches, cost=self.model.cost):
                self._accumulate(batch, units, torch.zeros_like(prox_logp_T), prox_logp_T, 0.0)
        self._optimizer.zero_grad()
        self._expert_load.take()
        if self.model.replay is not None:
            self.model.replay.take()
        self._fill_optimizer_state()

    def named_full_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor unsharded on rank 0, in ``actor.dtype``, under its Hugging Face name; tied ones once.

        Collective: every rank must consume the whole iterator, which yields nothing on the others. Only one tensor is
        gathered at a time.
        """
        return self.model.named_full_tensors()

    def named_own_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The same, but each tensor on one of the ranks: what this rank writes to files. Collective."""
        return self.model.named_own_tensors()

    def buffers(self) -> dict[str, Tensor]:
        """Tensors that are not trained but belong to the model's files, by their Hugging Face names.

        Examples are correction biases of routers. Every rank has all of them.
        """
        model = self.model.causal_lm
        saved = model.state_dict().keys()
        return {name: buffer for name, buffer in model.named_buffers() if name in saved}

    def save_model_config(self, directory: Path) -> None:
        """Write config.json and generation_config.json."""
        self.model.save_config(directory)

    def save_hf(self, directory: Path) -> None:
        """Write a Hugging Face checkpoint with tokenizer, in ``actor.dtype``. Collective; every rank writes its part.

        With adapters the model has them merged, and ``adapter/`` has them in PEFT's format.

        The directory appears under its name when it is complete; an older one of that name is replaced. Raises
        ``NonFiniteWeightsError`` on every rank for weights that are not finite.
        """
        first = self._ranks.is_first
        partial = directory.with_name(f".{directory.name}.partial")
        write_model(self, partial, dtype=self.model.dtype, ranks=self._ranks)
        if first:
            load_hf_tokenizer(self.tokenizer_path).save_pretrained(partial)
        self._write_adapters(partial / ADAPTER_DIR if first else None)
        if first:
            replace_directory(partial, directory)
        self._ranks.barrier()

    def state_dict(self) -> dict[str, Any]:
        """State of model, optimizer and schedule for torch.distributed.checkpoint, readable by any number of ranks.

        Collective. All values are tensors of at least one dimension, which safetensors can hold. The optimizer's
        settings are not part of it: they are those of the configuration. Neither are frozen parameters.
        """
        self._fill_optimizer_state()
        state = training_state(self.model.causal_lm, self._optimizer)
        return state | {"steps_done": torch.tensor([self._steps_done])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that was read into the result of ``state_dict``. Collective."""
        restore_training_state(self.model.causal_lm, self._optimizer, state)
        self._steps_done = int(state["steps_done"])

    def require_finite(self) -> None:
        """Raise ``NonFiniteWeightsError`` on every rank, naming a parameter, if a weight is not finite. Collective."""
        bad = ""
        for name, parameter in self.model.causal_lm.named_parameters():
            local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            if not bool(torch.isfinite(local.detach()).all()):
                bad = name
                break
        found = self._ranks.from_first(next(filter(None, self._ranks.gather_from_all(bad)), ""))
        if found:
            raise NonFiniteWeightsError(f"{found} has weights that are not finite")

    def _accumulate(
        self,
        batch: PackedBatch,
        units: list[PrefixGroup],
        advantages_T: Tensor,
        prox_logp_T: Tensor | None,
        penalty: float,
    ) -> tuple[list[Stats], list[Stats]]:
        """Accumulate the gradients of a minibatch; return this rank's statistics and, without ``prox_logp_T``, its
        log-prob differences to the server."""
        layouts = self._passes(batch, units)
        mine = torch.tensor([sum(len(layout.token_N) for layout in layouts)], dtype=torch.float64)
        tokens = self._ranks.gather(mine)
        # FSDP averages gradients over the ranks that do not divide the layers; this factor makes that a sum.
        averaged = self._ranks.world_size // self._ranks.size_of(TENSOR)
        scale = averaged / max(1.0, float(tokens.sum()))
        kept_T = self._kept(batch, layouts, prox_logp_T)
        stats, differences = [], []
        for layout in layouts:
            logp_N, entropy_N = self.model(layout)
            loss, loss_stats = policy_loss(
                self.config, batch, layout, logp_N, advantages_T=advantages_T, prox_logp_T=prox_logp_T, kept_T=kept_T
            )
            columns: dict[str, Column] = {"entropy": (entropy_N, None)}
            if self._kl_penalty > 0:
                behav_logp_N = batch.behav_logp_T[layout.token_N].to(logp_N.device)
                penalty_N = penalty * behaviour_kl_penalty(logp_N.float(), behav_logp_N)
                loss = loss + penalty_N.sum()
                columns["kl_penalty"] = (penalty_N, None)
            if (balance_loss := self.model.balance_loss()) is not None:
                # The tokens' sum of this pass: divided by those of the minibatch it is an average over the passes.
                loss = loss + self.config.router_aux_loss_coef * balance_loss * len(logp_N)
                columns["router_aux_loss"] = (balance_loss.expand(len(logp_N)), None)
            if self.config.m2_threshold is not None:
                columns["m2po_kept_tokens"] = (kept_T[layout.token_N].to(logp_N.device), None)
            (loss * scale).backward()
            stats.append(loss_stats | summarize(columns))
            if prox_logp_T is None:
                logp_T = torch.zeros_like(batch.behav_logp_T).index_copy_(0, layout.token_N, logp_N.detach().cpu())
                here_T = torch.zeros_like(batch.loss_mask_T).index_fill_(0, layout.token_N, True)
                differences.append(self._difference(batch, logp_T, here_T))
        return stats, differences

    def _kept(self, batch: PackedBatch, layouts: list[Layout], prox_logp_T: Tensor | None) -> Tensor:
        """Tokens in the loss of a minibatch: all trained tokens except those masked by M2PO."""
        threshold = self.config.m2_threshold
        if threshold is None or prox_logp_T is None:
            return batch.loss_mask_T
        here_T = torch.zeros_like(batch.loss_mask_T)
        for layout in layouts:
            here_T[layout.token_N] = True
        return second_moment_mask(
            prox_logp_T,
            batch.behav_logp_T,
            here_T,
            threshold=threshold,
            reduce=lambda sums: self._ranks.gather(sums).sum(0),
        )

    def _penalty(self, batch: PackedBatch, advantages_T: Tensor) -> float:
        """Coefficient of the KL from the behaviour policy in the loss of this update. Collective."""
        if self._kl_penalty == 0:
            return 0.0
        return self._kl_penalty * advantage_scale(advantages_T, batch.loss_mask_T, reduce=self._ranks.reduce_sum)

    def _scale(self, stats: Stats) -> float:
        """Factor on the learning rate by the measured drift from the behaviour policy."""
        total, count, _, _ = stats[BEHAVIOUR_KL].tolist()
        skip = self.config.correction.kl_skip
        return trust_region_scale(total / count, budget=self.config.correction.kl_budget, skip=skip) if count else 1.0

    def _apply_gradient(self, rate: float, scale: float, *, tokens: int) -> OptimizerStep:
        """Clip the gradient and step, unless it is not finite, there are no tokens, or ``scale`` is 0."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm_value = total_norm(gradients) if tokens else math.nan
        done = math.isfinite(norm_value) and scale > 0
        if done:
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            factor = self.config.optimizer.gradient_clipping / (norm_value + 1e-6)
            if factor < 1:
                for together in by_mesh(gradients):
                    torch._foreach_mul_(together, factor)
            self._optimizer.step()
        else:
            reason = f"the gradient norm is {norm_value}" if tokens else "it has no trained tokens"
            if math.isfinite(norm_value):
                reason = (
                    f"its KL to the behaviour policy exceeds actor.correction.kl_skip {self.config.correction.kl_skip}"
                )
            logger.warning("version %d: skipped a minibatch: %s", self.version, reason)
        self._optimizer.zero_grad()
        return OptimizerStep(norm_value, rate, scale, tokens=tokens, done=done)

    def _difference(self, batch: PackedBatch, logp_T: Tensor, where_T: Tensor) -> Stats:
        """|server − trainer| over the trained tokens and over those of the current version; KL over the trained."""
        difference_T, trained_T = (batch.behav_logp_T - logp_T).abs(), where_T & batch.loss_mask_T
        current_T = trained_T & (batch.versions_T == self.version)
        return summarize(
            {
                LOGPROB_DIFF: (difference_T, trained_T),
                CURRENT_DIFF: (difference_T, current_T),
                BEHAVIOUR_KL: (behaviour_kl(logp_T, batch.behav_logp_T), trained_T),
            }
        )

    def _difference_without_replay(self, batch: PackedBatch, replay: RouterReplay) -> Stats:
        """|server − trainer| over the trained tokens of this rank's first pass if routers choose. Collective.

        Raises ``ValueError`` for a sample without experts.
        """
        replay.check(batch.trajectories)
        self.model.eval()
        layout = self._passes(batch, group_by_prompt(batch, cost=self.model.cost))[0]
        with torch.no_grad():
            logp_N, _ = self.model(layout, replay=False)
        self.model.release()
        difference_N = (batch.behav_logp_T[layout.token_N] - logp_N.cpu()).abs()
        return merged_over_ranks(summarize({UNREPLAYED_DIFF: (difference_N, None)}))

    def _checked(self, mine: Stats) -> Stats:
        stats = merged_over_ranks(mine)
        total, count, *_ = stats[LOGPROB_DIFF].tolist()
        if not math.isfinite(total):
            raise RuntimeError(f"log-probs of the servers or the trainer are not finite, on {count:.0f} trained tokens")
        total, count, _, largest = stats[CURRENT_DIFF].tolist()
        if count and total / count > self.config.max_logprob_diff:
            raise RuntimeError(
                f"servers and trainer disagree: on {count:.0f} tokens of version {self.version} their log-probs differ "
                f"by {total / count:.3g} nats per token (at most {largest:.3g}), above actor.max_logprob_diff "
                f"{self.config.max_logprob_diff}. Check that the servers run this model (sglang.model_path, tokenizer) "
                "with a dtype like actor.dtype and sample at actor.temperature"
            )
        return stats

    def _trained(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _write_adapters(self, directory: Path | None) -> None:
        if self.config.lora is not None:
            self.model.write_adapters(directory, self.config.lora, base=self.config.path)

    def _fill_optimizer_state(self) -> None:
        """Initialise the optimizer state before the first step.

        torch does this in a separate step, which then counts in Adam's bias correction.
        """
        if self._optimizer.state or self.config.optimizer.type == "sgd":
            return
        parameters = self._trained()
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        for group in self._optimizer.param_groups:
            group["lr"] = 0.0
        self._optimizer.step()
        self._optimizer.zero_grad()
        for parameter in parameters:
            self._optimizer.state[parameter]["step"].zero_()
