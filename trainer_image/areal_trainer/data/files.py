"""Reads rows from JSON lines, JSON, CSV and parquet files without changing their text.

Errors name the file and the row. Text files must be UTF-8, with or without a byte order mark.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

Row = dict[str, Any]

MAX_ROW_BYTES = 16 * 2**20
MAX_TEXT_FILE_BYTES = 4 * 2**30  # text files are held in memory; parquet files and saved datasets are memory-mapped
_OTHER_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Table:
    """Rows of a file and, where rows are not numbered from 1, the number of each for error messages."""

    rows: Any  # a list of dictionaries or a datasets.Dataset
    unit: str = "row"
    numbers: Sequence[int] | None = None

    def row_name(self, index: int) -> str:
        """Such as ``line 7`` or ``row 7``."""
        return f"{self.unit} {self.numbers[index] if self.numbers is not None else index + 1}"


def read_file(path: Path) -> Table:
    """The rows of ``path``. Raises ``ValueError`` with the reason if they cannot be read."""
    if path.suffix not in READERS:
        raise ValueError(f"files of type {path.suffix or '(none)'} are not supported; use one of {', '.join(READERS)}")
    if path.suffix != ".parquet" and (size := path.stat().st_size) > MAX_TEXT_FILE_BYTES:
        raise ValueError(
            f"{path} has {size:,} bytes; text files may have at most {MAX_TEXT_FILE_BYTES:,}; save it as .parquet"
        )
    try:
        return READERS[path.suffix](path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error


def _read_jsonl(path: Path) -> Table:
    rows: list[Row] = []
    numbers: list[int] = []
    with path.open("rb") as file:
        for number, line in enumerate(_lines(file, path), start=1):
            text = _decoded(line, f"line {number} of {path}")
            if not text.strip():
                continue
            row = _parsed_json(text, f"line {number} of {path}")
            if not isinstance(row, dict):
                raise ValueError(f"line {number} of {path} is {type(row).__name__}, not an object")
            rows.append(row)
            numbers.append(number)
    return Table(rows, "line", numbers)


def _lines(file: io.BufferedReader, path: Path) -> Iterator[bytes]:
    """The lines of ``file`` without a byte order mark; each at most ``MAX_ROW_BYTES`` long."""
    first = file.peek(4)[:4]
    _refuse_other_encodings(first, path)
    if first.startswith(codecs.BOM_UTF8):
        file.read(len(codecs.BOM_UTF8))
    number = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            raise ValueError(f"line {number} of {path} is longer than {MAX_ROW_BYTES:,} bytes")
        yield line


def _read_json(path: Path) -> Table:
    data = path.read_bytes()
    _refuse_other_encodings(data, path)
    text = _decoded(data.removeprefix(codecs.BOM_UTF8), str(path))
    if _starts_with_an_object_per_line(text):  # many datasets name JSON lines .json
        return _read_jsonl(path)
    value = _parsed_json(text, str(path))
    if isinstance(value, dict) and len(value) == 1 and isinstance(next(iter(value.values())), list):
        value = next(iter(value.values()))
    if not isinstance(value, list):
        raise ValueError(f"{path} contains {type(value).__name__}, not a list of objects")
    for number, row in enumerate(value, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} of {path} is {type(row).__name__}, not an object")
    return Table(value)


def _starts_with_an_object_per_line(text: str) -> bool:
    """Whether the first nonempty line is a row, as in JSON lines, and not the whole ``{"data": […]}``."""
    first = next((line for line in io.StringIO(text) if line.strip()), "")
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and not (len(row) == 1 and isinstance(next(iter(row.values())), list))


def _parsed_json(text: str, name: str) -> Any:
    """The JSON value of ``text``. Refuses duplicate keys, non-finite numbers and unpaired surrogates."""

    def finite(digits: str) -> float:
        if not math.isfinite(value := float(digits)):
            raise ValueError(f"{digits} is out of range")
        return value

    def constant(spelling: str) -> NoReturn:
        raise ValueError(f"{spelling} is not a JSON value; use null")

    def unique(pairs: list[tuple[str, Any]]) -> Row:
        row = dict(pairs)
        if len(row) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise ValueError(f"key {twice!r} occurs twice")
        return row

    try:
        value = json.loads(text, parse_float=finite, parse_constant=constant, object_pairs_hook=unique)
        if r"\ud" in text or r"\uD" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} contains an unpaired surrogate such as \\ud800, which is not text") from error
    except RecursionError as error:
        raise ValueError(f"{name} is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{name} is not valid JSON: {error}") from error


def _read_csv(path: Path) -> Table:
    """Every cell is text: ``007`` stays ``007`` and an empty cell is the empty string."""
    numbers: list[int] = []
    rows: list[Row] = []
    limit = csv.field_size_limit(MAX_ROW_BYTES)
    try:
        with path.open("rb") as file:
            first = file.peek(4)[:4]
            _refuse_other_encodings(first, path)
            file.read(len(codecs.BOM_UTF8) if first.startswith(codecs.BOM_UTF8) else 0)
            reader = csv.reader(io.TextIOWrapper(file, encoding="utf-8", newline=""), strict=True)
            header = _header(next(reader, []), path)
            for cells in reader:
                if not cells:
                    continue  # a blank line
                number = len(rows) + 1
                if len(cells) != len(header):
                    raise ValueError(
                        f"row {number} of {path} (ends in line {reader.line_num}) has {len(cells)} cells, the header "
                        f"has {len(header)}; quote cells that contain commas or line breaks"
                    )
                if sum(map(len, cells)) > MAX_ROW_BYTES:
                    raise ValueError(f"row {number} of {path} is longer than {MAX_ROW_BYTES:,} bytes")
                rows.append(dict(zip(header, cells, strict=True)))
                numbers.append(number)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (near row {len(rows) + 1}); save it as UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"row {len(rows) + 1} of {path} is not valid CSV: {error}") from error
    finally:
        csv.field_size_limit(limit)
    return Table(rows, "row", numbers)


def _header(names: list[str], path: Path) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1}) if len(names) <= 10_000 else ["(too many)"]
    if twice:
        raise ValueError(f"{path} has several columns named {', '.join(map(repr, twice))}; column names must be unique")
    return names


def _read_parquet(path: Path) -> Table:
    import datasets
    import pyarrow
    import pyarrow.parquet

    try:
        return Table(datasets.Dataset(pyarrow.parquet.read_table(path, memory_map=True)))
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is not a parquet file: {error}") from error


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is not UTF-8: byte 0x{data[error.start]:02x} at position {error.start}; save it as UTF-8"
        ) from error


def _refuse_other_encodings(start: bytes, path: Path) -> None:
    if start.startswith(_OTHER_MARKS):
        raise ValueError(f"{path} is encoded in UTF-16 or UTF-32; save it as UTF-8")


READERS: dict[str, Callable[[Path], Table]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}
