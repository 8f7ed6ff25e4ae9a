"""Data sets, and the reward of their problems."""

from __future__ import annotations

import re
from collections import Counter
from typing import Literal, Self

from pydantic import Field, model_validator

from areal_api.section import Section

MAX_TERMS = 16  # of a reward
MAX_MIXED = 32  # training sets
TERM_NAME_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9_-]{0,38}[A-Za-z0-9])?$"
TASK = "task"  # the name of reward.path in statistics
JUDGE_PROMPT = """\
Judge the answer to a problem.

Problem:
{prompt}

Reference answer:
{answer}

Answer:
{completion}

How good is the answer? Give reasons in one or two sentences. Then write "Score: " and a whole number from 0 (useless)
to 10 (perfect)."""


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


class MixedSet(Section):
    """A training set beside train_dataset. What it does not configure is as in train_dataset."""

    name: str = Field(pattern=TERM_NAME_PATTERN, description="Its name: the value of the column train_set of its rows.")
    weight: float = Field(
        gt=0, le=1e6, description="Prompts of it for each prompt of train_dataset; 0.5 is one for every two."
    )
    path: str = Field(min_length=1, description="As train_dataset.path.")
    config: str | None = Field(None, description="Configuration of a hub data set; null is the only one.")
    split: str | None = Field(None, description="Split; null is train.")
    limit: int | None = Field(None, ge=1, description="Use only the first rows.", json_schema_extra={"unit": "rows"})
    question_column: str | None = Field(None, description="Column with the problem.")
    answer_column: str | None = Field(None, description="Column with the reference answer.")
    instruction: str | None = Field(None, description="Line put under the question; empty adds none.")

    def dataset(self, main: DatasetConfig) -> DatasetConfig:
        """The set as the configuration of a separate data set."""
        given = {
            key: getattr(self, key)
            for key in ("question_column", "answer_column", "instruction")
            if getattr(self, key) is not None
        }
        return main.model_copy(
            update={"path": self.path, "name": self.config, "split": self.split, "limit": self.limit, **given}
        )


class JudgeConfig(Section):
    """A language model that scores completions, behind an endpoint that speaks OpenAI's protocol."""

    url: str = Field(
        pattern=r"^https?://\S+$", description="Base URL, for example http://judge:8000/v1; /chat/completions is added."
    )
    model: str = Field(min_length=1, description="Model name sent to the endpoint.")
    api_key_env: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Environment variable of the trainer with the API key; null sends none.",
    )
    prompt: str = Field(
        JUDGE_PROMPT,
        min_length=1,
        description="The judge's instructions. {prompt}, {completion} and {name}, for any column of the row, are "
        "replaced.",
    )
    pattern: str = Field(
        r"Score:\s*\**\s*(-?\d+(?:\.\d+)?)",
        min_length=1,
        description="Regular expression whose first group is the score; its last match in the judge's text counts.",
    )
    lowest: float = Field(0.0, description="Score with reward 0; a score outside lowest and highest is an error.")
    highest: float = Field(10.0, description="Score with reward 1.")
    max_tokens: int = Field(512, ge=1, description="Longest text of the judge.", json_schema_extra={"unit": "tokens"})
    temperature: float = Field(0.0, ge=0, le=2, description="Sampling temperature of the judge.")
    request_timeout: float = Field(
        30.0, gt=0, description="Longest wait for one answer.", json_schema_extra={"unit": "s"}
    )
    deadline: float = Field(
        120.0, gt=0, description="Longest time of one judgement with all attempts.", json_schema_extra={"unit": "s"}
    )
    retries: int = Field(
        3,
        ge=0,
        le=100,
        description="Further attempts after no answer, HTTP status 408, 429 or 5xx, or a text without a valid score.",
    )
    max_concurrent: int = Field(32, ge=1, description="Most requests at a time.")
    cache_size: int = Field(
        100_000, ge=0, description="Judgements kept in memory, by the judge's instructions with everything replaced."
    )
    input_price: float = Field(
        0.0, ge=0, description="Price of a million prompt tokens.", json_schema_extra={"unit": "of max_cost"}
    )
    output_price: float = Field(
        0.0, ge=0, description="Price of a million generated tokens.", json_schema_extra={"unit": "of max_cost"}
    )
    max_cost: float | None = Field(
        None,
        gt=0,
        description="Cost of a run from which on judgements fail, and with them the run; null sets no limit. Needs a "
        "price.",
    )

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        try:
            groups = re.compile(self.pattern).groups
        except re.error as error:
            raise ValueError(f"pattern is {self.pattern!r}, not a regular expression: {error}") from error
        if not groups:
            raise ValueError(f"pattern is {self.pattern!r}, without a group; put the score into parentheses")
        if self.lowest >= self.highest:
            raise ValueError(f"lowest is {self.lowest:g}, not below highest {self.highest:g}; change one of them")
        if self.max_cost is not None and not self.input_price and not self.output_price:
            raise ValueError("max_cost is set but no price is; set input_price and output_price")
        if "{completion}" not in self.prompt:
            raise ValueError("prompt lacks {completion}, so every completion would get the same score; add it")
        return self


class RewardTerm(Section):
    """A further term of the reward: a function or a judge."""

    name: str = Field(pattern=TERM_NAME_PATTERN, description="Its name in statistics.")
    weight: float = Field(1.0, description="Factor of its value in the reward; 0 logs it only.")
    path: str | None = Field(
        None, pattern=r"^[\w.]+:[\w.]+$", description="Reward function, package.module:function; null with a judge."
    )
    judge: JudgeConfig | None = Field(None, description="Language model that scores; null with a path.")

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.path is None) == (self.judge is None):
            given = "neither path nor judge" if self.path is None else "both path and judge"
            raise ValueError(f"term {self.name!r} has {given}; set one of them")
        return self


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
    weight: float = Field(1.0, description="Factor of the function's value in the reward; 0 logs it only.")
    terms: list[RewardTerm] = Field(
        default_factory=list,
        max_length=MAX_TERMS,
        description="Further terms. The reward is the sum of all values, each times its weight.",
    )

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        counts = Counter([TASK, *(term.name for term in self.terms)])
        repeated = [name for name, count in counts.items() if count > 1]
        if repeated:
            reason = "is the name of path" if repeated[0] == TASK else "occurs twice"
            raise ValueError(f"terms: name {repeated[0]!r} {reason}; names must be unique, choose another")
        if not self.weight and not any(term.weight for term in self.terms):
            raise ValueError("weight is 0 and so is that of every term, so every reward would be 0; raise one")
        return self
