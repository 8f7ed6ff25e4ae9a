"""Fetching a commit from a real Git server (git http-backend)."""

from __future__ import annotations

import base64
import http.server
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from areal_api.code import GitCode
from areal_api.user_code import git
from areal_api.user_code.folder import CodeError

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
IDENTITY = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}


def run_git(folder: Path, *arguments: str) -> str:
    env = {**os.environ, **IDENTITY, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(["git", *arguments], cwd=folder, env=env, check=True, capture_output=True, text=True)
    return done.stdout.strip()


class Server:
    """A repository behind HTTP."""

    def __init__(self, folder: Path) -> None:
        self.work = folder / "checkout"
        self.work.mkdir()
        run_git(self.work, "init", "--quiet", "--initial-branch=main")
        self.password: str | None = None
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(b"")

            def do_POST(self) -> None:
                self._answer(self.rfile.read(int(self.headers["Content-Length"])))

            def _answer(self, body: bytes) -> None:
                wanted = outer.password and "Basic " + base64.b64encode(f"user:{outer.password}".encode()).decode()
                if wanted and self.headers.get("Authorization") != wanted:
                    self.send_response(401)
                    self.send_header("WWW-Authenticate", "Basic realm=git")
                    self.end_headers()
                    return
                path, _, query = self.path.partition("?")
                env: dict[str, Any] = {
                    **os.environ,
                    "GIT_PROJECT_ROOT": str(folder),
                    "GIT_HTTP_EXPORT_ALL": "1",
                    "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                    "PATH_INFO": path,
                    "QUERY_STRING": query,
                    "REQUEST_METHOD": self.command,
                    "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                    "CONTENT_LENGTH": str(len(body)),
                    "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                }
                done = subprocess.run(["git", "http-backend"], input=body, env=env, capture_output=True, check=False)
                head, _, content = done.stdout.partition(b"\r\n\r\n")
                headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
                self.send_response(int(headers.pop("Status", "200").split()[0]))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/checkout/.git"

    def commit(self) -> str:
        run_git(self.work, "add", "--all")
        run_git(self.work, "commit", "--quiet", "--message=m")
        return run_git(self.work, "rev-parse", "HEAD")

    def code(self, commit: str, **more: Any) -> GitCode:
        return GitCode.model_validate({"url": self.url, "commit": commit, **more})

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.close()


def test_the_files_of_the_commit_are_fetched_and_not_those_of_the_branch(server: Server, tmp_path: Path) -> None:
    (server.work / "package").mkdir()
    (server.work / "package" / "reward.py").write_text("x = 1\n")
    (server.work / "run.sh").write_text("#!/bin/sh\n")
    (server.work / "run.sh").chmod(0o755)
    (server.work / "link").symlink_to("package/reward.py")
    first = server.commit()
    (server.work / "package" / "reward.py").write_text("x = 2\n")
    server.commit()
    git.fetch(server.code(first), tmp_path / "out")
    assert (tmp_path / "out" / "package" / "reward.py").read_text() == "x = 1\n"
    assert (tmp_path / "out" / "link").read_text() == "x = 1\n"
    assert os.access(tmp_path / "out" / "run.sh", os.X_OK)
    git.fetch(server.code(first, path="package"), tmp_path / "part")
    assert [path.name for path in (tmp_path / "part").iterdir()] == ["reward.py"]


def test_a_commit_or_folder_that_is_not_there_is_named(server: Server, tmp_path: Path) -> None:
    (server.work / "a").write_text("1")
    commit = server.commit()
    with pytest.raises(CodeError, match=r"code\.git\.commit: .*does not send commit 0000"):
        git.fetch(server.code("0" * 39 + "1"), tmp_path / "out")
    with pytest.raises(CodeError, match=r"code\.git\.path: .* has no folder src"):
        git.fetch(server.code(commit, path="src"), tmp_path / "out")
    with pytest.raises(CodeError, match=r"code\.git\.path"):
        git.fetch(server.code(commit, path="a"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_repository_that_cannot_be_reached_is_named(server: Server, tmp_path: Path) -> None:
    other = GitCode.model_validate({"url": server.url.replace("/checkout/", "/none/"), "commit": "0" * 40})
    with pytest.raises(CodeError, match=r"code\.git\.url: there is no Git repository"):
        git.fetch(other, tmp_path / "out")
    closed = GitCode.model_validate({"url": "http://127.0.0.1:9/a", "commit": "0" * 40})
    with pytest.raises(ConnectionError, match=r"code\.git\.url: .* cannot be reached"):
        git.fetch(closed, tmp_path / "out")


def test_credentials_are_used_and_asked_for(server: Server, tmp_path: Path) -> None:
    (server.work / "a").write_text("1")
    commit = server.commit()
    server.password = "secret"
    with pytest.raises(CodeError, match="AREAL_GIT_USERNAME"):
        git.fetch(server.code(commit), tmp_path / "out")
    git.fetch(server.code(commit), tmp_path / "out", username="user", password="secret")
    assert (tmp_path / "out" / "a").read_text() == "1"


def test_a_commit_that_is_too_large_is_refused(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (server.work / "noise").write_bytes(os.urandom(2**17))
    commit = server.commit()
    monkeypatch.setattr(git, "MAX_PACK_BYTES", 2**16)
    with pytest.raises(CodeError, match="more than 65536 bytes, compressed"):
        git.fetch(server.code(commit), tmp_path / "out")


@pytest.mark.parametrize("target", ["/etc/passwd", "../../outside", "a/../../b"])
def test_a_link_out_of_the_repository_is_refused(server: Server, tmp_path: Path, target: str) -> None:
    (server.work / "link").symlink_to(target)
    with pytest.raises(CodeError, match="the symbolic link 'link' points outside"):
        git.fetch(server.code(server.commit()), tmp_path / "out")


def test_links_that_lead_out_together_are_refused(server: Server, tmp_path: Path) -> None:
    (server.work / "d" / "e").mkdir(parents=True)
    (server.work / "d" / "e" / "file").write_text("1")
    (server.work / "up").symlink_to("d/e")
    (server.work / "d" / "out").symlink_to("../up/../../..")
    with pytest.raises(CodeError, match="symbolic link"):
        git.fetch(server.code(server.commit()), tmp_path / "deep")
