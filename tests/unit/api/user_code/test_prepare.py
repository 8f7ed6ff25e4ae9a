"""The program of the init container, as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from areal_api import names
from areal_api.code import CodeSpec
from areal_api.user_code.archive import pack


def prepare(code: CodeSpec, tmp_path: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit status, last line of the output, termination message."""
    log = tmp_path / "termination"
    spec = code.model_dump_json(by_alias=True, exclude_defaults=True)
    command = [sys.executable, "-m", "areal_api.user_code.prepare", spec, str(tmp_path / "into"), *arguments]
    done = subprocess.run(
        [*command, "--layers", str(tmp_path / "layers")],
        env={**os.environ, names.TERMINATION_LOG: str(log)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr.strip(), log.read_text() if log.exists() else ""


def archived(folder: Path, **more: object) -> tuple[CodeSpec, Path]:
    packed = pack(folder)
    file = folder.parent / "code.tar.gz"
    file.write_bytes(packed.data)
    return CodeSpec.model_validate({"archive": {"configMap": "c", "sha256": packed.sha256}, **more}), file


def test_an_archive_becomes_the_source_and_is_not_unpacked_twice(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "reward.py").write_text("x = 1")
    code, file = archived(tmp_path / "code")
    assert prepare(code, tmp_path, "--archive", str(file)) == (0, "", "")
    assert (tmp_path / "into" / "source" / "reward.py").read_text() == "x = 1"
    file.unlink()
    assert prepare(code, tmp_path, "--archive", str(file))[0] == 0  # a restarted container


def test_errors_of_the_user_end_with_2_and_say_so_to_the_operator(tmp_path: Path) -> None:
    code = CodeSpec.model_validate({"archive": {"configMap": "code-of-a", "sha256": "0" * 64}})
    status, line, message = prepare(code, tmp_path, "--archive", str(tmp_path / "code.tar.gz"))
    assert (status, line) == (2, "error: code.archive: ConfigMap code-of-a has no key code.tar.gz")
    assert message == line


def test_errors_that_may_pass_end_with_1(tmp_path: Path) -> None:
    code = CodeSpec.model_validate({"git": {"url": "http://127.0.0.1:9/a", "commit": "1" * 40}})
    status, line, message = prepare(code, tmp_path)
    assert status == 1
    assert "code.git.url: http://127.0.0.1:9/a cannot be reached" in message
    assert line.endswith(message)
