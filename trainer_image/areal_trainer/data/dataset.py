"""PromptDataset for training and evaluation: rows with a chat prompt and a reference answer."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from areal_api.data_config import DatasetConfig, MixedSet
from areal_trainer.data.files import Row
from areal_trainer.data.loader import PromptLoader, global_batches
from areal_trainer.data.mixture import MixedDataset, Mixture
from areal_trainer.data.source import Source, read_source
from areal_trainer.data.tokenizer import Codec, load_hf_tokenizer, render_prompt, require_chat_template

__all__ = ["PromptDataset", "PromptLoader", "load_hf_tokenizer", "load_train_dataset", "train_loader", "valid_rows"]

logger = logging.getLogger(__name__)


class PromptDataset(Dataset):
    """Rows as passed to a workflow: ``messages``, ``answer``, ``task_id`` and all other columns of the source.

    Without ``apply_chat_template``, rows have the plain text ``prompt`` in place of ``messages``.
    ``dropped`` counts the prompts longer than ``max_length`` tokens. ``task_id`` is the row's ``task_id`` or ``id``,
    else ``<split>/<index>``.
    """

    def __init__(self, source: Source, config: DatasetConfig, *, split: str) -> None:
        self.name = source.name
        self.dropped = 0
        self._source = source
        self._config = config
        self._split = split
        self._indices: Sequence[int] = range(min(len(source.rows), config.limit or len(source.rows)))

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Row:
        number = self._indices[index]
        row = dict(self._source.rows[number])
        config = self._config
        if row.get("messages") is None:
            text = row.pop(config.question_column)
            content = f"{text}\n{config.instruction}" if config.instruction else text
            if config.apply_chat_template:
                row["messages"] = [{"role": "user", "content": content}]
            else:
                row["prompt"] = content
        if config.answer_column in row:
            row["answer"] = row.pop(config.answer_column)
        ids = (row.get("task_id"), row.get("id"), f"{self._split}/{number}")
        row["task_id"] = str(next(value for value in ids if value is not None and value != ""))
        return row

    def __getitems__(self, indices: list[int]) -> list[Row]:
        return [self[index] for index in indices]

    def drop_long(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, *, chat_template_kwargs: dict[str, Any] | None = None
    ) -> None:
        """Drop prompts longer than ``max_length`` tokens, as a workflow tokenizes them."""
        codec = Codec(tokenizer)
        kept: list[int] = []
        for index, number in enumerate(self._indices):
            row = self[index]
            try:
                if "messages" in row:
                    prompt = render_prompt(tokenizer, row["messages"], **(chat_template_kwargs or {}))
                    ids = codec.encode(prompt, add_special_tokens=False)
                else:
                    ids = codec.encode(row["prompt"])
            except ValueError as error:
                raise ValueError(f"{self._source.row_name(number)}: {error}") from error
            if len(ids) <= max_length:
                kept.append(number)
        self.dropped += len(self._indices) - len(kept)
        self._indices = kept

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))


def load_train_dataset(
    config: DatasetConfig, tokenizer: PreTrainedTokenizerBase, *, chat_template_kwargs: dict[str, Any] | None = None
) -> PromptDataset:
    """Load ``train_dataset``. Raises ``ValueError`` for unusable data."""
    split = config.split or "train"
    return _load(config, tokenizer, chat_template_kwargs, split=split, section="train_dataset")


def train_loader(
    config: DatasetConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    chat_template_kwargs: dict[str, Any] | None = None,
    mix: Sequence[MixedSet] = (),
) -> PromptLoader:
    """Load one rank's batches of ``train_dataset`` and of the sets of ``train_mix``.

    Raises ``ValueError`` for unusable data.
    """
    main = load_train_dataset(config, tokenizer, chat_template_kwargs=chat_template_kwargs)
    dataset: Dataset = main
    rows, mixture = len(main), None
    if mix:
        others = [
            _load(
                one.dataset(config),
                tokenizer,
                chat_template_kwargs,
                split=one.split or "train",
                section=f"train_mix[{at}]",
                prefix=f"{one.name}/",
            )
            for at, one in enumerate(mix)
        ]
        dataset = MixedDataset([main, *others], [one.name for one in mix])
        mixture = Mixture([len(main), *map(len, others)], [1.0, *(one.weight for one in mix)])
        rows = mixture.rows
    batches = global_batches(
        config, rows, section="train_dataset", seed=seed, rank=rank, world_size=world_size, mixture=mixture
    )
    return PromptLoader(dataset, batches, num_workers=config.num_workers)


def valid_rows(
    config: DatasetConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    section: str = "valid_dataset",
    chat_template_kwargs: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """All rows of a held-out set in stored order. Errors name ``section``, its key in the configuration."""
    split = config.split or "test"
    return list(_load(config, tokenizer, chat_template_kwargs, split=split, section=section))


def _load(
    config: DatasetConfig,
    tokenizer: PreTrainedTokenizerBase,
    chat_template_kwargs: dict[str, Any] | None,
    *,
    split: str,
    section: str,
    prefix: str = "",
) -> PromptDataset:
    """``prefix`` of the ``task_id`` of rows that have none."""
    if config.apply_chat_template:
        require_chat_template(tokenizer, section=section)
    source = read_source(config, split=split, section=section, tokenizer=tokenizer)
    if not len(source.rows):
        raise ValueError(f"{section}.path is {config.path!r}: {source.name} has no rows")
    _check_columns(source, config, section=section)
    _check_rows(source, config, section=section)
    dataset = PromptDataset(source, config, split=f"{prefix}{split}")
    if config.max_length is not None:
        dataset.drop_long(tokenizer, config.max_length, chat_template_kwargs=chat_template_kwargs)
    if not len(dataset):
        raise ValueError(
            f"{section}.max_length is {config.max_length} tokens and all {dataset.dropped} prompts of {source.name} "
            "are longer; raise it"
        )
    logger.info(
        "%s: loaded %d prompts from %s; dropped %d longer than max_length (%s tokens)",
        section,
        len(dataset),
        source.name,
        dataset.dropped,
        config.max_length,
    )
    return dataset


def _check_columns(source: Source, config: DatasetConfig, *, section: str) -> None:
    """Require a question or messages in every row, and an answer unless a user's function returned the rows."""
    if "messages" in source.columns and not config.apply_chat_template:
        raise ValueError(
            f"{source.name} has a column 'messages', which only a chat template turns into a prompt; set "
            f"{section}.apply_chat_template=true, or rename the column"
        )
    required = [] if "messages" in source.columns else [("question_column", config.question_column)]
    if not source.from_user_function:
        required.append(("answer_column", config.answer_column))
    for key, column in required:
        if column not in source.columns:
            alternative = ", or add a messages column" if key == "question_column" else ""
            raise ValueError(
                f"{source.name} has no column {column!r} in every row; its columns are: "
                f"{', '.join(source.columns) or 'none'}. Set {section}.{key}{alternative}"
            )


