"""The environment of servers and trainer."""

from __future__ import annotations

import os
import tempfile
import urllib.request
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from areal_launcher.core.environment import check_environment, child_environment

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
hosts = st.lists(st.sampled_from(["corp.example", ".lan", "10.0.0.0/8", "127.0.0.1", " ", "localhost"]), max_size=4)


@settings(deadline=None)
@given(proxy=st.sampled_from(PROXIES), name=st.sampled_from(["no_proxy", "NO_PROXY", None]), hosts=hosts)
def test_local_requests_bypass_every_proxy_and_nothing_else_changes(
    proxy: str, name: str | None, hosts: list[str]
) -> None:
    environ = {proxy: "http://proxy.example:3128", "PATH": "/bin", **({name: ",".join(hosts)} if name else {})}
    child = child_environment(environ, {"A": "b"})
    values = {key: value for key, value in child.items() if key.lower() == "no_proxy"}
    for value in values.values():
        assert urllib.request.proxy_bypass_environment("127.0.0.1:30000", {"no": value})
        assert urllib.request.proxy_bypass_environment("localhost", {"no": value})
        assert not urllib.request.proxy_bypass_environment("huggingface.co", {"no": value})
        assert {host.strip() for host in hosts} - {""} <= set(value.split(",")) or name is None
    assert values
    added = {"A", "PYTHONUTF8", *values}
    assert {key: value for key, value in child.items() if key not in added} == {
        key: value for key, value in environ.items() if key not in added
    }


def test_without_a_proxy_the_environment_is_the_users() -> None:
    environ = {"PATH": "/bin", "NO_PROXY": "x", "PYTHONUTF8": "0"}
    assert child_environment(environ, {}) == environ
    assert child_environment({"http_proxy": "p", "no_proxy": "*"}, {})["no_proxy"] == "*"


def test_a_temporary_directory_too_long_for_unix_sockets_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 80)))
    with pytest.raises(ValueError, match=r"TMPDIR: .* too long for the servers' UNIX sockets; set TMPDIR to"):
        check_environment()
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    check_environment()


def test_no_temporary_directory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nonexistent"])
    with pytest.raises(ValueError, match="TMPDIR: No usable temporary directory found"):
        check_environment()
    assert os.environ
