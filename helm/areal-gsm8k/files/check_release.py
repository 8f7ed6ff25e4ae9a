"""`helm test`: the operator answers, the API server serves GRPOExperiment, and the release's experiment is accepted."""

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


class NotYet(Exception):
    """What does not hold, as a sentence."""


def operator_is_ready() -> str:
    """The operator has seen everything."""
    url = os.environ["OPERATOR_URL"] + "/readyz"
    try:
        with urllib.request.urlopen(url, timeout=5.0) as response:
            return f"the operator answers at {url}: {response.read().decode()}"
    except OSError as error:
        raise NotYet(f"the operator does not answer at {url}: {error}") from error


def definition_is_served() -> str:
    """The API server knows the kind."""
    kinds = [resource["kind"] for resource in ask("")["resources"]]
    if "GRPOExperiment" not in kinds:
        raise NotYet(f"areal.dev/v1alpha1 has {kinds}, not GRPOExperiment")
    return "the API server serves GRPOExperiment"


def experiment_is_accepted() -> str:
    """The operator has accepted the experiment of the release."""
    name, namespace = os.environ["EXPERIMENT"], os.environ["NAMESPACE"]
    status = ask(f"/namespaces/{namespace}/grpoexperiments/{name}").get("status") or {}
    accepted = [one for one in status.get("conditions", []) if one["type"] == "Accepted"]
    if not accepted or accepted[0]["status"] != "True":
        raise NotYet(f"experiment {namespace}/{name} is not accepted: {accepted or 'it has no condition yet'}")
    return f"experiment {namespace}/{name} is accepted, phase {status.get('phase')}: {status.get('message')}"


def ask(path: str) -> dict[str, Any]:
    """An object of the API server, as this pod's account."""
    token = (ACCOUNT / "token").read_text().strip()
    request = urllib.request.Request(API + path, headers={"Authorization": f"Bearer {token}"})
    context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    try:
        with urllib.request.urlopen(request, context=context, timeout=5.0) as response:
            return dict(json.load(response))
    except OSError as error:
        raise NotYet(f"{API}{path}: {error}") from error


def main() -> int:
    """Try until everything holds; 1 where it does not in time."""
    checks = [operator_is_ready, definition_is_served]
    if os.environ.get("EXPERIMENT"):
        checks.append(experiment_is_accepted)
    deadline = time.monotonic() + DEADLINE_S
    for check in checks:
        while True:
            try:
                print(f"ok: {check()}", flush=True)
                break
            except NotYet as problem:
                if time.monotonic() > deadline:
                    print(f"failed: {problem}", flush=True)
                    return 1
                time.sleep(1.0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
