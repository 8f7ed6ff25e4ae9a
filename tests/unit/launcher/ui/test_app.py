"""The HTTP server of the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from areal_launcher.catalog import Catalog
from areal_launcher.ui.access import TokenAccess
from areal_launcher.ui.app import create_app
from areal_launcher.ui.source import LocalRuns
from support.evaluation_files import answer, write_evaluation
from support.rollout_files import sample, write_samples
from support.ui_runs import make_run

TOKEN = "the-token"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    make_run(tmp_path, "tiny/first", steps=50)
    return tmp_path


@pytest.fixture
def client(runs: Path) -> Iterator[TestClient]:
    with TestClient(create_app(TokenAccess(LocalRuns(Catalog([runs])), TOKEN)), base_url="http://127.0.0.1") as client:
        yield client


@pytest.fixture
def visitor(client: TestClient) -> TestClient:
    client.get(f"/?token={TOKEN}")
    return client


def first(visitor: TestClient) -> str:
    return str(visitor.get("/api/runs").json()[0]["id"])


@pytest.mark.parametrize("path", ["/", "/api/runs", "/static/main.js", "/?token=wrong", "/api/runs/x/live", "/nothing"])
def test_without_the_token_nothing_is_shown(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 403
    assert "grpo ui printed" in response.json()["detail"]


@pytest.mark.parametrize("cookie", ["", "wrong", TOKEN[:-1], TOKEN + "x", "ü"])
def test_a_wrong_cookie_is_refused(client: TestClient, cookie: str) -> None:
    headers = [(b"cookie", b"grpo_ui=" + cookie.encode())]  # bytes: clients refuse to send some of them
    assert client.get("/api/runs", headers=headers).status_code == 403


def test_the_token_becomes_a_cookie_and_leaves_the_address(client: TestClient) -> None:
    response = client.get(f"/?token={TOKEN}", follow_redirects=False)
    assert response.headers["location"] == "/"
    assert {"HttpOnly", "SameSite=strict"} <= set(response.headers["set-cookie"].split("; "))
    assert "grpo runs" in client.get("/").text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_the_page_changes_nothing(visitor: TestClient, method: str) -> None:
    assert visitor.request(method, "/api/runs").status_code == 403


def test_no_script_of_anybody_else_can_run(visitor: TestClient) -> None:
    for path in ("/", "/api/runs", "/static/main.js"):
        policy = visitor.get(path).headers["content-security-policy"]
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy


def test_the_list_has_a_line_for_each_run(visitor: TestClient) -> None:
    [row] = visitor.get("/api/runs").json()
    assert (row["name"], row["step"], row["total"], row["reward"]) == ("tiny/first", 50, 50, 1.0)


def test_a_run_has_its_series(visitor: TestClient) -> None:
    run = first(visitor)
    assert visitor.get(f"/api/runs/{run}").json()["step"] == 50
    points = visitor.get(f"/api/runs/{run}/series?name=task_reward").json()
    assert (points["steps"][-1], points["means"]["task_reward"][-1], points["replace"]) == (50, 1.0, True)


def test_only_new_points_are_sent_to_a_page_that_has_the_others(visitor: TestClient) -> None:
    run = first(visitor)
    visitor.get(f"/api/runs/{run}")
    points = visitor.get(f"/api/runs/{run}/series?name=task_reward&after=48").json()
    assert (points["steps"], points["replace"]) == ([49, 50], False)
    thinned = visitor.get(f"/api/runs/{run}/series?name=task_reward&after=48&points=10").json()
    assert (len(thinned["steps"]), thinned["replace"]) == (10, True)


@pytest.mark.parametrize(
    "query",
    ["", "name=a&points=1", "name=a&points=1000000", "name=a&first=-1", "name=a&last=x", "name=a&first=" + "9" * 400],
)
def test_a_request_outside_the_bounds_is_refused(visitor: TestClient, query: str) -> None:
    assert visitor.get(f"/api/runs/{first(visitor)}/series?{query}").status_code == 422


def test_more_series_than_a_page_draws_are_refused(visitor: TestClient) -> None:
    many = "&".join(f"name=x{number}" for number in range(65))
    assert visitor.get(f"/api/runs/{first(visitor)}/series?{many}").status_code == 422


@pytest.mark.parametrize("identifier", ["0" * 16, "..%2f..%2fetc", "%00", "x" * 5000])
def test_what_is_no_run_is_not_found(visitor: TestClient, identifier: str) -> None:
    for path in ("", "/series?name=x", "/live", "/configuration"):
        assert visitor.get(f"/api/runs/{identifier}{path}").status_code == 404


def test_samples_of_a_step_are_shown(visitor: TestClient, runs: Path) -> None:
    run = first(visitor)
    assert visitor.get(f"/api/runs/{run}/rollouts").json() == []
    assert visitor.get(f"/api/runs/{run}/rollouts/7").status_code == 404
    write_samples(runs / "tiny/first", 7, sample("2", reward=0.5, prompt="2+2=", completion="4"))
    assert visitor.get(f"/api/runs/{run}/rollouts").json() == [7]
    assert visitor.get(f"/api/runs/{run}/rollouts/7/0").json()["tokens"][1] == "2"
    assert visitor.get(f"/api/runs/{run}/rollouts/7/1").status_code == 404
    [group] = visitor.get(f"/api/runs/{run}/rollouts/7?low=0.5&text=2").json()["groups"]
    assert (group["prompt"], group["samples"][0]["completion"]) == ("2+2=", "4")
    for query in ("low=x", "offset=-1", "shortest=-1", "only=x", "text=" + "x" * 501):
        assert visitor.get(f"/api/runs/{run}/rollouts/7?{query}").status_code == 422


def test_a_problem_and_evaluations_are_shown(visitor: TestClient, runs: Path) -> None:
    run = first(visitor)
    assert visitor.get(f"/api/runs/{run}/problem?problem=2").status_code == 404
    write_samples(runs / "tiny/first", 7, sample("2"))
    assert visitor.get(f"/api/runs/{run}/problem?problem=2").json()["steps"][0]["step"] == 7
    for step in (0, 5):
        write_evaluation(runs / "tiny/first", step, answer("x/y", float(step > 0)))
    assert visitor.get(f"/api/runs/{run}/evaluations").json() == [0, 5]
    assert visitor.get(f"/api/runs/{run}/evaluations/0/5").json()["sets"][0]["n_better"] == 1
    assert visitor.get(f"/api/runs/{run}/evaluations/5?of=valid&problem=x/y").json()["count"] == 1
    assert visitor.get(f"/api/runs/{run}/evaluations/9?of=valid&problem=x/y").status_code == 404
    assert (
        visitor.get(f"/api/runs/{run}/evaluations/0/9").json()["detail"].startswith("the evaluation after step 0 or 9")
    )


def test_text_of_a_run_is_never_markup(visitor: TestClient, runs: Path) -> None:
    make_run(runs, "<script>alert(1)<", steps=1)
    response = visitor.get("/api/runs")
    assert response.headers["content-type"] == "application/json"
    row = next(row for row in response.json() if "script" in row["name"])
    configuration = visitor.get(f"/api/runs/{row['id']}/configuration")
    assert configuration.headers["content-type"].startswith("text/plain")
    assert configuration.headers["x-content-type-options"] == "nosniff"


def test_the_stream_ends_when_the_run_is_deleted(visitor: TestClient, runs: Path) -> None:
    run = first(visitor)
    for file in (runs / "tiny/first").iterdir():
        if file.name != "stats.jsonl":
            file.unlink()
    seen: list[Any] = []
    with visitor.stream("GET", f"/api/runs/{run}/live") as response:
        for text in response.iter_lines():
            if text.startswith('data: {"id"'):
                seen.append(json.loads(text.removeprefix("data: ")))
                (runs / "tiny/first/stats.jsonl").unlink(missing_ok=True)
            if text == "event: deleted":
                break
    assert seen[0]["step"] == 50
