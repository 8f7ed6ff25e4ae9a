"""Objects that a tenant may write, made to harm others. The operator must refuse or explain each and keep serving.

`HOSTILE=500` (`make hostile`) generates more experiments than the 60 of `make test`.
"""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from areal_api import resource_names
from areal_api.areal_config.tree import set_in
from areal_api.experiment import KIND
from hack.testbed.experiments import Experiment, Namespace
from hack.testbed.kube_api import Object, Refused, eventually
from hack.testbed.operator_process import OperatorProcess

GENERATED = int(os.environ.get("HOSTILE", "60"))
BATCH = 10
MAX_GROWTH_BYTES = 200 * 2**20
ANSWER_S = 60.0


def nested(depth: int, leaf: Any = "x") -> Any:
    """``{"a": {"a": … leaf}}``."""
    value = leaf
    for _ in range(depth):
        value = {"a": value}
    return value


def nested_lists(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


# Name, key and value of experiments that have harmed an operator, or are of the same kind.
HOSTILE: dict[str, tuple[str, Any]] = {
    "deep affinity": ("spec.servers.affinity", nested(1200)),
    "deep tolerations": ("spec.trainer.tolerations", nested_lists(500)),
    "deep workflow arguments": ("spec.config.workflow.kwargs", nested(400)),
    "deep server arguments": ("spec.servers.args", nested(400)),
    "deep volumes": ("spec.trainer.volumes", [nested(300)]),
    "wide labels": ("spec.servers.podLabels", {f"k{i}": "v" for i in range(20_000)}),
    "wide environment": ("spec.trainer.env", [{"name": f"N{i}", "value": "v"} for i in range(20_000)]),
    "long text": ("spec.trainer.script", "x" * 500_000),
    "long trial name": ("spec.config.trial_name", "x" * 100_000),
    "millions of servers": ("spec.servers.maxReplicas", 8_000_000),
    "millions of nodes": ("spec.trainer.nodes", 2**31 - 1),
    "millions of ranks": ("spec.trainer.processesPerNode", 10_000_000),
    "overflowing quantity": ("spec.trainer.resources", {"requests": {"cpu": "1e400"}}),
    "quantity of digits": ("spec.storage.size", "9" * 5_000),
    "wrong toleration": ("spec.servers.tolerations", [{"key": ["a"]}]),
    "environment of the operator": ("spec.config.experiment_name", "${oc.env:PATH}"),
    "environment in a longer text": ("spec.config.cluster.fileroot", "/x/${oc.env:HOME}/${oc.env:PATH}"),
    "resolver": ("spec.config.trial_name", "${oc.decode:'[1]'}"),
    "reference to itself": ("spec.config.trial_name", "${trial_name}"),
    "control characters": ("spec.config.trial_name", "a\x1b[31m\x07"),
    "lone surrogate and bidirectional text": ("spec.trainer.script", "\u202eyp.niart"),
    "emoji in an error": ("spec.config.workflow.kwargs", {"\U0001f600": "${a}"}),
    "emoji in a pod": ("spec.trainer.env", [{"name": "A", "value": "\U0001f600 \x85"}]),
    "path outside": ("spec.config.cluster.fileroot", "/../../../../etc"),
    "host path": ("spec.trainer.volumes", [{"name": "v", "hostPath": {"path": "/"}}]),
    "foreign secret": (
        "spec.trainer.env",
        [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "\u0000", "key": "k"}}}],
    ),
    "negative time": ("spec.runPolicy.ttlSecondsAfterFinished", -(2**63)),
    "huge time": ("spec.runPolicy.activeDeadlineSeconds", 2**62),
    "not a number": ("spec.config.actor.optimizer.lr", "nan"),
    "status written by the user": ("status", {"phase": "Succeeded", "attempt": 2**31}),
}


@pytest.fixture
def unharmed(operator: OperatorProcess, namespace: Namespace) -> Callable[[], None]:
    """Call it after an attack: the same process still serves a healthy experiment and has not grown much."""
    process = psutil.Process(operator.pid)
    before = process.memory_info().rss
    number = 0

    def check() -> None:
        nonlocal number
        number += 1
        healthy = Experiment(namespace, f"healthy-{number}").apply()
        healthy.until(lambda status: bool(status.get("phase")), "a status of the healthy experiment", ANSWER_S)
        eventually(
            lambda: resource_names.servers(healthy.name) in namespace.names("StatefulSet"),
            "servers of the healthy experiment",
            ANSWER_S,
        )
        healthy.delete()
        assert operator.runs
        assert operator.pid == process.pid
        assert operator.answers("/healthz")
        assert process.memory_info().rss - before < MAX_GROWTH_BYTES

    return check


