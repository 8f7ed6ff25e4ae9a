"""Reads the rows of a dataset from a file, a directory, a user's function or the Hugging Face hub."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from areal_api.data_config import DatasetConfig
from areal_api.paths import is_local_path
from areal_trainer.data.files import READERS, Row, Table, read_file
from areal_trainer.import_path import load_object

FUNCTION = re.compile(r"[\w.]+:[\w.]+")


class Rows(Protocol):
    """The common interface of ``datasets.Dataset`` and a list of dictionaries."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row: ...


@dataclass(frozen=True)
class Source:
    """Rows and the name that error messages give them."""

    rows: Rows
    columns: list[str]  # columns that every row has
    name: str
    from_user_function: bool = False
    table: Table | None = None  # if the rows come from a file

    def row_name(self, index: int) -> str:
        """The row with its source, for error messages."""
        return f"{self.table.row_name(index) if self.table else f'row {index + 1}'} of {self.name}"


def read_source(config: DatasetConfig, *, split: str, section: str, tokenizer: PreTrainedTokenizerBase) -> Source:
    """All rows of ``config.path`` in stored order.

    ``section`` is the configuration section for error messages. Raises ``ValueError`` with the path and the reason if
    the data cannot be read.
    """
    path = Path(config.path)
    try:
        if path.is_file():
            return _of_table(read_file(path), name=str(path))
        if path.is_dir():
            return _read_directory(path, split)
        if FUNCTION.fullmatch(config.path):
            return _call(config, split=split, section=section, tokenizer=tokenizer)
        if path.suffix in READERS or is_local_path(config.path):
            raise ValueError(f"no such file or directory (working directory: {Path.cwd()})")
        return _from_hub(config, split)
    except ValueError as error:
        raise ValueError(f"{section}.path is {config.path!r}: {error}") from error


def _of_table(table: Table, *, name: str) -> Source:
    source = _of(table.rows, name=name)
    return Source(source.rows, source.columns, name, table=table)


def _of(rows: Any, *, name: str, from_user_function: bool = False) -> Source:
    columns = getattr(rows, "column_names", None)
    if columns is not None:
        return Source(rows, list(columns), name, from_user_function)
    if not (isinstance(rows, Sequence) and all(isinstance(row, dict) for row in rows)):
        raise ValueError(f"{name} is {type(rows).__name__}, not a datasets.Dataset or a list of dictionaries")
    common = list(rows[0]) if rows else []
    for row in rows:
        common = [column for column in common if column in row]
    return Source(rows, common, name, from_user_function)


def _read_directory(path: Path, split: str) -> Source:
    """Read a directory saved by ``datasets``, or one with one file per split (``train.jsonl``)."""
    if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        import datasets

        saved = datasets.load_from_disk(str(path))
        if isinstance(saved, datasets.DatasetDict):
            if split not in saved:
                raise ValueError(f"it has no split {split!r}; its splits are: {', '.join(saved)}")
            return _of(saved[split], name=f"{path} ({split})")
        return _of(saved, name=str(path))
    for suffix in READERS:
        file = path / f"{split}{suffix}"
        if file.is_file():
            return _of_table(read_file(file), name=str(file))
    entries = ", ".join(sorted(entry.name for entry in path.iterdir())[:12]) or "nothing"
    raise ValueError(
        f"the directory was not saved by datasets and has no {split}{{{','.join(READERS)}}}; it contains {entries}"
    )


def _call(config: DatasetConfig, *, split: str, section: str, tokenizer: PreTrainedTokenizerBase) -> Source:
    """Call the user's function with those of our arguments that it accepts.

    ``rank`` and ``world_size`` are 0 and 1: the function returns all rows, and the loader splits them over the ranks.
    """
    function = load_object(config.path, field=f"{section}.path")
    if not callable(function):
        raise ValueError(f"it is {type(function).__name__}, not a function")
    available = {"split": split, "rank": 0, "world_size": 1, "tokenizer": tokenizer, "config": config}
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        arguments = available
    else:
        arguments = {name: value for name, value in available.items() if name in {p.name for p in parameters}}
    unknown = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name not in available
    ]
    if unknown:
        raise ValueError(f"the function requires {', '.join(unknown)}; available arguments are: {', '.join(available)}")
    return _of(function(**arguments), name=f"{config.path}(split={split!r})", from_user_function=True)


def _from_hub(config: DatasetConfig, split: str) -> Source:
    import datasets

    name = config.name or ("main" if config.path.split("/")[-1] == "gsm8k" else None)
    try:
        rows = datasets.load_dataset(path=config.path, name=name, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"no such file, and the hub has no such dataset or cannot be reached ({reason})") from error
    return _of(rows, name=f"{config.path} ({name + ', ' if name else ''}{split})")
