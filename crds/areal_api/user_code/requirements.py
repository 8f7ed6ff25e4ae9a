"""A layer of packages beside an environment: what the requirements need and the environment lacks.

pip resolves with every installed package pinned to its version, so the layer never replaces one: requirements that need
another version of torch, for example, are refused. Layers are named by the digest of what they were made from, and are
used again by later attempts and by other runs under the same root.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from areal_api.user_code.folder import CodeError

MAX_FILE_BYTES = 256 * 1024  # of requirements.txt
MAX_REPORT_BYTES = 64 * 2**20
MAX_OUTPUT_BYTES = 65_536  # of pip, that are read for an explanation
MAX_SHOWN = 600  # characters of pip's explanation
PIP_ENV = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def install(
    requirements: Sequence[str], file: Path | None, *, layers: Path, environ: Mapping[str, str], timeout_s: float
) -> Path:
    """The folder of the layer below ``layers``, which is created unless it exists. Raises ``CodeError``.

    ``file`` is a requirements.txt. ``environ`` configures pip (PIP_INDEX_URL, …). Several processes may install the
    same layer at a time: the first to finish names it.
    """
    lines = [*requirements, *(_lines(file) if file is not None else ())]
    installed = _installed()
    layer = layers / _digest(lines, installed)
    if layer.is_dir():
        return layer
    layers.mkdir(parents=True, exist_ok=True)
    scratch = layers / f".{layer.name}.{os.getpid()}.{os.uname().nodename}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        (scratch / "requirements.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (scratch / "installed.txt").write_text("\n".join(installed) + "\n", encoding="utf-8")
        env = {**environ, **PIP_ENV, "PIP_CACHE_DIR": str(scratch / "cache"), "TMPDIR": str(scratch)}
        missing = _missing(scratch, env, timeout_s)
        content = scratch / "content"
        content.mkdir()
        if missing:
            _pip(["install", "--no-deps", "--target", str(content), *missing], env, timeout_s)
        try:
            content.rename(layer)
        except OSError:
            if not layer.is_dir():  # otherwise another process was quicker
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return layer


def _missing(scratch: Path, env: Mapping[str, str], timeout_s: float) -> list[str]:
    """The distributions to install, each as ``name @ URL``."""
    report = scratch / "report.json"
    requirements, installed = str(scratch / "requirements.txt"), str(scratch / "installed.txt")
    _pip(
        ["install", "--dry-run", "--report", str(report), "--requirement", requirements, "--constraint", installed],
        env,
        timeout_s,
    )
    if report.stat().st_size > MAX_REPORT_BYTES:
        raise CodeError(f"code.requirements: pip's report has more than {MAX_REPORT_BYTES} bytes; require less")
    found = json.loads(report.read_text(encoding="utf-8"))["install"]
    return [_requirement(one) for one in found]


def _requirement(one: dict[str, Any]) -> str:
    name, version = one["metadata"]["name"], one["metadata"]["version"]
    return f"{name} @ {one['download_info']['url']}" if one.get("is_direct") else f"{name}=={version}"


def _pip(arguments: Sequence[str], env: Mapping[str, str], timeout_s: float) -> None:
    with tempfile.TemporaryFile() as output:
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pip", *arguments, "--progress-bar", "off"],
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise CodeError(f"code.requirements: pip took longer than {timeout_s:.0f} s; require less") from error
        if done.returncode:
            output.seek(max(0, output.tell() - MAX_OUTPUT_BYTES))
            text = _explanation(output.read().decode(errors="replace"))
            raise CodeError(f"code.requirements cannot be installed: {text}")


def _explanation(output: str) -> str:
    """pip's errors and, for a conflict, the requirements that cause it."""
    lines = output.splitlines()
    start = next((index for index, line in enumerate(lines) if line.startswith("The conflict is caused by")), None)
    if start is not None:
        shown = list(itertools.takewhile(str.strip, lines[start + 1 :]))
        text = "; ".join(line.strip() for line in shown)
        text = text.replace("The user requested (constraint)", "the environment of the trainer has")
    else:
        text = " ".join(line.removeprefix("ERROR:") for line in lines if line.startswith("ERROR:")) or "pip failed"
    return " ".join(text.split())[:MAX_SHOWN]


def _lines(file: Path) -> list[str]:
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise CodeError(f"code.requirementsFile: {file.name} has more than {MAX_FILE_BYTES} bytes; shorten it")
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CodeError(f"code.requirementsFile: {file.name} of the code cannot be read: {error}") from error


def _installed() -> list[str]:
    """``name==version`` of every installed distribution. Local versions match whatever build an index has."""
    found = {(dist.metadata["Name"] or "").lower().replace("_", "-"): dist.version for dist in metadata.distributions()}
    return [f"{name}=={version}" for name, version in sorted(found.items()) if name]


def _digest(lines: Sequence[str], installed: Sequence[str]) -> str:
    parts = [list(lines), list(installed), sys.version, os.uname().machine]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]
