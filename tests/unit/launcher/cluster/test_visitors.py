"""Visitors of the page of a cluster with a stand-in for the API server; tests/control_plane has a real one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from areal_launcher.cluster import visitors
from areal_launcher.cluster.client import ApiError, Unreachable
from areal_launcher.cluster.page import ClusterRuns
from areal_launcher.cluster.visitors import MAX_BODY_BYTES, Visitors
from areal_launcher.ui.app import create_app

NAMES = {"token-of-ann": "ann", "token-of-bob": "bob", "token-of-root": "root"}
MAY_GET = {("ann", "a"), ("root", ""), ("bob", "empty")}


class FakeApi:
    """An API server with experiments in the namespaces a and b, and users with rights of their own."""

    def __init__(self) -> None:
        self.error: ApiError | Unreachable | None = None
        self.reviews: list[tuple[str, Any]] = []
        self.may_get = set(MAY_GET)
        self.names = dict(NAMES)
        self._lock = threading.Lock()

    def list(self, kind: str, namespace: str | None) -> list[dict[str, Any]]:
        return [
            {"metadata": {"name": "run", "namespace": one, "uid": one}, "spec": {"servers": {}}, "status": {}}
            for one in ("a", "b")
        ]

    def review(self, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self.reviews.append((kind, spec))
        if self.error is not None:
            raise self.error
        if kind == "SubjectAccessReview":
            wanted = spec["resourceAttributes"]
            assert (wanted["resource"], wanted["verb"], wanted["group"]) == ("grpoexperiments", "get", "areal.dev")
            assert spec["groups"] == ["system:authenticated"]
            return {"allowed": (spec["user"], wanted["namespace"]) in self.may_get}
        name = self.names.get(spec["token"])
        if name is None or "audiences" in spec:
            return {"authenticated": False, "error": "unknown"}
        return {"authenticated": True, "user": {"username": name, "groups": ["system:authenticated"]}}


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
def client(api: FakeApi) -> Iterator[TestClient]:
    runs = ClusterRuns(api, [])  # type: ignore[arg-type]
    runs.refresh()
    app = create_app(Visitors(api, runs), samples=False)  # type: ignore[arg-type]
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client


def sign_in(client: TestClient, token: str) -> Any:
    return client.post("/login", json={"token": token})


def names(client: TestClient, **options: Any) -> list[str]:
    return sorted(row["name"] for row in client.get("/api/runs", **options).json())


@pytest.mark.parametrize(("user", "seen"), [("ann", ["a/run"]), ("bob", []), ("root", ["a/run", "b/run"])])
def test_a_visitor_sees_the_namespaces_that_the_api_server_allows(
    client: TestClient, user: str, seen: list[str]
) -> None:
    answer = sign_in(client, f"token-of-{user}")
    assert answer.json() == {"user": user}
    assert names(client) == seen
    assert client.get("/api/runs").headers["grpo-user"] == user


def test_the_session_is_a_cookie_that_scripts_cannot_read_and_holds_no_token(client: TestClient) -> None:
    cookie = sign_in(client, "token-of-ann").headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict"} <= set(cookie.split("; "))
    assert "Secure" not in cookie
    assert "token-of-ann" not in cookie
    encrypted = client.post("/login", json={"token": "token-of-ann"}, headers={"x-forwarded-proto": "https"})
    assert "Secure" in encrypted.headers["set-cookie"].split("; ")


def test_a_bearer_token_needs_no_session(client: TestClient) -> None:
    assert names(client, headers={"authorization": "Bearer token-of-ann"}) == ["a/run"]
    assert client.get("/api/runs", headers={"authorization": "Bearer wrong"}).status_code == 401


def test_whatever_is_asked_without_signing_in_has_the_same_answer(client: TestClient) -> None:
    known = client.get("/api/runs", headers={"authorization": "Bearer token-of-root"}).json()[0]["id"]
    paths = ["/api/runs", f"/api/runs/{known}", f"/api/runs/{'0' * 16}", f"/api/runs/{known}/live", "/nothing"]
    answers = {(answer.status_code, answer.text) for answer in map(client.get, paths)}
    answers |= {(answer.status_code, answer.text) for answer in [client.get("/api/runs", cookies={"grpo_page": "x"})]}
    answers |= {(answer.status_code, answer.text) for answer in [client.put("/api/runs"), client.post("/api/runs")]}
    assert len(answers) == 1
    assert answers.pop()[0] == 401


def test_an_experiment_of_others_is_answered_like_one_that_does_not_exist(client: TestClient) -> None:
    root = client.get("/api/runs", headers={"authorization": "Bearer token-of-root"}).json()
    foreign = next(row["id"] for row in root if row["name"] == "b/run")
    sign_in(client, "token-of-ann")
    for path in ("", "/live", "/configuration", "/series?name=x"):
        answers = [client.get(f"/api/runs/{identifier}{path}") for identifier in (foreign, "0" * 16)]
        assert {(one.status_code, one.text) for one in answers} == {(404, answers[0].text)}


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"{}", b'{"token": 1}', b'{"token": ""}', b'{"token": "a\\nb"}', b'{"token": "\xc3\xbc"}',
     b'{"token": "wrong"}', b'{"token": "' + b"x" * MAX_BODY_BYTES + b'"}', b"[" * 10_000],
)  # fmt: skip
def test_each_failure_to_sign_in_has_the_same_answer(client: TestClient, body: bytes) -> None:
    answer = client.post("/login", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()) == (401, {"detail": "this token is not valid here"})
    assert "set-cookie" not in answer.headers


def test_another_sites_page_cannot_sign_a_visitor_in_or_out(client: TestClient) -> None:
    foreign = {"sec-fetch-site": "cross-site"}
    assert client.post("/login", json={"token": "token-of-ann"}, headers=foreign).status_code == 401
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert client.post("/login", content=b'{"token": "token-of-ann"}', headers=form).status_code == 401
    sign_in(client, "token-of-ann")
    assert client.post("/logout", headers=foreign).status_code == 401
    assert names(client) == ["a/run"]


def test_signing_out_ends_the_session_on_the_server(client: TestClient) -> None:
    sign_in(client, "token-of-ann")
    cookies = {"grpo_page": client.cookies["grpo_page"]}
    assert client.post("/logout").status_code == 204
    client.cookies.clear()
    assert client.get("/api/runs", cookies=cookies).status_code == 401


def test_reviews_are_remembered_and_then_repeated(
    client: TestClient, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_in(client, "token-of-ann")
    assert names(client) == ["a/run"]
    asked = len(api.reviews)
    for _ in range(5):
        names(client)
    assert len(api.reviews) == asked
    monkeypatch.setattr(visitors.time, "monotonic", lambda: 1e9)
    api.names.clear()  # revoked; the session itself is too old as well
    assert client.get("/api/runs").status_code == 401


def test_a_right_that_is_taken_away_ends_with_the_cached_review(
    client: TestClient, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visitors, "TRUSTED_S", 0.0)
    sign_in(client, "token-of-ann")
    run = client.get("/api/runs").json()[0]["id"]
    with client.stream("GET", f"/api/runs/{run}/live") as response:
        for line in response.iter_lines():
            if line.startswith('data: {"id"'):
                api.may_get.clear()
            if line.startswith("event: "):
                assert line == "event: deleted"
                break
    assert names(client) == []


def test_an_api_server_that_does_not_answer_admits_nobody(client: TestClient, api: FakeApi) -> None:
    api.error = Unreachable("no route to 10.0.0.1")
    for answer in (sign_in(client, "token-of-ann"), client.get("/api/runs", headers={"authorization": "Bearer x"})):
        assert (answer.status_code, answer.json()) == (503, {"detail": "the API server does not answer; try again"})


def test_old_sessions_make_room_for_new_ones(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visitors, "MAX_SESSIONS", 2)
    cookies = []
    for _ in range(3):
        client.cookies.clear()
        sign_in(client, "token-of-ann")
        cookies.append(client.cookies["grpo_page"])
    client.cookies.clear()
    seen = [client.get("/api/runs", cookies={"grpo_page": cookie}).status_code for cookie in cookies]
    assert seen == [401, 200, 200]


def test_the_empty_page_is_shown_to_everybody(client: TestClient) -> None:
    assert "grpo runs" in client.get("/").text
    assert client.get("/static/main.js").status_code == 200
    assert client.get("/healthz").text == "ok"
    assert client.get("/readyz").text == "ok"
    policy = client.get("/").headers["content-security-policy"]
    assert "script-src 'self';" in policy
