"""Files keep their text, and errors name the file and the row."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from areal_trainer.data import files
from areal_trainer.data.files import read_file

SUFFIXES = [".jsonl", ".json", ".parquet", ".csv"]


def save(path: Path, rows: list[dict[str, str]], *, mark: bytes = b"") -> Path:
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
        return path
    if path.suffix == ".csv":
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        text = buffer.getvalue()
    else:
        text = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(mark + text.encode())
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_text_that_looks_like_another_type_stays_text(tmp_path: Path, suffix: str) -> None:
    cells = [
        "007",
        "1e5",
        "true",
        "null",
        "NA",
        "NaN",
        "",
        "2024-01-01",
        " 5 ",
        "1,000",
        "0x10",
        "é",
        "日本",
        '"q"',
        "a\nb",
    ]
    rows = [{"question": cell, "answer": "x" + cell} for cell in cells]
    assert list(read_file(save(tmp_path / f"rows{suffix}", rows)).rows) == rows


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_byte_order_mark_is_ignored(tmp_path: Path, suffix: str) -> None:
    rows = [{"question": "q", "answer": "1"}]
    assert list(read_file(save(tmp_path / f"rows{suffix}", rows, mark=b"\xef\xbb\xbf")).rows) == rows


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1"])
def test_other_encodings_are_rejected(tmp_path: Path, suffix: str, encoding: str) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_text('question,answer\né,"1"\n' if suffix == ".csv" else '{"question": "é"}\n', encoding=encoding)
    with pytest.raises(ValueError, match="save it as UTF-8"):
        read_file(path)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.jsonl", '{"q": 1}\n\n{"q": NaN}', "line 3 of .*NaN is not a JSON value"),
        ("b.jsonl", '{"q": 1}\n{"q": 1e999}', "line 2 of .*1e999 is out of range"),
        ("c.jsonl", '{"q": -Infinity}', "line 1 of .*-Infinity"),
        ("d.jsonl", '{"q": 1, "q": 2}', "line 1 of .*key 'q' occurs twice"),
        ("e.jsonl", '{"q": "\\ud800"}', "line 1 of .*unpaired surrogate"),
        ("f.jsonl", '{"q": ' + "[" * 100_000, "line 1 of .*nested too deeply"),
        ("g.jsonl", '{"q": ' + "9" * 5000 + "}", "line 1 of .*is not valid JSON"),
        ("h.jsonl", '{"q": 1}\n{"q": 1}{"q": 2}', "line 2 of .*Extra data"),
        ("i.json", '[{"q": 1}, 5]', "row 2 of .* is int, not an object"),
        ("j.json", "", "is not valid JSON"),
        ("k.json", '{"q": 1}\n{"q": ', "line 2 of"),
        ("l.csv", "q,a\n1,2\n3\n", "row 2 of .* has 1 cells, the header has 2"),
        ("m.csv", "q,a\n1,2,3\n", r"row 1 of .*\(ends in line 2\) has 3 cells"),
        ("n.csv", 'q,a\n1,"2\n', "row 1 of .* is not valid CSV"),
        ("o.csv", "q,q\n1,2\n", "several columns named 'q'"),
        ("p.parquet", "PAR1", "is not a parquet file"),
        ("q.txt", "x", "not supported"),
    ],
)
def test_malformed_file_is_rejected_with_its_location(tmp_path: Path, name: str, data: str, reason: str) -> None:
    (tmp_path / name).write_text(data)
    with pytest.raises(ValueError, match=reason):
        read_file(tmp_path / name)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_size_of_a_row_is_limited(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_ROW_BYTES", 1000)
    rows = [{"question": "a", "answer": "1"}, {"question": "b" * 2000, "answer": "1"}]
    with pytest.raises(ValueError, match=r"(line|row) 2 of"):
        read_file(save(tmp_path / f"rows{suffix}", rows))
    assert csv.field_size_limit() == 131_072


def test_size_of_a_text_file_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "rows.jsonl", [{"question": "a", "answer": "1"}])
    monkeypatch.setattr(files, "MAX_TEXT_FILE_BYTES", 10)
    with pytest.raises(ValueError, match=r"may have at most 10; save it as \.parquet"):
        read_file(path)


def test_unreadable_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "rows.json").symlink_to("rows.json")
    with pytest.raises((ValueError, OSError)):
        read_file(tmp_path / "rows.json")


text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)


@given(rows=st.lists(st.fixed_dictionaries({"question": text, "answer": text}), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_text_is_read_back_unchanged(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    for suffix in (".jsonl", ".json", ".csv"):
        assert list(read_file(save(tmp_path / f"rows{suffix}", rows)).rows) == rows


@given(data=st.binary(max_size=200), suffix=st.sampled_from(SUFFIXES))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_rows_or_an_error_that_names_the_file(tmp_path: Path, data: bytes, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(data)
    rows: Any = None
    message = ""
    try:
        rows = read_file(path).rows
    except ValueError as error:
        message = str(error)
    assert str(path) in message if rows is None else all(isinstance(row, dict) for row in rows)
