"""Evaluates a model on ``valid_dataset`` through its servers; also a program, ``python -m areal_trainer.evaluate``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from areal_api.config import GRPOConfig
from areal_api.load import load_expr_config
from areal_trainer.data.dataset import load_hf_tokenizer, valid_rows
from areal_trainer.engine import RemoteSGLangEngine
from areal_trainer.ranks import joined
from areal_trainer.reward.pool import RewardPool
from areal_trainer.rollout.make_workflow import Workflows, vocabulary_size
from areal_trainer.rollout.workflow import RolloutWorkflow


def evaluate(engine: RemoteSGLangEngine, rows: list[dict[str, Any]], workflow: RolloutWorkflow) -> float:
    """Mean raw reward over all samples of all rows."""
    episodes = engine.run_episodes(rows, workflow)
    rewards = [trajectory.reward for episode in episodes for trajectory in episode]
    if not rewards:
        raise ValueError(
            "evaluation has no sample: every episode on valid_dataset was rejected or failed; the log names the errors"
        )
    return sum(rewards) / len(rewards)


def main(arguments: Sequence[str]) -> int:
    """Evaluate the model that AREAL_LLM_SERVER_ADDRS serves; prints ``{"reward": …, "rows": …, "model": …}``."""
    try:
        config, _ = load_expr_config(list(arguments), GRPOConfig)
        if config.valid_dataset is None:
            raise ValueError("valid_dataset is not set; set it to held-out problems, e.g. valid_dataset.path=…")
        tokenizer = load_hf_tokenizer(config.tokenizer)
        template_kwargs = config.workflow.kwargs.get("chat_template_kwargs")
        rows = valid_rows(config.valid_dataset, tokenizer, chat_template_kwargs=template_kwargs)
        engine = RemoteSGLangEngine(config.rollout, batch_size=config.consumer_batch_size)
        with joined("cpu"):
            engine.initialize(vocab_size=vocabulary_size(config.actor.path))
            try:
                with (
                    closing(RewardPool.of(config.reward)) as pool,  # before the engine, whose event loop it uses
                    closing(Workflows(config, engine, tokenizer, pool)) as workflows,
                ):
                    reward = evaluate(engine, rows, workflows.evaluation)
            finally:
                engine.destroy()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"reward": reward, "rows": len(rows), "model": config.actor.path}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
