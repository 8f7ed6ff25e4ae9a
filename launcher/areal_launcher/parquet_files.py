"""Reads the trainer's Parquet files with bounds: a run directory may hold anything."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from areal_api.rollout_columns import Column
from areal_launcher.bounded_files import DamagedFileError, opened

MAX_FILE_BYTES = 2**30
MAX_ROWS = 100_000  # of a file
MAX_TEXT_BYTES = 512 * 2**20  # of the columns that are read as rows, uncompressed
MAX_VALUES = 64 * 2**20  # of a column of a row group


@contextmanager
def open_parquet(path: Path, columns: Sequence[Column]) -> Iterator[pq.ParquetFile]:
    """Open a file that has ``columns`` and whose sizes are within bounds.

    Raises ``FileNotFoundError``, and ``DamagedFileError`` for any other file.
    """
    with opened(path) as raw:
        if os.fstat(raw.fileno()).st_size > MAX_FILE_BYTES:
            raise DamagedFileError(f"{path} has more than {MAX_FILE_BYTES} bytes; it is not read")
        try:
            file = pq.ParquetFile(raw)
            _check(path, file, columns)
            yield file
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DamagedFileError(f"{path} is damaged: {_first_line(error)}; delete it") from error


def rows_of(
    path: Path, columns: Sequence[Column], *, read: Collection[str], optional: Collection[str] = ()
) -> Iterator[dict[str, Any]]:
    """The rows of a file with ``columns``, with the columns ``read`` only; values of ``optional`` may be null.

    Raises ``FileNotFoundError`` and ``DamagedFileError`` if they cannot be read.
    """
    with open_parquet(path, columns) as file:
        size = sum(_column_bytes(file.metadata.row_group(index), read) for index in range(file.num_row_groups))
        if size > MAX_TEXT_BYTES:
            raise DamagedFileError(f"{path} has {size} bytes of text, more than the {MAX_TEXT_BYTES} that are read")
        for index in range(file.num_row_groups):
            for row in file.read_row_group(index, columns=list(read), use_threads=False).to_pylist():
                if any(value is None and name not in optional for name, value in row.items()):
                    raise DamagedFileError(f"{path} is damaged: a sample lacks a value; delete it")
                yield row


def _column_bytes(group: Any, read: Collection[str]) -> int:
    columns = (group.column(index) for index in range(group.num_columns))
    return sum(column.total_uncompressed_size for column in columns if column.path_in_schema in read)


def _check(path: Path, file: pq.ParquetFile, columns: Sequence[Column]) -> None:
    types = {field.name: str(field.type) for field in file.schema_arrow}
    missing = [column.name for column in columns if types.get(column.name) != _type(column.type)]
    if missing:
        raise DamagedFileError(
            f"{path} was not written by this version: its columns {', '.join(missing)} are absent or of another type"
        )
    groups: Sequence[Any] = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
    values = max((group.column(at).num_values for group in groups for at in range(group.num_columns)), default=0)
    if file.metadata.num_rows > MAX_ROWS or values > MAX_VALUES:
        raise DamagedFileError(f"{path} has more than {MAX_ROWS} samples or {MAX_VALUES} values; it is not read")


def _type(name: str) -> str:
    """How Arrow prints the type of a column that was read from Parquet."""
    names_of_types = {"float32": "float", "float64": "double"}
    if name.startswith("list<"):
        return f"list<element: {_type(name.removeprefix('list<').removesuffix('>'))}>"
    return names_of_types.get(name, name)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
