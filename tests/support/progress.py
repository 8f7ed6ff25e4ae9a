"""Progress reports as sent by a trainer's pod."""

from __future__ import annotations

import httpx

from areal_api import resource_names
from hack.testbed.experiments import Experiment
from hack.testbed.operator_process import OperatorProcess


def token_of(experiment: Experiment, *, audience: str | None = None, account: str = "exp-run") -> str:
    """A service account token as the kubelet would project it."""
    uid = (experiment.get() or {})["metadata"]["uid"]
    name = experiment.namespace.name
    spec = {"audiences": [audience or resource_names.progress_audience(uid)]}
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    path = f"/api/v1/namespaces/{name}/serviceaccounts/{account}/token"
    return str(experiment.namespace.api.post(path, body)["status"]["token"])


def url_of(experiment: Experiment, operator: OperatorProcess) -> str:
    """URL of the experiment's progress endpoint."""
    return f"{operator.url}/v1/namespaces/{experiment.namespace.name}/experiments/{experiment.name}/progress"


def post(url: str, token: str, content: object) -> httpx.Response:
    """Send ``content``: bytes as is, anything else as JSON."""
    headers = {"Authorization": f"Bearer {token}"}
    if isinstance(content, bytes):
        return httpx.post(url, content=content, headers=headers, trust_env=False)
    return httpx.post(url, json=content, headers=headers, trust_env=False)
