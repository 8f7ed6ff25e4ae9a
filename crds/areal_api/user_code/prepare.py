"""``python -m areal_api.user_code.prepare SPEC INTO --layers DIR``: makes a user's code ready for the trainer.

SPEC is ``spec.code`` as JSON. INTO gets ``source``, the code, and ``packages``, a link to the layer of packages. The
init container of the trainer's pods and ``grpo`` run it. Exit status 2 and one line that begins with ``error:`` say
that the code cannot be used, 1 that another attempt may succeed.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
from pathlib import Path
from typing import NoReturn

from areal_api import names
from areal_api.code import PACKAGES, SOURCE, CodeSpec
from areal_api.termination import failed
from areal_api.user_code import archive, git
from areal_api.user_code.folder import CodeError
from areal_api.user_code.requirements import install

FETCH_S = 300
INSTALL_S = 1800
MAX_MEMORY_BYTES = 8 * 2**30  # address space: an object of a few kilobytes may claim to be terabytes long


def prepare(code: CodeSpec, into: Path, *, layers: Path, archive_file: Path | None) -> None:
    """Prepare ``into``; what exists there is complete. Raises ``CodeError``, or ``OSError`` for what may pass."""
    into.mkdir(parents=True, exist_ok=True)
    source = into / SOURCE
    if code.has_source and not source.is_dir():
        _with_deadline(FETCH_S, "the code cannot be fetched")
        _fetch(code, source, archive_file=archive_file)
    if not code.needs_packages:
        return
    _with_deadline(INSTALL_S + 60, "the packages of code.requirements cannot be installed")
    file = None if code.requirements_file is None else source / code.requirements_file
    if file is not None and not file.resolve().is_relative_to(source.resolve()):
        raise CodeError(f"code.requirementsFile: {code.requirements_file} leads out of the code; give another file")
    layer = install(code.requirements, file, layers=layers, environ=os.environ, timeout_s=INSTALL_S)
    link = into / f"{PACKAGES}.{os.getpid()}"
    link.symlink_to(layer)
    link.replace(into / PACKAGES)


def _fetch(code: CodeSpec, source: Path, *, archive_file: Path | None) -> None:
    if code.git is not None:
        git.fetch(
            code.git, source, username=os.environ.get(names.GIT_USERNAME), password=os.environ.get(names.GIT_PASSWORD)
        )
        return
    assert code.archive is not None, "grpo packs code.directory"
    assert archive_file is not None, "an archive has a file"
    try:
        with archive_file.open("rb") as file:
            archive.unpack(file, source, sha256=code.archive.sha256)
    except FileNotFoundError as error:
        raise CodeError(f"code.archive: ConfigMap {code.archive.config_map} has no key {archive_file.name}") from error


def _with_deadline(seconds: int, what: str) -> None:
    """End with an error after ``seconds``; replaces an earlier deadline."""

    def expired(number: int, frame: object) -> NoReturn:
        raise TimeoutError(f"{what} within {seconds} s")

    signal.signal(signal.SIGALRM, expired)
    signal.alarm(seconds)


def main(argv: list[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec")
    parser.add_argument("into", type=Path)
    parser.add_argument("--layers", type=Path, required=True, help="folder of the layers of packages")
    parser.add_argument("--archive", type=Path, help="file that grpo packed")
    given = parser.parse_args(argv)
    _, limit = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, limit))
    try:
        code = CodeSpec.model_validate_json(given.spec)
        prepare(code, given.into, layers=given.layers, archive_file=given.archive)
    except (ValueError, MemoryError) as error:
        return failed(error, final=True)
    except OSError as error:
        return failed(error, final=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
