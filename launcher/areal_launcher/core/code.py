"""Prepares ``spec.code`` in the run directory, by the program that also runs in pods, before any process starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from areal_api import names
from areal_api.code import CodeArchive, CodeSpec, digest_of
from areal_api.commands import CodePaths, literal_env
from areal_api.experiment import ExperimentSpec
from areal_api.user_code.archive import pack
from areal_api.user_code.prepare import FETCH_S, INSTALL_S
from areal_launcher.errors import RunError

MODULE = "areal_api.user_code.prepare"
LAYERS = ".packages"  # below cluster.fileroot: other runs install nothing again
GRACE_S = 60.0  # after the program's own deadlines


def prepared_code(spec: ExperimentSpec, run: Path) -> CodePaths | None:
    """A copy of the code below ``run``, and its packages; None without code. The caller has claimed the run directory.

    Raises ``ValueError`` for code that cannot be used, ``RunError`` if another attempt may succeed.
    """
    code, folder = spec.code, names.code_dir(run).absolute()
    if not code.is_used:
        return None
    arguments: list[str] = []
    if code.directory is not None:
        packed = pack(Path(code.directory))
        into = folder / packed.sha256[:16]
        into.mkdir(parents=True, exist_ok=True)
        file = into / "archive.tar.gz"
        file.write_bytes(packed.data)
        archive = CodeArchive(sha256=packed.sha256, configMap=None)
        code = code.model_copy(update={"directory": None, "archive": archive})
        arguments = ["--archive", str(file)]
    else:
        into = folder / digest_of([code.git.model_dump_json() if code.git is not None else ""])[:16]
    _prepare(code, into, arguments, spec)
    for earlier in folder.iterdir():
        if earlier != into:
            shutil.rmtree(earlier, ignore_errors=True)
    return CodePaths.below(into, code)


def _prepare(code: CodeSpec, into: Path, arguments: list[str], spec: ExperimentSpec) -> None:
    python = os.environ.get(names.TRAINER_PYTHON) or sys.executable
    text = code.model_dump_json(by_alias=True, exclude_defaults=True)
    layers = Path(spec.config.cluster.fileroot).absolute() / LAYERS
    command = [python, "-m", MODULE, text, str(into), "--layers", str(layers), *arguments]
    done = subprocess.run(
        command,
        env={**os.environ, **literal_env(spec.trainer.env)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=FETCH_S + 2 * INSTALL_S + GRACE_S,
        check=False,
    )
    if done.returncode == 0:
        return
    line = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
    if done.returncode == 2:
        raise ValueError(line.removeprefix("error: "))
    raise RunError(line.removeprefix("OSError: "))