def _check_rows(source: Source, config: DatasetConfig, *, section: str) -> None:
    """Raise ``ValueError`` naming the first row whose prompt or answer is missing or is not text."""
    rows = source.rows
    if hasattr(rows, "select_columns"):  # do not decode other columns, such as images
        names = ("messages", config.question_column, config.answer_column)
        rows = rows.select_columns([name for name in names if name in source.columns])
    for index in range(min(len(rows), config.limit or len(rows))):
        problem = _problem(rows[index], config, source=source)
        if problem:
            raise ValueError(f"{section}.path is {config.path!r}: {source.row_name(index)}: {problem}")


def _problem(row: Row, config: DatasetConfig, *, source: Source) -> str | None:
    """Why ``row`` cannot be used, or None."""
    messages = row.get("messages")
    if messages is not None:
        problem = _message_problem(messages)
    elif "messages" in source.columns and config.question_column not in row:
        problem = "messages is null"
    else:
        problem = _text_problem(config.question_column, row.get(config.question_column))
    if problem is None and not source.from_user_function and row.get(config.answer_column) is None:
        problem = f"{config.answer_column!r} is null; it needs a reference answer"
    return problem


def _message_problem(messages: Any) -> str | None:
    if not isinstance(messages, list | tuple) or not messages:
        return f"messages is {messages!r:.60}, not a list of at least one message"
    for position, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return f"message {position} is {message!r:.60}, not an object with a role and content"
        content = message.get("content")
        if not isinstance(content, str | list) and not message.get("tool_calls"):
            return f"content of message {position} is {content!r:.60}, not text"
    return None


def _text_problem(column: str, value: Any) -> str | None:
    if value is None:
        return f"{column!r} is null; it needs a question"
    if not isinstance(value, str):
        return f"{column!r} is {type(value).__name__} {value!r:.60}, not text; write it as a string"
    return None if value.strip() else f"{column!r} is empty; it needs a question"
