"""Constructs the configured workflow."""

from __future__ import annotations

from transformers import AutoConfig, PreTrainedTokenizerBase

from areal_api.config import GRPOConfig
from areal_api.generation import GenerationHyperparameters
from areal_trainer.reward.pool import RewardPool
from areal_trainer.rollout.workflow import RolloutWorkflow, load_workflow


def make_workflow(
    config: GRPOConfig, gconfig: GenerationHyperparameters, tokenizer: PreTrainedTokenizerBase, pool: RewardPool
) -> RolloutWorkflow:
    """The workflow named by ``config.workflow``; its reward function runs in ``pool``."""
    return load_workflow(
        config.workflow.path, reward_fn=pool.score, gconfig=gconfig, tokenizer=tokenizer, **config.workflow.kwargs
    )


def vocabulary_size(model: str) -> int:
    """Size of the model's vocabulary; SGLang pads the embedding beyond it and crashes on larger ids."""
    return int(AutoConfig.from_pretrained(model).get_text_config().vocab_size)
