"""Logging as text or, with ``AREAL_LOG_FORMAT=json``, as one JSON object per line."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from datetime import UTC, datetime

from areal_api import names

TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JsonFormatter(logging.Formatter):
    """``{"time": …, "level": …, "logger": …, "message": …}``, with ``rank`` under torchrun and ``exception`` of errors.

    Accepts and ignores a format, because libraries pass one.
    """

    def __init__(self, fmt: str | None = None, datefmt: str | None = None) -> None:
        super().__init__()
        self._rank = os.environ.get("RANK")

    def format(self, record: logging.LogRecord) -> str:
        """One line without line breaks."""
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if self._rank is not None:
            fields["rank"] = int(self._rank)
        if record.exc_info and record.exc_info[0] is not None:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def is_json(environ: Mapping[str, str]) -> bool:
    """Whether the log format is JSON. Raises ``ValueError`` for an unknown format."""
    chosen = environ.get(names.LOG_FORMAT) or "text"
    if chosen not in ("text", "json"):
        raise ValueError(f"{names.LOG_FORMAT} is {chosen!r}; set it to text or json")
    return chosen == "json"


def set_up(*, level: int = logging.INFO, text_format: str = TEXT_FORMAT) -> None:
    """Log to standard error in the format of the environment. Raises ``ValueError`` as ``is_json`` does.

    In JSON format Python's warnings are logged too.
    """
    as_json = is_json(os.environ)
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if as_json else logging.Formatter(text_format))
    logging.basicConfig(level=level, handlers=[handler])
    if as_json:
        logging.captureWarnings(True)
