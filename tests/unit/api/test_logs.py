"""Log lines as JSON, and where one asks for them."""

from __future__ import annotations

import json
import logging
import logging.config
import os
import subprocess
import sys

import pytest

from areal_api import logs
from areal_server.launch import JSON_LOGGING


def record(message: str, *args: object, **more: object) -> logging.LogRecord:
    return logging.LogRecord("areal.x", logging.WARNING, "x.py", 1, message, args, None, **more)  # type: ignore[arg-type]


def test_a_line_is_one_json_object_whatever_the_message_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    line = logs.JsonFormatter().format(record('two\nlines, "quotes" and %s', "ä"))
    assert "\n" not in line
    fields = json.loads(line)
    assert (fields["level"], fields["logger"]) == ("WARNING", "areal.x")
    assert fields["message"] == 'two\nlines, "quotes" and ä'
    assert fields["time"].endswith("+00:00")
    assert "rank" not in fields


def test_a_rank_and_an_exception_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    try:
        raise KeyError("gone")
    except KeyError:
        failed = record("it failed")
        failed.exc_info = sys.exc_info()
    fields = json.loads(logs.JsonFormatter().format(failed))
    assert fields["rank"] == 3
    assert "KeyError: 'gone'" in fields["exception"]


def test_another_format_is_refused_with_its_value_and_the_choice() -> None:
    with pytest.raises(ValueError, match="AREAL_LOG_FORMAT is 'xml'; set it to text or json"):
        logs.is_json({"AREAL_LOG_FORMAT": "xml"})
    assert not logs.is_json({})
    assert logs.is_json({"AREAL_LOG_FORMAT": "json"})


@pytest.mark.parametrize("module", ["areal_launcher.cli", "areal_operator", "areal_trainer.train"])
def test_every_process_refuses_a_format_that_there_is_not(module: str) -> None:
    arguments = ["status", "."] if module == "areal_launcher.cli" else []
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, "AREAL_LOG_FORMAT": "xml"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "AREAL_LOG_FORMAT is 'xml'" in done.stderr


def test_what_sglang_is_told_makes_json_lines() -> None:
    # Like SGLang, in a separate process, because it changes the logging of the whole process.
    code = (
        "import json, logging, logging.config, pathlib, sys\n"
        "logging.config.dictConfig(json.loads(pathlib.Path(sys.argv[1]).read_text()))\n"
        "logging.getLogger('sglang.srt').info('ready')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(JSON_LOGGING)], capture_output=True, text=True, check=True)
    assert json.loads(done.stderr)["message"] == "ready"


def test_warnings_are_json_lines_too() -> None:
    code = "import warnings; from areal_api import logs; logs.set_up(); warnings.warn('old', stacklevel=1)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "AREAL_LOG_FORMAT": "json"},
        capture_output=True,
        text=True,
        check=True,
    )
    [line] = done.stderr.splitlines()
    assert "UserWarning: old" in json.loads(line)["message"]
