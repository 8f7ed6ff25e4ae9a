"""Columns of the files in ``evaluations/``: the trainer writes them, ``grpo compare`` reads them."""

from __future__ import annotations

from typing import Final

from areal_api.rollout_columns import Column

EVALUATION_COLUMNS: Final = (
    Column("set", "string", "`valid` for `valid_dataset`, else the name in `evaluator.sets`."),
    Column("problem", "string", "Identifies the problem in every evaluation: `task_id`, or a digest of the prompt."),
    Column("task_id", "string", "The row's `task_id` or `id`; empty if it has none."),
    Column("sample", "int32", "Number of the sample among those of the problem, counted from 0."),
    Column("reward", "float64", "Raw reward."),
    Column("answer", "string", "Final answer that votes in maj@k; null if there is none."),
    Column("finish_reason", "string", "`stop`, or `length` for a truncated completion."),
    Column("prompt", "string", "Text of the prompt."),
    Column("completion", "string", "Text of the completion."),
    Column("completion_tokens", "int32", "Tokens that the policy generated."),
    Column("version", "int32", "Weight version of the last generated token; −1 if there is none."),
)
