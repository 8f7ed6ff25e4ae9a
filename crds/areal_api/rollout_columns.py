"""Columns of the files in ``rollouts/``: the trainer writes them, the page of runs reads them."""

from __future__ import annotations

import re
from typing import Final, NamedTuple


class Column(NamedTuple):
    """``type`` is Arrow's name of the type; ``list<…>`` has one value per token of the sequence."""

    name: str
    type: str
    meaning: str


COLUMNS: Final = (
    Column("step", "int32", "Training step, counted from 1 as in `stats.jsonl`."),
    Column("epoch", "int32", "Epoch of the step, counted from 1."),
    Column("version", "int32", "Weight version that the step started from."),
    Column("task_id", "string", "The row's `task_id` or `id`; empty if it has none."),
    Column("problem", "string", "Identifies the problem over all steps: `task_id`, or a digest of the prompt."),
    Column("group", "int64", "Number of the episode. The samples of a group have the same problem."),
    Column("sample", "int32", "Number of the sample in its group, counted from 0."),
    Column("outcome", "string", "`trained`, or `rejected` by `actor.dynamic_sampling`."),
    Column("reward", "float64", "Raw reward of the task."),
    Column("finish_reason", "string", "`stop`, or `length` for a truncated completion."),
    Column("prompt", "string", "Text of the prompt."),
    Column("completion", "string", "Text of the completion."),
    Column("prompt_tokens", "int32", "Tokens of the prompt."),
    Column("trained_tokens", "int32", "Tokens with `loss_mask`: those that the policy generated."),
    Column("head_version", "int32", "Weight version of the first generated token; −1 if there is none."),
    Column("tail_version", "int32", "Weight version of the last generated token; −1 if there is none."),
    Column("token_ids", "list<int32>", "The whole sequence: prompt, turns, and the results of tools between them."),
    Column("tokens", "list<string>", "The text of each token, as it reads after other text. Part of a character is �."),
    Column("loss_mask", "list<bool>", "Whether the policy generated the token. Each run of true values is a turn."),
    Column("logprobs", "list<float>", "Log-prob reported by the server; 0 outside `loss_mask`."),
    Column("versions", "list<int32>", "Weight version that generated the token; −1 outside `loss_mask`."),
    Column("advantages", "list<float>", "Advantage in the loss; 0 outside `loss_mask` and in rejected samples."),
)

_FILE = re.compile(r"step(\d{1,15})\.parquet")


def file_name(step: int) -> str:
    """The file with the samples of a step."""
    return f"step{step}.parquet"


def step_of(name: str) -> int | None:
    """The step of a file name, or None if the file has no samples."""
    match = _FILE.fullmatch(name)
    return int(match[1]) if match else None
