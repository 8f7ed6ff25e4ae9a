"""`grpo trace`: the spans of a run as a file that Perfetto shows."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from areal_api import names
from areal_api.tracing import TRACE_SUFFIX
from areal_launcher.bounded_files import DamagedFileError, opened, parse_json
from areal_launcher.run_files import require_run

MAX_LINE_BYTES = 2**16
MAX_FILES = 10_000
MAX_SPANS = 20_000_000
STAGES, EPISODES = 1, 2  # tracks of a rank
TRAINING = "step"  # name of the span of a training step


def trace(run: Path, output: Path | None) -> int:
    """Convert the spans of ``run``; by default into ``trace.json`` in its directory. Prints the file's name."""
    files = span_files(require_run(run))
    if not files:
        raise ValueError(
            f"{run} has no spans: {names.traces_dir(run)} has no *{TRACE_SUFFIX}; tracing.file: true has them written"
        )
    target = output or run / "trace.json"
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            count, damaged = write_events(files, file)
        aside.replace(target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()
    note = f", {damaged} damaged lines are left out" if damaged else ""
    print(f"{target}: {count} spans{note}; open it in https://ui.perfetto.dev")
    return 0


def span_files(run: Path) -> list[Path]:
    """The files of spans of all processes and starts."""
    try:
        found = sorted(path for path in names.traces_dir(run).iterdir() if path.name.endswith(TRACE_SUFFIX))
    except OSError:
        return []
    return found[:MAX_FILES]


def write_events(files: list[Path], file: TextIO) -> tuple[int, int]:
    """Write the spans of ``files`` in Chrome's trace event format; how many, and how many lines are damaged."""
    count = damaged = 0
    ranks: set[int] = set()
    file.write('{"displayTimeUnit": "ms", "traceEvents": [\n')
    separator = ""
    for path in files:
        for span in read_spans(path):
            if span is None or count >= MAX_SPANS:
                damaged += 1
                continue
            ranks.add(span["rank"])
            for event in events_of(span):
                file.write(separator + json.dumps(event))
                separator = ",\n"
            count += 1
    for rank in sorted(ranks):
        label = {"name": "process_name", "ph": "M", "pid": rank, "args": {"name": f"rank {rank}"}}
        file.write(separator + json.dumps(label))
        separator = ",\n"
        for track, name in ((STAGES, "training"), (EPISODES, "episodes")):
            label = {"name": "thread_name", "ph": "M", "pid": rank, "tid": track, "args": {"name": name}}
            file.write(separator + json.dumps(label))
    file.write("\n]}\n")
    return count, damaged


def events_of(span: dict[str, Any]) -> list[dict[str, Any]]:
    """A complete event for a stage of training; begin and end of an asynchronous one for what runs concurrently."""
    arguments = {**span["attributes"], **({"error": span["error"]} if span["error"] else {})}
    common = {"name": span["name"], "pid": span["rank"]}
    begin, end = span["start"] / 1e3, span["end"] / 1e3
    if span["attributes"].get("thread") == "training":
        del arguments["thread"]
        return [{**common, "ph": "X", "tid": STAGES, "ts": begin, "dur": end - begin, "args": arguments}]
    concurrent = {**common, "tid": EPISODES, "cat": "rollout", "id": span["root"]}
    return [
        {**concurrent, "ph": "b", "ts": begin, "args": arguments},
        {**concurrent, "ph": "e", "ts": end},
    ]


def read_spans(path: Path) -> Iterator[dict[str, Any] | None]:
    """The spans in a file that may still grow; None for a damaged line. Unreadable files have none."""
    try:
        with opened(path) as file:
            while line := file.readline(MAX_LINE_BYTES):
                yield span_of(line)
    except (FileNotFoundError, DamagedFileError, OSError):
        yield None


def span_of(line: bytes) -> dict[str, Any] | None:
    """The span in a line, None if it is not one."""
    try:
        found = parse_json(line)
    except ValueError:
        return None
    texts, numbers = ("name", "root"), ("start", "end", "rank")
    whole = (
        isinstance(found, dict)
        and all(isinstance(found.get(key), str) for key in texts)
        and all(type(found.get(key)) is int for key in numbers)
        and isinstance(found.get("attributes"), dict)
        and found["start"] <= found["end"]
    )
    return {**found, "error": found.get("error")} if whole else None
