"""`helm test`: checks that the operator is ready, GRPOExperiment is served, and the experiment is accepted."""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ACCOUNT = Path(os.environ.get("ACCOUNT_DIR", "/var/run/secrets/kubernetes.io/serviceaccount"))
API = os.environ.get("API_URL", "https://kubernetes.default.svc") + "/apis/areal.dev/v1alpha1"
DEADLINE_S = float(os.environ.get("DEADLINE_SECONDS", "60"))


class CheckFailed(Exception):
    """A check that does not pass yet; the text says why."""


def operator_is_ready() -> str:
    """Checks that the operator has completed its first listing."""
    url = os.environ["OPERATOR_URL"] + "/readyz"
    try:
        with urllib.request.urlopen(url, timeout=5.0) as response:
            return f"the operator answers at {url}: {response.read().decode()}"
    except OSError as error:
        raise CheckFailed(f"the operator does not answer at {url}: {error}") from error


def definition_is_served() -> str:
    """Checks that the API server serves the kind."""
    kinds = [resource["kind"] for resource in ask("")["resources"]]
    if "GRPOExperiment" not in kinds:
        raise CheckFailed(f"areal.dev/v1alpha1 serves {kinds}, not GRPOExperiment")
    return "the API server serves GRPOExperiment"


def experiment_is_accepted() -> str:
    """Checks that the operator has accepted the release's experiment."""
    name, namespace = os.environ["EXPERIMENT"], os.environ["NAMESPACE"]
    status = ask(f"/namespaces/{namespace}/grpoexperiments/{name}").get("status") or {}
    accepted = [condition for condition in status.get("conditions", []) if condition["type"] == "Accepted"]
    if not accepted or accepted[0]["status"] != "True":
        raise CheckFailed(f"experiment {namespace}/{name} is not accepted: {accepted or 'it has no condition yet'}")
    return f"experiment {namespace}/{name} is accepted, phase {status.get('phase')}: {status.get('message')}"


def ask(path: str) -> dict[str, Any]:
    """Reads from the API server with this pod's service account."""
    token = (ACCOUNT / "token").read_text().strip()
    request = urllib.request.Request(API + path, headers={"Authorization": f"Bearer {token}"})
    context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    try:
        with urllib.request.urlopen(request, context=context, timeout=5.0) as response:
            return dict(json.load(response))
    except OSError as error:
        raise CheckFailed(f"{API}{path}: {error}") from error


def main() -> int:
    """Retries each check until it passes. Returns 1 if one does not pass in time."""
    checks = [operator_is_ready, definition_is_served]
    if os.environ.get("EXPERIMENT"):
        checks.append(experiment_is_accepted)
    deadline = time.monotonic() + DEADLINE_S
    for check in checks:
        while True:
            try:
                print(f"ok: {check()}", flush=True)
                break
            except CheckFailed as error:
                if time.monotonic() > deadline:
                    print(f"failed: {error}", flush=True)
                    return 1
                time.sleep(1.0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
