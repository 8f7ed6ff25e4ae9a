"""What the API server accepts and refuses, and that the operator survives everything that it accepts."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from areal_api.areal_config.tree import set_in
from areal_api.experiment import KIND
from hack.testbed.experiments import Namespace
from hack.testbed.kube_api import Api, Object, Refused, eventually
from hack.testbed.operator_process import OperatorProcess
from support.experiment_cases import CASES, Case

BATCH = 20
MALFORMED = int(os.environ.get("AREAL_MALFORMED", "300"))  # number of experiments
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)
KEYS = [
    "spec",
    "spec.config",
    "spec.config.actor",
    "spec.config.actor.path",
    "spec.config.gconfig.stop",
    "spec.config.experiment_name",
    "spec.config.trial_name",
    "spec.config.cluster.fileroot",
    "spec.config.workflow.kwargs",
    "spec.config.rollout",
    "spec.config.unknown",
    "spec.servers",
    "spec.servers.replicas",
    "spec.servers.args",
    "spec.servers.args.x",
    "spec.servers.env",
    "spec.servers.resources",
    "spec.servers.resources.limits",
    "spec.servers.volumes",
    "spec.servers.volumeMounts",
    "spec.servers.affinity",
    "spec.servers.affinity.podAffinity",
    "spec.servers.tolerations",
    "spec.servers.nodeSelector",
    "spec.servers.podLabels",
    "spec.servers.image",
    "spec.servers.shmSize",
    "spec.trainer.nodes",
    "spec.trainer.script",
    "spec.trainer.env",
    "spec.trainer.resources",
    "spec.trainer.resources.requests",
    "spec.trainer.imagePullSecrets",
    "spec.trainer.podAnnotations",
    "spec.trainer.priorityClassName",
    "spec.agents",
    "spec.tools",
    "spec.gateway.allowFrom",
    "spec.config.rollout.agent.mode",
    "spec.storage.size",
    "spec.storage.storageClassName",
    "spec.runPolicy",
    "spec.runPolicy.ttlSecondsAfterFinished",
    "spec.runPolicy.suspend",
]
LIKELY = [
    [{"name": "A"}],
    [{"name": "A", "value": 1}],
    [{"value": "x"}],
    [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}],
    [{"name": "areal-run", "emptyDir": {}}],
    [{"name": "v", "mountPath": "/dev/shm"}],
    [{"name": "solver", "image": "$(x)", "replicas": 2}],
    [{"name": "a", "resources": {"limits": {"cpu": "many"}}}, {"name": "a"}],
    "online",
    {"cpu": "many"},
    {"cpu": []},
    {"memory": "1Zi"},
    {"limits": {"cpu": 0}, "requests": {"cpu": 4}},
    {"limits": []},
    "${missing}",
    "$(HOME)",
    "../../etc",
    "/",
    "a b",
    "0Gi",
    "99999999999999999999Gi",
    2**40,
    -1,
    0,
]
CHANGES = st.dictionaries(
    st.sampled_from(KEYS), st.sampled_from(LIKELY) | st.sampled_from(LIKELY) | ANYTHING, min_size=1, max_size=2
)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_the_api_server_enforces_the_rules_of_the_models(api: Api, kubelet: Any, case: Case) -> None:
    body = {**case.experiment()}
    path = "/apis/areal.dev/v1alpha1/namespaces/default/grpoexperiments?dryRun=All"
    if case.problem is None:
        api.post(path, body)
        return
    with pytest.raises(Refused) as refused:
        api.post(path, body)
    assert case.rule in str(refused.value)


def test_malformed_experiments_are_refused_or_explained(namespace: Namespace, operator: OperatorProcess) -> None:
    api, name = namespace.api, namespace.name
    namespace.refuse_pods()  # this test needs none
    counts = {"refused": 0, "explained": 0, "applied": 0}

    @settings(
        max_examples=max(1, MALFORMED // BATCH),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(CHANGES, min_size=BATCH, max_size=BATCH))
    def try_batch(batch: list[Object]) -> None:
        made = [index for index, changes in enumerate(batch) if _make(namespace, f"m{index}", changes)]
        counts["refused"] += len(batch) - len(made)
        try:
            for index in made:
                explained = eventually(
                    lambda index=index: _explained(namespace, f"m{index}"), f"a status of {batch[index]}", 60.0
                )
                counts[explained] += 1
        finally:
            for index in made:
                api.delete(KIND, name, f"m{index}")
            eventually(lambda: not namespace.list(KIND), "they are deleted")
        assert operator.runs
        assert operator.answers("/healthz")

    try_batch()
    print(counts)
    assert counts["refused"]
    assert counts["applied"]
    assert counts["explained"]


def _make(namespace: Namespace, name: str, changes: Object) -> bool:
    body = Case("", {"metadata.name": name, "spec.servers.device": "cpu", "spec.trainer.device": "cpu"}).experiment()
    for key, value in changes.items():
        set_in(body, key, value)
    body["metadata"] = {"name": name}
    try:
        namespace.api.create(body, namespace.name)
    except Refused as refused:
        if refused.status >= 500:
            raise
        return False
    return True


def _explained(namespace: Namespace, name: str) -> str | None:
    body = namespace.api.get(KIND, namespace.name, name) or {}
    status = body.get("status") or {}
    accepted = [one for one in status.get("conditions", []) if one["type"] == "Accepted"]
    if not accepted or status.get("observedGeneration") != body["metadata"]["generation"]:
        return None
    if accepted[0]["status"] == "False":
        return "explained" if accepted[0]["message"] else None
    owns = any(
        job["metadata"]["name"].startswith(f"{name}-trainer") for job in namespace.api.list("Job", namespace.name)
    )
    return "applied" if owns or status["phase"] == "Suspended" else None


def test_a_name_that_is_no_dns_label_is_explained(namespace: Namespace, operator: OperatorProcess) -> None:
    body = Case("", {"metadata.name": "with.dot"}).experiment()
    namespace.api.create(body, namespace.name)

    def condition() -> Object | None:
        status = (namespace.api.get(KIND, namespace.name, "with.dot") or {}).get("status") or {}
        found = [one for one in status.get("conditions", []) if one["type"] == "Accepted"]
        return found[0] if found else None

    accepted = eventually(condition, "the condition Accepted")
    assert accepted["reason"] == "Invalid"
    assert "metadata.name" in accepted["message"]
