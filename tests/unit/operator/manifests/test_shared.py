"""Shared objects: configuration, API key, volume claim, network policy."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from areal_api import resource_names
from areal_operator.manifests.base import Build
from areal_operator.manifests.shared import network_policy
from areal_operator.settings import Settings
from support import operator_objects
from support.operator_manifests import made, pods
from support.operator_objects import decide, manifest, state

RUN_PODS = {
    "matchLabels": resource_names.labels("case"),
    "matchExpressions": [{"key": "areal.dev/component", "operator": "NotIn", "values": ["agent", "tool"]}],
}


def test_the_configuration_is_immutable_and_named_by_its_digest() -> None:
    first, second = made("Secret"), made("Secret", config__seed=2)
    assert first["immutable"] is True
    assert first["metadata"]["name"] != second["metadata"]["name"]
    assert b"experiment_name: case" in base64.b64decode(first["data"]["config.yaml"])


def test_pods_mount_the_configuration_and_the_key_of_their_manifest() -> None:
    secret = made("Secret", config__seed=2)["metadata"]["name"]
    for pod in pods(config__seed=2):
        mounted = {one["name"]: one["secret"] for one in pod["volumes"] if "secret" in one}
        assert {one["secretName"] for one in mounted.values()} == {secret}
        assert mounted["areal-config"]["items"] == [{"key": "config.yaml", "path": "config.yaml"}]
        assert mounted["areal-api-key"]["items"] == [{"key": "api-key", "path": "api-key"}]
        assert mounted["areal-api-key"]["defaultMode"] == 0o440


def test_the_key_is_in_a_secret_and_nowhere_else() -> None:
    plan = decide(state())
    assert base64.b64decode(manifest(plan, "Secret")["data"]["api-key"]) == b"s3cret"
    assert "s3cret" not in json.dumps([m["spec"] for m in plan.objects if m["kind"] in ("StatefulSet", "Job")])


def test_a_retained_volume_claim_has_no_owner() -> None:
    assert "ownerReferences" not in made("PersistentVolumeClaim")["metadata"]
    assert made("PersistentVolumeClaim", storage__whenDeleted="Delete")["metadata"]["ownerReferences"]


def test_only_pods_of_the_experiment_reach_its_pods() -> None:
    spec = made("NetworkPolicy")["spec"]
    assert spec["ingress"] == [{"from": [{"podSelector": RUN_PODS}]}]
    assert spec["podSelector"] == RUN_PODS


def test_metrics_readers_reach_only_the_servers_port() -> None:
    text = '[{"namespaceSelector": {"matchLabels": {"team": "monitoring"}}}]'
    settings = Settings.from_env({"AREAL_METRICS_FROM": text})
    build = Build(operator_objects.experiment(), "ns", "uid", 1, "key", "gateway-key", settings)
    _, scraping = network_policy(build)["spec"]["ingress"]
    assert scraping == {"from": json.loads(text), "ports": [{"protocol": "TCP", "port": resource_names.SERVER_PORT}]}


def test_egress_is_open_unless_the_operator_restricts_it() -> None:
    spec = made("NetworkPolicy")["spec"]
    assert (spec["policyTypes"], "egress" in spec) == (["Ingress"], False)


@pytest.mark.parametrize("allowed", [[], [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}}]])
def test_restricted_egress_leaves_what_a_run_needs(allowed: list[Any]) -> None:
    env = {"AREAL_EGRESS_TO": json.dumps(allowed), "AREAL_OPERATOR_NAMESPACE": "areal"}
    settings = Settings.from_env({**env, "AREAL_OPERATOR_URL": "http://areal-operator.areal.svc:8080"})
    spec = network_policy(Build(operator_objects.experiment(), "ns", "uid", 1, "key", "gateway-key", settings))["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    own, dns, operator, *others = spec["egress"]
    assert own == {"to": [{"podSelector": RUN_PODS}]}
    assert dns == {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}
    assert operator["ports"] == [{"protocol": "TCP", "port": 8080}]
    assert operator["to"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "areal"}
    assert others == ([{"to": allowed}] if allowed else [])


@pytest.mark.parametrize("text", ["{", "{}", "[{}]", '["monitoring"]', '[{"pods": {}}]'])
def test_invalid_network_policy_peers_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"AREAL_METRICS_FROM is .*; set a JSON list of a NetworkPolicy's peers"):
        Settings.from_env({"AREAL_METRICS_FROM": text})


def test_names_stay_within_63_characters() -> None:
    name = "a" * 40
    assert len(f"{resource_names.trainer_job(name, 9999)}-99-abcde") <= 63
    assert len(resource_names.run_secret(name, "01234567-89", "0123456789")) <= 253  # of an object, not of a label
