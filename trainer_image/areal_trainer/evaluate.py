"""Evaluates a model on the held-out sets through its servers: ``python -m areal_trainer.evaluate``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from areal_api import names
from areal_api.config import GRPOConfig
from areal_api.load import load_expr_config
from areal_trainer.data.dataset import load_hf_tokenizer
from areal_trainer.engine import RemoteSGLangEngine
from areal_trainer.evaluation.evaluator import Evaluation
from areal_trainer.evaluation.prepare import prepared_evaluator
from areal_trainer.ranks import joined
from areal_trainer.reward.weighted import Reward
from areal_trainer.rollout.make_workflow import Workflows, vocabulary_size


def evaluate(config: GRPOConfig, run: Path) -> Evaluation:
    """Evaluate the served weights. Raises ``ValueError`` for a configuration that cannot be evaluated."""
    if config.valid_dataset is None:
        raise ValueError("valid_dataset is not set; set it to held-out problems, e.g. valid_dataset.path=…")
    tokenizer = load_hf_tokenizer(config.tokenizer)
    engine = RemoteSGLangEngine(config.rollout, batch_size=config.consumer_batch_size)
    with joined("cpu"):
        engine.initialize(vocab_size=vocabulary_size(config.actor.path))
        try:
            with (
                closing(Reward.of(config.reward, run=run)) as reward,  # before the engine, whose event loop it uses
                closing(Workflows(config, engine, tokenizer, reward)) as workflows,
                prepared_evaluator(
                    config, workflows, reward, tokenizer, directory=names.evaluations_dir(run)
                ) as evaluator,
            ):
                assert evaluator is not None
                return evaluator.evaluate(engine.run_episodes, step=0)
        finally:
            engine.destroy()


def main(arguments: Sequence[str]) -> int:
    """Evaluate the model that AREAL_LLM_SERVER_ADDRS serves.

    Prints ``{"reward": …, "rows": …, "model": …, "statistics": {…}, "samples": …}``. ``rows`` counts the evaluated
    problems of ``valid_dataset``; ``samples`` is the file with the samples.
    """
    try:
        config, _ = load_expr_config(list(arguments), GRPOConfig)
        run = Path(os.environ.get(names.RUN_DIR) or names.run_dir(config))
        found = evaluate(config, run)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    samples = None if found.file is None else str(found.file)
    result = {"reward": found.reward, "rows": found.problems, "model": config.actor.path}
    print(json.dumps({**result, "statistics": found.statistics, "samples": samples}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
