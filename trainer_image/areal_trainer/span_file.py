"""Spans in a file, for ``grpo trace``."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

logger = logging.getLogger(__name__)


class FileExporter(SpanExporter):
    """Appends spans to a file, a line of JSON for each: see ``as_line``. Loses them if the file cannot be written."""

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self._path = path
        self._left = max_bytes
        self._reported = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write finished spans."""
        data = "".join(json.dumps(as_line(one)) + "\n" for one in spans).encode()
        if len(data) > self._left:
            self._report(f"{self._path} has reached tracing.file_max_bytes; later spans are left out")
            self._left = 0
            return SpanExportResult.FAILURE
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(data)
        except OSError as error:
            self._report(f"spans cannot be written to {self._path}: {error}")
            return SpanExportResult.FAILURE
        self._left -= len(data)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing is open."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is held back."""
        return True

    def _report(self, problem: str) -> None:
        if not self._reported:
            self._reported = True
            logger.warning("%s", problem)


def as_line(one: ReadableSpan) -> dict[str, Any]:
    """A finished span of the SDK: times in ns since the epoch, ``root`` shared by all spans below one."""
    return {
        "name": one.name,
        "start": one.start_time,
        "end": one.end_time,
        "id": f"{one.context.span_id:016x}",
        "parent": f"{one.parent.span_id:016x}" if one.parent is not None else None,
        "root": f"{one.context.trace_id:032x}",
        "rank": one.resource.attributes.get("areal.rank", 0),
        "error": one.status.description or "error" if one.status.status_code.name == "ERROR" else None,
        "attributes": dict(one.attributes or {}),
    }
