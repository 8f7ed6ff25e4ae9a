"""One commit of a Git repository over HTTP, without git: no hook, filter, submodule or configuration of anyone runs.

The server is not trusted. What it sends is bounded in size, and object IDs are computed from the content, so the files
are those of the commit's SHA-1 or none are written.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from areal_api import names
from areal_api.code import GitCode
from areal_api.user_code.folder import MAX_BYTES, MAX_DEPTH, BoundedFolder, CodeError

if TYPE_CHECKING:
    from dulwich.object_store import DiskObjectStore
    from dulwich.objects import Tree
    from dulwich.repo import Repo

KEY = "code.git"
MAX_PACK_BYTES = MAX_BYTES
SUBMODULE = 0o160000
CONNECT_S = 30.0  # to connect, and between two parts of an answer


def fetch(code: GitCode, into: Path, *, username: str | None = None, password: str | None = None) -> None:
    """Fetch the commit and write its files to ``into``, which appears complete or not at all.

    Submodules are left out, and files of Git LFS are their pointers. Raises ``CodeError``.
    """
    from dulwich.objects import Commit, ObjectID, Tree  # here: only processes that fetch need dulwich
    from dulwich.repo import Repo

    with tempfile.TemporaryDirectory(dir=into.parent) as scratch, Repo.init_bare(scratch) as repository:
        store = repository.object_store
        _download(code, repository, username=username, password=password)
        try:
            commit = store[ObjectID(code.commit.encode())]
        except KeyError as error:
            raise CodeError(
                f"{KEY}.commit: {code.url} sent no commit {code.commit}; push it, and give its full SHA-1"
            ) from error
        if not isinstance(commit, Commit):
            raise CodeError(f"{KEY}.commit: {code.commit} of {code.url} is no commit; give the full SHA-1 of one")
        tree = store[commit.tree]
        for part in code.path.split("/") if code.path else ():
            entry = tree[part.encode()] if isinstance(tree, Tree) and part.encode() in tree else None
            if entry is None or not stat.S_ISDIR(entry[0]):
                raise CodeError(f"{KEY}.path: commit {code.commit} has no folder {code.path}; correct the path")
            tree = store[entry[1]]
        partial = into.with_name(f"{into.name}.partial-{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        folder = BoundedFolder(partial, what=KEY)
        assert isinstance(tree, Tree)
        _add_tree(store, tree, folder, prefix="", depth=0)
        folder.close()
        partial.rename(into)


def _download(code: GitCode, repository: Repo, *, username: str | None, password: str | None) -> None:
    """Store the pack that the server sends for the commit, without its parents."""
    from dulwich.client import HttpGitClient
    from dulwich.config import ConfigDict
    from dulwich.objects import ObjectID

    parts = urlsplit(code.url)
    base = f"{parts.scheme}://{parts.netloc}"
    client = HttpGitClient(
        base, username=username, password=password, timeout=CONNECT_S, config=ConfigDict(), thin_packs=False, quiet=True
    )
    file, commit, abort = repository.object_store.add_pack()
    try:
        client.fetch_pack(
            parts.path,
            lambda refs, depth=None: [ObjectID(code.commit.encode())],
            repository.get_graph_walker(),
            _bounded(file.write),
            depth=1,
        )
        commit()
    except BaseException as error:
        abort()
        raise _explained(error, code) from error


def _explained(error: BaseException, code: GitCode) -> BaseException:
    """The error for the user; ``error`` itself if it is none of the server or its answer."""
    from dulwich.client import HTTPUnauthorized
    from dulwich.errors import GitProtocolError, HangupException, NotGitRepository
    from urllib3.exceptions import HTTPError

    if isinstance(error, CodeError):
        return error
    if isinstance(error, HTTPUnauthorized):
        return CodeError(
            f"{KEY}.url: {code.url} does not accept the credentials; set {names.GIT_USERNAME} and {names.GIT_PASSWORD} "
            "in trainer.env"
        )
    if isinstance(error, NotGitRepository):
        return CodeError(f"{KEY}.url: there is no Git repository at {code.url}; correct the URL")
    below = error.__cause__ or error.__context__
    if isinstance(error, HTTPError | OSError) or isinstance(below, HTTPError):
        reason = getattr(below, "reason", None) or error
        return ConnectionError(f"{KEY}.url: {code.url} cannot be reached: {_one_line(reason)}")
    if isinstance(error, GitProtocolError | HangupException):
        return CodeError(
            f"{KEY}.commit: {code.url} does not send commit {code.commit} ({_one_line(error)}); push it to the "
            "repository, and give its full SHA-1"
        )
    if isinstance(error, ValueError | AssertionError | LookupError | EOFError):  # of a malformed answer or pack
        return CodeError(f"{KEY}.url: {code.url} sent an answer that cannot be read: {_one_line(error)}")
    return error


def _bounded(write: Callable[[bytes], int]) -> Callable[[bytes], int]:
    left = MAX_PACK_BYTES

    def bounded(data: bytes) -> int:
        nonlocal left
        left -= len(data)
        if left < 0:
            raise CodeError(
                f"{KEY}: the commit has more than {MAX_PACK_BYTES} bytes, compressed; keep data and models elsewhere"
            )
        return write(data)

    return bounded


def _add_tree(store: DiskObjectStore, tree: Tree, folder: BoundedFolder, *, prefix: str, depth: int) -> None:
    from dulwich.objects import Blob, Tree

    if depth > MAX_DEPTH:
        raise CodeError(f"{KEY}: folders are nested more than {MAX_DEPTH} levels deep; flatten them")
    for entry in tree.items():
        name = f"{prefix}{os.fsdecode(entry.path)}"
        if entry.mode == SUBMODULE:
            continue
        found = store[entry.sha]
        if isinstance(found, Tree):
            _add_tree(store, found, folder, prefix=f"{name}/", depth=depth + 1)
        elif isinstance(found, Blob) and stat.S_ISLNK(entry.mode):
            folder.add_link(name, os.fsdecode(found.data))
        elif isinstance(found, Blob):
            folder.add_file(name, [found.data], executable=bool(entry.mode & 0o100))


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
