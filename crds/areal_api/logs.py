"""Log lines for people or, with ``AREAL_LOG_FORMAT=json``, as one JSON object a line for what collects them."""

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

    Takes and ignores a format, so that it can stand in where libraries set one.
    """

    def __init__(self, fmt: str | None = None, datefmt: str | None = None) -> None:
        super().__init__()
        self._rank = os.environ.get("RANK")

    def format(self, record: logging.LogRecord) -> str:
        """A line without line breaks."""
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


def wants_json(environ: Mapping[str, str]) -> bool:
    """Whether log lines are to be JSON; ``ValueError`` for a format that there is not."""
    chosen = environ.get(names.LOG_FORMAT) or "text"
    if chosen not in ("text", "json"):
        raise ValueError(f"{names.LOG_FORMAT} is {chosen!r}; set it to text or json")
    return chosen == "json"


def set_up(*, level: int = logging.INFO, text_format: str = TEXT_FORMAT) -> None:
    """Have this process log to standard error, as the environment says. ``ValueError`` as ``wants_json``.

    Python's warnings become log lines where those are JSON.
    """
    as_json = wants_json(os.environ)
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if as_json else logging.Formatter(text_format))
    logging.basicConfig(level=level, handlers=[handler])
    if as_json:
        logging.captureWarnings(True)
