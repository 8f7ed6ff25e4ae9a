"""The rows of a data set, from wherever ``DatasetConfig.path`` points."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from areal_api.config import DatasetConfig
from areal_trainer.import_path import load_object, names_a_file

Row = dict[str, Any]
FUNCTION = re.compile(r"[\w.]+:[\w.]+")


class Rows(Protocol):
    """What a ``datasets.Dataset`` and a list of dictionaries have in common."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row: ...


@dataclass(frozen=True)
class Source:
    """Rows, and what they are called in messages."""

    rows: Rows
    columns: list[str]  # of every row
    name: str
    own: bool = False  # made by the user's own function


def read_source(config: DatasetConfig, *, split: str, section: str, tokenizer: Any) -> Source:
    """The rows of ``config.path``: all of them, in the order in which they are stored.

    ``section`` is the configuration section that messages name. Raises ``ValueError`` with the path and the reason
    where the data cannot be read.
    """
    path = Path(config.path)
    try:
        if path.is_file():
            return _of(_read_file(path), name=str(path))
        if path.is_dir():
            return _read_directory(path, split)
        if FUNCTION.fullmatch(config.path):
            return _call(config, split=split, section=section, tokenizer=tokenizer)
        if path.suffix in READERS or names_a_file(config.path):
            raise ValueError(f"there is no such file or directory (searched from {Path.cwd()})")
        return _from_hub(config, split)
    except ValueError as error:
        raise ValueError(f"{section}.path is {config.path!r}: {error}") from error


def _of(rows: Any, *, name: str, own: bool = False) -> Source:
    columns = getattr(rows, "column_names", None)
    if columns is not None:
        return Source(rows, list(columns), name, own)
    if not (isinstance(rows, Sequence) and all(isinstance(row, dict) for row in rows)):
        raise ValueError(f"{name} is {type(rows).__name__}, not a datasets.Dataset or a list of dictionaries")
    common = [column for column in (rows[0] if rows else {}) if all(column in row for row in rows)]
    return Source(rows, common, name, own)


def _read_jsonl(path: Path) -> list[Row]:
    def lines() -> Iterator[Row]:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"line {number} of {path} is not JSON: {error}") from error
                if not isinstance(row, dict):
                    raise ValueError(f"line {number} of {path} is {type(row).__name__}, not an object")
                yield row

    return list(lines())


def _read_json(path: Path) -> list[Row]:
    text = path.read_text(encoding="utf-8")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return _read_jsonl(path)  # JSON lines under the name .json, as many data sets have it
    if isinstance(value, dict) and len(value) == 1 and isinstance(next(iter(value.values())), list):
        value = next(iter(value.values()))
    if not isinstance(value, list):
        raise ValueError(f"{path} holds {type(value).__name__}, not a list of objects")
    return value


def _read_parquet(path: Path) -> Any:
    import datasets
    import pyarrow
    import pyarrow.parquet

    try:
        return datasets.Dataset(pyarrow.parquet.read_table(path))
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is not a parquet file: {error}") from error


def _read_csv(path: Path) -> Any:
    import datasets
    import pyarrow
    import pyarrow.csv

    # Quoted fields may span lines, as solutions do.
    parsing = pyarrow.csv.ParseOptions(newlines_in_values=True)
    try:
        return datasets.Dataset(pyarrow.csv.read_csv(path, parse_options=parsing))
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is not a CSV file with a header: {error}") from error


READERS: dict[str, Callable[[Path], Any]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}


def _read_file(path: Path) -> Any:
    if path.suffix not in READERS:
        raise ValueError(f"files of type {path.suffix or '(none)'} are not read; use one of {', '.join(READERS)}")
    return READERS[path.suffix](path)


def _read_directory(path: Path, split: str) -> Source:
    """A directory saved by ``datasets``, or one with a file a split (``train.jsonl``)."""
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
            return _of(_read_file(file), name=str(file))
    held = ", ".join(sorted(entry.name for entry in path.iterdir())[:12]) or "nothing"
    raise ValueError(
        f"the directory was not saved by datasets and has no {split}{{{','.join(READERS)}}}; it holds {held}"
    )


def _call(config: DatasetConfig, *, split: str, section: str, tokenizer: Any) -> Source:
    """The user's own function, called with those of our arguments that it names.

    ``rank`` and ``world_size`` are 0 and 1: the function gives all rows, the loader deals them out to the ranks.
    """
    function = load_object(config.path, field=f"{section}.path")
    if not callable(function):
        raise ValueError(f"it is {type(function).__name__}, not a function")
    ours = {"split": split, "rank": 0, "world_size": 1, "tokenizer": tokenizer, "config": config}
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        arguments = ours
    else:
        arguments = {name: value for name, value in ours.items() if name in {p.name for p in parameters}}
    wanted = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name not in ours
    ]
    if wanted:
        raise ValueError(f"the function wants {', '.join(wanted)}; it can have: {', '.join(ours)}")
    return _of(function(**arguments), name=f"{config.path}(split={split!r})", own=True)


def _from_hub(config: DatasetConfig, split: str) -> Source:
    import datasets

    name = config.name or ("main" if config.path.split("/")[-1] == "gsm8k" else None)
    try:
        rows = datasets.load_dataset(path=config.path, name=name, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"there is no such file here, and the hub has no such data set, or cannot be reached ({reason})"
        ) from error
    return _of(rows, name=f"{config.path} ({name + ', ' if name else ''}{split})")
