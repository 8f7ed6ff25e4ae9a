"""Data sets, and the reward of their problems."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from areal_api.section import Section


class DatasetConfig(Section):
    """A data set: one row a problem."""

    path: str = Field(
        "",
        description="Hub name, local file (jsonl, json, parquet, csv), directory saved by datasets, or "
        "package.module:function.",
    )
    name: str | None = Field(
        None, description="Configuration of a hub data set; null is main for gsm8k, else the only one."
    )
    split: str | None = Field(None, description="Split; null is train for train_dataset and test for valid_dataset.")
    type: Literal["rl"] = Field("rl", description="What the rows are for.")
    batch_size: int = Field(
        1, ge=1, description="Prompts of a batch, over all ranks.", json_schema_extra={"unit": "prompts"}
    )
    shuffle: bool = Field(True, description="Draw a new order each epoch, by the run's seed.")
    num_workers: int = Field(0, ge=0, description="Processes that read the data.")
    drop_last: bool = Field(True, description="Leave out the last, smaller batch of an epoch.")
    max_length: int | None = Field(
        None, ge=1, description="Longer prompts are dropped and counted.", json_schema_extra={"unit": "tokens"}
    )
    limit: int | None = Field(None, ge=1, description="Use only the first rows.", json_schema_extra={"unit": "rows"})
    question_column: str = Field(
        "question", description="Column with the problem; not needed where the rows have messages."
    )
    answer_column: str = Field("answer", description="Column with the reference answer.")
    instruction: str = Field(
        "Please put your final answer within \\boxed{}.", description="Line put under the question; empty adds none."
    )
    apply_chat_template: bool = Field(
        True,
        description="Render the prompt with the tokenizer's chat template; false passes question and instruction as "
        "plain text, for base models.",
    )


class ValidDatasetConfig(DatasetConfig):
    """The held-out data set: every row of it, in its order."""

    shuffle: bool = Field(False, description="Draw a new order each evaluation, by the run's seed.")
    drop_last: bool = Field(False, description="Leave out the last, smaller batch.")


class RewardConfig(Section):
    """The reward function and the processes that run it."""

    path: str = Field(
        "areal_trainer.reward.gsm8k:gsm8k_reward_fn",
        pattern=r"^[\w.]+:[\w.]+$",
        description="Reward function, package.module:function.",
    )
    processes: int = Field(
        1,
        ge=0,
        description="Processes that call the reward function; 0 calls it in the trainer's event loop, where only an "
        "async function has a deadline.",
    )
    timeout: float = Field(
        15.0,
        gt=0,
        description="Longest time of one call; a call that takes longer is killed and is an error of its sample.",
        json_schema_extra={"unit": "s"},
    )
