"""PromptDataset for training and evaluation: rows with a chat prompt and a reference answer."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from areal_api.config import DatasetConfig
from areal_trainer.data.loader import PromptLoader, global_batches
from areal_trainer.data.source import Row, Source, read_source
from areal_trainer.data.tokenizer import load_hf_tokenizer, prompt_lengths, require_chat_template

__all__ = ["PromptDataset", "PromptLoader", "load_hf_tokenizer", "load_train_dataset", "train_loader", "valid_rows"]

logger = logging.getLogger(__name__)

TOKENIZE_BATCH_ROWS = 512


class PromptDataset(Dataset):
    """Rows as passed to a workflow: ``messages``, ``answer``, ``task_id`` and all other columns of the source.

    ``dropped`` counts the prompts longer than ``max_length`` tokens. ``task_id`` is the row's ``task_id`` or ``id``,
    else ``<split>/<index>``.
    """

    def __init__(self, source: Source, config: DatasetConfig, *, split: str) -> None:
        self.name = source.name
        self.dropped = 0
        self._rows = source.rows
        self._config = config
        self._split = split
        self._indices: Sequence[int] = range(min(len(source.rows), config.limit or len(source.rows)))

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Row:
        number = self._indices[index]
        row = dict(self._rows[number])
        config = self._config
        if "messages" not in row:
            text = str(row.pop(config.question_column))
            content = f"{text}\n{config.instruction}" if config.instruction else text
            row["messages"] = [{"role": "user", "content": content}]
        if config.answer_column in row:
            row["answer"] = row.pop(config.answer_column)
        row["task_id"] = str(row.get("task_id", row.get("id", f"{self._split}/{number}")))
        return row

    def __getitems__(self, indices: list[int]) -> list[Row]:
        return [self[index] for index in indices]

    def drop_long(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        """Drop prompts longer than ``max_length`` tokens."""
        kept: list[int] = []
        numbers = iter(enumerate(self._indices))
        while chunk := list(islice(numbers, TOKENIZE_BATCH_ROWS)):
            lengths = prompt_lengths(tokenizer, [self[index]["messages"] for index, _ in chunk])
            kept += [number for (_, number), length in zip(chunk, lengths, strict=True) if length <= max_length]
        self.dropped += len(self._indices) - len(kept)
        self._indices = kept

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))


def load_train_dataset(config: DatasetConfig, tokenizer: PreTrainedTokenizerBase) -> PromptDataset:
    """Load ``train_dataset``. Raises ``ValueError`` for unusable data."""
    return _load(config, tokenizer, split=config.split or "train", section="train_dataset")


def train_loader(
    config: DatasetConfig, tokenizer: PreTrainedTokenizerBase, *, seed: int, rank: int = 0, world_size: int = 1
) -> PromptLoader:
    """Load one rank's batches of ``train_dataset``. Raises ``ValueError`` for unusable data."""
    dataset = load_train_dataset(config, tokenizer)
    batches = global_batches(config, len(dataset), section="train_dataset", seed=seed, rank=rank, world_size=world_size)
    return PromptLoader(dataset, batches, num_workers=config.num_workers)


def valid_rows(config: DatasetConfig, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """All rows of ``valid_dataset`` in stored order."""
    return list(_load(config, tokenizer, split=config.split or "test", section="valid_dataset"))


def _load(config: DatasetConfig, tokenizer: PreTrainedTokenizerBase, *, split: str, section: str) -> PromptDataset:
    require_chat_template(tokenizer)
    source = read_source(config, split=split, section=section, tokenizer=tokenizer)
    if not len(source.rows):
        raise ValueError(f"{section}.path is {config.path!r}: {source.name} has no rows")
    _check_columns(source, config, section=section)
    dataset = PromptDataset(source, config, split=split)
    if config.max_length is not None:
        dataset.drop_long(tokenizer, config.max_length)
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
