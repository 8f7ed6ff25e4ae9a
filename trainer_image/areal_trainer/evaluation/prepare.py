"""Prepares the held-out sets of a configuration: their rows, rewards and workflows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from areal_api.config import GRPOConfig
from areal_api.evaluation import HeldOut
from areal_trainer.data.dataset import valid_rows
from areal_trainer.evaluation.evaluator import Evaluator, PreparedSet
from areal_trainer.evaluation.metrics import FinalAnswer
from areal_trainer.reward.weighted import Reward
from areal_trainer.rollout.make_workflow import Workflows

FINAL_ANSWER = "final_answer"  # attribute of a reward function: the final answer of a completion, as text, or None


@contextmanager
def prepared_evaluator(
    config: GRPOConfig, workflows: Workflows, reward: Reward, tokenizer: PreTrainedTokenizerBase, *, directory: Path
) -> Iterator[Evaluator | None]:
    """The evaluator of ``config``, or None without ``valid_dataset``. ``reward`` is that of training.

    Raises ``ValueError`` for data or rewards that cannot be used.
    """
    template_kwargs = config.workflow.kwargs.get("chat_template_kwargs")
    with ExitStack() as stack:
        sets: list[PreparedSet] = []
        for held_out in config.held_out:
            own = reward
            if held_out.reward != config.reward:
                own = Reward.of(held_out.reward)
                stack.callback(own.close)
            rows = valid_rows(held_out.dataset, tokenizer, section=held_out.key, chat_template_kwargs=template_kwargs)
            workflow = workflows.evaluation_on(held_out, own.score)
            sets.append(PreparedSet(held_out, rows, workflow, _final_answer(held_out, own, workflows)))
        yield Evaluator(config, sets, directory=directory) if sets else None


def _final_answer(held_out: HeldOut, reward: Reward, workflows: Workflows) -> FinalAnswer | None:
    found: Any = getattr(reward.function, FINAL_ANSWER, None)
    if found is None or workflows.gateway is not None:  # an agent rewards itself
        return None
    if not callable(found):
        raise ValueError(
            f"{held_out.reward.path}.{FINAL_ANSWER} is {found!r:.60}, not a function from a completion to its final "
            "answer as text"
        )
    return found  # type: ignore[no-any-return]
