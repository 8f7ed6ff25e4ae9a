"""Checks, before the first step, that packed log-probs are those that transformers computes one sequence at a time.

Packing is exact only if a model lets no sequence see its neighbours (convolutions and state-space layers do) and has
nothing in attention or logits that the trainer leaves out. Both depend on the architecture, so the model itself is run.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from areal_api.errors import describe
from areal_trainer.batch import PackedBatch, pack
from areal_trainer.model.language_model import SEGMENT_ATTENTIONS, LanguageModel
from areal_trainer.model.layout import PrefixGroup, lay_out
from areal_trainer.trajectory import Trajectory

_PROMPT, _COMPLETIONS = 11, (17, 23)  # tokens; longer than the kernels of convolutions
# Largest differences in nats: of any token between passes, which differ in the order of sums, and on average from
# transformers, whose attention also rounds differently.
_FLOAT32, _OTHER = (1e-3, 1e-3), (0.3, 0.15)


def check_exactness(model: LanguageModel, *, section: str) -> None:
    """Raise ``ValueError`` if log-probs of a packed pass are not those of single sequences. Collective."""
    was_training = model.training
    model.eval()
    try:
        between_passes, from_plain = _differences(model)
    except Exception as error:
        raise ValueError(
            f"{section}.path: {model.name} cannot compute log-probs ({describe(error)[:200]}); {_fix(model, section)}"
        ) from error
    finally:
        model.train(was_training)
    any_token, average = _FLOAT32 if model.dtype == torch.float32 else _OTHER
    if not between_passes <= any_token:
        problem = f"sequences of a pass change each other's log-probs by up to {between_passes:.2g} nats"
    elif not from_plain <= average:
        problem = f"log-probs differ by {from_plain:.2g} nats per token from those of transformers"
    else:
        return
    raise ValueError(f"{section}.path: {model.name}: {problem}; {_fix(model, section)}")


def _fix(model: LanguageModel, section: str) -> str:
    if model.attention == "eager":
        return "the trainer does not support this architecture; choose another model"
    return f"set {section}.attn_impl: eager, which pads sequences instead of packing them"


def _differences(model: LanguageModel) -> tuple[float, float]:
    """Largest difference between a pass of four sequences and passes of one; mean difference from transformers."""
    batch = _batch(model.vocabulary)
    alone = _groups(batch, shared=False)
    together_T = _logprobs(model, batch, _groups(batch, shared=model.attention in SEGMENT_ATTENTIONS))
    alone_T = sum((_logprobs(model, batch, [group]) for group in alone), torch.zeros_like(together_T))
    plain_T = _logprobs(model, batch, alone, plain=True)
    trained = batch.loss_mask_T
    between = (together_T - alone_T)[trained].abs().max()
    return float(between), float((alone_T - plain_T)[trained].abs().mean())


def _logprobs(model: LanguageModel, batch: PackedBatch, groups: list[PrefixGroup], *, plain: bool = False) -> Tensor:
    layout = lay_out(batch, groups)
    logp_T = torch.zeros(len(batch.input_ids_T))
    with torch.no_grad():
        logp_N, _ = model(layout, plain=plain)
    logp_T[layout.token_N] = logp_N.cpu()
    return logp_T


def _groups(batch: PackedBatch, *, shared: bool) -> list[PrefixGroup]:
    """Two prompts with two completions each; with ``shared`` a prompt is stored once."""
    if not shared:
        return [PrefixGroup((index,), 0, length) for index, length in enumerate(batch.lengths)]
    tokens = _PROMPT + sum(_COMPLETIONS)
    return [PrefixGroup((0, 1), _PROMPT, tokens), PrefixGroup((2, 3), _PROMPT, tokens)]


def _batch(vocabulary: int) -> PackedBatch:
    chance = np.random.default_rng(0)
    trajectories: list[Trajectory] = []
    for group in range(2):
        prompt = chance.integers(0, vocabulary, _PROMPT).tolist()
        for length in _COMPLETIONS:
            mask = [False] * _PROMPT + [True] * length
            trajectories.append(
                Trajectory.of_lists(
                    input_ids=[*prompt, *chance.integers(0, vocabulary, length).tolist()],
                    loss_mask=mask,
                    logprobs=[0.0] * len(mask),
                    versions=[0 if trained else -1 for trained in mask],
                    reward=0.0,
                    prompt_len=_PROMPT,
                    finish_reason="length",
                    group=group,
                )
            )
    return pack(trajectories)