def explained(namespace: Namespace, name: str) -> bool:
    """Whether the operator has given the experiment a condition or is running it."""
    body = namespace.api.get(KIND, namespace.name, name)
    return body is None or bool((body.get("status") or {}).get("conditions"))


def attempt(namespace: Namespace, body: Object) -> bool:
    """Create an object; whether the API server stored it."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(50_000)  # for this process's own encoder
    try:
        namespace.api.create(body, namespace.name)
    except Refused as refusal:
        if refusal.status >= 500:
            raise
        return False
    finally:
        sys.setrecursionlimit(limit)
    return True


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_experiment_is_refused_or_explained(
    case: str, namespace: Namespace, unharmed: Callable[[], None]
) -> None:
    key, value = HOSTILE[case]
    body = Experiment(namespace, "hostile").body()
    set_in(body, key, value)
    if attempt(namespace, body):
        eventually(lambda: explained(namespace, "hostile"), "a condition", ANSWER_S)
    unharmed()


def test_no_object_of_the_operator_holds_its_environment(namespace: Namespace, operator: OperatorProcess) -> None:
    experiment = Experiment(namespace, "curious")
    body = experiment.body()
    set_in(body, "spec.config.cluster.fileroot", "/x/${oc.env:PATH}")
    if attempt(namespace, body):
        eventually(lambda: explained(namespace, "curious"), "a condition", ANSWER_S)
    data = [text for one in namespace.list("Secret") for text in (one.get("data") or {}).values()]
    texts = [base64.b64decode(text).decode() for text in data]
    assert not any(os.environ["PATH"] in text for text in texts)


def test_objects_of_strangers_with_our_labels_are_left_alone(
    namespace: Namespace, unharmed: Callable[[], None]
) -> None:
    labels = resource_names.labels("victim")
    for kind, version in (("ConfigMap", "v1"), ("Secret", "v1"), ("ServiceAccount", "v1")):
        namespace.api.create(
            {"kind": kind, "apiVersion": version, "metadata": {"name": f"foreign-{kind.lower()}", "labels": labels}},
            namespace.name,
        )
    unharmed()
    for kind in ("ConfigMap", "Secret", "ServiceAccount"):
        assert f"foreign-{kind.lower()}" in namespace.names(kind)


def test_a_claim_of_somebody_else_survives_the_experiment(namespace: Namespace, operator: OperatorProcess) -> None:
    claim = resource_names.volume_claim("squatter")
    namespace.api.create(
        {
            "kind": "PersistentVolumeClaim",
            "apiVersion": "v1",
            "metadata": {"name": claim},
            "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
        },
        namespace.name,
    )
    squatter = Experiment(namespace, "squatter").apply(storage__whenDeleted="Delete")
    squatter.until(lambda status: bool(status.get("conditions")), "a condition", ANSWER_S)
    squatter.delete()
    eventually(lambda: squatter.get() is None, "the experiment's deletion", ANSWER_S)
    found = namespace.api.get("PersistentVolumeClaim", namespace.name, claim)
    assert found is not None
    assert "deletionTimestamp" not in found["metadata"]
    assert not found["metadata"].get("ownerReferences")


TEXTS = st.text(st.characters(codec="utf-8"), max_size=200) | st.sampled_from(
    ["${a}", "${a.b}" * 50, "../..", "\x00", ""]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=30) | st.dictionaries(TEXTS, inner, max_size=30),
    max_leaves=60,
)
KEYS = sorted({key for key, _ in HOSTILE.values()})


def test_generated_experiments_are_refused_or_explained(namespace: Namespace, unharmed: Callable[[], None]) -> None:
    number = 0

    @settings(
        max_examples=max(1, GENERATED // BATCH),
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(st.tuples(st.sampled_from(KEYS), VALUES), min_size=BATCH, max_size=BATCH))
    def attack(changes: list[tuple[str, Any]]) -> None:
        nonlocal number
        stored: list[str] = []
        for key, value in changes:
            number += 1
            body = Experiment(namespace, f"generated-{number}").body()
            set_in(body, key, value)
            if attempt(namespace, body):
                stored.append(f"generated-{number}")
        for name in stored:
            eventually(lambda name=name: explained(namespace, name), f"a condition of {name}", ANSWER_S)  # type: ignore[misc]
        for name in stored:
            namespace.api.delete(KIND, namespace.name, name)

    attack()
    unharmed()
