"""The page of a cluster on a real API server: who sees which experiments, with real tokens and real RBAC."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from areal_launcher.cluster.visitors import AUDIENCE
from hack.cluster.control_plane import ControlPlane
from hack.testbed.experiments import Experiment, Namespace
from hack.testbed.kube_api import Api, eventually
from hack.testbed.operator_process import NAMESPACE
from hack.testbed.page_process import PageProcess, account, grant, token_of
from support.browser import chromium

READ = [{"apiGroups": ["areal.dev"], "resources": ["grpoexperiments"], "verbs": ["get"]}]


@pytest.fixture(scope="module")
def page(plane: ControlPlane, api: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageProcess]:
    page = PageProcess(plane, api, tmp_path_factory.mktemp("page"))
    page.start()
    yield page
    assert page.stop() in (0, -15)


@pytest.fixture
def other(api: Api, namespace: Namespace) -> Iterator[Namespace]:
    """A second namespace."""
    name = f"{namespace.name[:50]}-other"
    api.create({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name}})
    yield Namespace(api, namespace.kubelet, name)
    for body in api.list("GRPOExperiment", name):
        api.delete("GRPOExperiment", name, body["metadata"]["name"])


def client(page: PageProcess, token: str | None = None) -> httpx.Client:
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    return httpx.Client(base_url=page.url, headers=headers, timeout=30.0, trust_env=False)


def seen(http: httpx.Client, namespaces: list[str]) -> list[str]:
    """Names of the experiments in some namespaces that a visitor sees."""
    return sorted(row["name"] for row in http.get("/api/runs").json() if row["name"].split("/")[0] in namespaces)


def test_a_visitor_sees_the_experiments_that_rbac_allows_and_no_others(
    page: PageProcess, experiment: Experiment, other: Namespace, api: Api
) -> None:
    own, foreign = experiment.apply().namespace, Experiment(other).apply().namespace
    both = [own.name, foreign.name]
    token = account(api, own.name, "visitor")
    with client(page, token) as http, client(page, page_admin(api)) as admin:
        eventually(lambda: len(seen(admin, both)) == 2, "the admin sees both")
        assert seen(http, both) == []
        grant(api, own.name, "visitor", READ, home=own.name)
        later = token_of(api, own.name, "visitor")  # nothing is cached about it
        http.headers["authorization"] = f"Bearer {later}"
        eventually(lambda: seen(http, both) == [f"{own.name}/exp"], "the visitor sees the own namespace")
        rows = admin.get("/api/runs").json()
        hidden = next(row["id"] for row in rows if row["name"] == f"{foreign.name}/exp")
        visible = next(row["id"] for row in rows if row["name"] == f"{own.name}/exp")
        assert http.get(f"/api/runs/{visible}").json()["path"] == f"{own.name}/exp"
        assert "\nconfig:\n" in http.get(f"/api/runs/{visible}/configuration").text
        refused, absent = (http.get(f"/api/runs/{one}") for one in (hidden, "0" * 16))
        assert (refused.status_code, refused.text) == (absent.status_code, absent.text) == (404, absent.text)


def page_admin(api: Api) -> str:
    """A token of an account that may read all experiments."""
    if api.get("ServiceAccount", NAMESPACE, "reader") is None:
        account(api, NAMESPACE, "reader")
        grant(api, None, "reader", READ, home=NAMESPACE)
    return token_of(api, NAMESPACE, "reader")


def test_tokens_for_the_page_alone_sign_in_and_other_audiences_do_not(
    page: PageProcess, namespace: Namespace, api: Api
) -> None:
    account(api, namespace.name, "visitor")
    with client(page) as http:
        for audience, status in ((AUDIENCE, 200), (None, 200), ("somebody-else", 401)):
            token = token_of(api, namespace.name, "visitor", audience=audience)
            assert http.post("/login", json={"token": token}).status_code == status
        answers = [http.post("/login", json={"token": token}) for token in (token, token[:-3], "x", "a.b.c")]
        assert {(answer.status_code, answer.text) for answer in answers} == {(401, answers[0].text)}


def test_a_deleted_account_is_signed_out(page: PageProcess, namespace: Namespace, api: Api) -> None:
    token = account(api, namespace.name, "visitor")
    api.delete("ServiceAccount", namespace.name, "visitor")
    with client(page) as http:
        eventually(lambda: http.post("/login", json={"token": token}).status_code == 401 or None, "it is refused")


def test_the_page_itself_may_change_nothing(plane: ControlPlane, page: PageProcess, namespace: Namespace) -> None:
    user = f"--as=system:serviceaccount:{NAMESPACE}:page"
    allowed = plane.kubectl("auth", "can-i", "--list", user, f"--namespace={namespace.name}", "--no-headers")
    granted = [line.split() for line in allowed.splitlines() if not line.startswith((" ", "selfsubject"))]
    found = {(words[0], words[-1]) for words in granted}
    assert found == {
        ("grpoexperiments.areal.dev", "[list]"),
        ("tokenreviews.authentication.k8s.io", "[create]"),
        ("subjectaccessreviews.authorization.k8s.io", "[create]"),
    }


def test_a_browser_signs_in_and_out(page: PageProcess, experiment: Experiment, api: Api) -> None:
    namespace = experiment.apply().namespace.name
    account(api, namespace, "visitor")
    grant(api, namespace, "visitor", READ, home=namespace)
    with chromium() as browser:
        view = browser.new_page()
        view.set_default_timeout(60_000)
        view.goto(page.url)
        field = view.get_by_label("Token of this cluster")
        field.fill("not a token")
        view.get_by_role("button", name="Sign in").click()
        view.get_by_role("alert").get_by_text("this token is not valid here").wait_for()
        field.fill(account(api, namespace, "stranger", audience=AUDIENCE))
        field.press("Enter")
        view.get_by_text("There are no experiments that you may see").wait_for()
        view.get_by_role("button", name="Sign out").click()
        field.fill(token_of(api, namespace, "visitor", audience=AUDIENCE))
        field.press("Enter")
        view.get_by_role("link", name=f"{namespace}/exp").click()
        view.get_by_text("Samples and evaluations are files on the volume of the run").wait_for()
        view.get_by_text(f"system:serviceaccount:{namespace}:visitor").wait_for()
        assert view.evaluate("document.cookie") == ""
        view.get_by_role("button", name="Sign out").click()
        view.get_by_label("Token of this cluster").wait_for()
        view.goto(f"{page.url}/#/run/{'0' * 16}")
        view.get_by_label("Token of this cluster").wait_for()
