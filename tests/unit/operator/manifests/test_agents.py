"""Pods of agents and tools, and who reaches whom."""

from __future__ import annotations

import base64
import json
import subprocess
from dataclasses import replace
from typing import Any

import pytest

from areal_api.agents import MAX_NAMES_LENGTH
from areal_operator.manifests import agents
from areal_operator.manifests.base import Build, Manifest
from support.operator_manifests import env_of
from support.operator_objects import SETTINGS, UID, experiment

ONLINE = {"config__rollout__agent__mode": "online"}
GATEWAY = {"areal.dev/component": "trainer", "batch.kubernetes.io/job-completion-index": "0"}
PROGRAM = {"name": "solver", "command": ["python3", "-m", "solver"], "code": True}
ARCHIVE = {"configMap": "case-code-0123456789", "sha256": "b" * 64}
GATEWAY_URL = "http://case-gateway.ns.svc:8400"


def build(**changes: Any) -> Build:
    """The input of the builders, for an experiment in online mode."""
    return Build(experiment(**{**ONLINE, **changes}), "ns", UID, 1, "s3cret", "adm1n", SETTINGS)


def agent(**fields: Any) -> Manifest:
    """The StatefulSet of an agent."""
    made = build(agents=[{"name": "solver", **fields}], tools=[{"name": "run-python"}])
    return agents.program_set(made, made.experiment.spec.agents[0])


def tool(**fields: Any) -> Manifest:
    """The StatefulSet of a tool."""
    made = build(tools=[{"name": "run-python", **fields}])
    return agents.program_set(made, made.experiment.spec.tools[0])


def pod_of(manifest: Manifest) -> Any:
    return manifest["spec"]["template"]["spec"]


def policies(**changes: Any) -> dict[str, Any]:
    return {policy["metadata"]["name"]: policy["spec"] for policy in agents.policies(build(**changes))}


def component(name: str, **labels: str) -> dict[str, Any]:
    return {"podSelector": {"matchLabels": {**LABELS, "areal.dev/component": name, **labels}}}


LABELS = {"app.kubernetes.io/managed-by": "areal-operator", "areal.dev/experiment": "case"}


def test_an_agent_gets_the_addresses_of_gateway_and_tools_and_the_key_from_its_secret() -> None:
    env = env_of(pod_of(agent()))
    key = {"secretKeyRef": {"name": "case-uid-1-gateway-api-key", "key": "api-key"}}
    assert (
        env.items()
        >= {
            "OPENAI_BASE_URL": f"{GATEWAY_URL}/v1",
            "ANTHROPIC_BASE_URL": GATEWAY_URL,
            "AREAL_GATEWAY_URL": GATEWAY_URL,
            "AREAL_TOOL_RUN_PYTHON_URL": "http://case-tool-run-python.ns.svc:8000",
        }.items()
    )
    assert (env["OPENAI_API_KEY"], env["ANTHROPIC_API_KEY"]) == (key, key)
    assert base64.b64decode(agents.gateway_key(build())["data"]["api-key"]) == b"adm1n"


def test_variables_of_the_user_take_precedence() -> None:
    env = env_of(pod_of(agent(env=[{"name": "OPENAI_API_KEY", "value": "none"}])))
    assert env["OPENAI_API_KEY"] == "none"


@pytest.mark.parametrize("pod", [pod_of(agent()), pod_of(tool())], ids=["agent", "tool"])
def test_pods_have_no_token_no_volume_of_the_run_no_privileges_and_limits(pod: Any) -> None:
    assert pod["automountServiceAccountToken"] is False
    assert pod["volumes"] == [{"name": "areal-tmp", "emptyDir": {"sizeLimit": "1Gi"}}]
    assert pod["securityContext"]["runAsNonRoot"] is True
    [container] = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"] == {"cpu": "1", "memory": "1Gi"}


def test_a_tool_gets_no_key_and_is_probed() -> None:
    [container] = pod_of(tool(port=9000))["containers"]
    assert "secret" not in json.dumps(pod_of(tool()))
    assert {container[f"{kind}Probe"]["tcpSocket"]["port"] for kind in ("startup", "readiness", "liveness")} == {9000}


def test_the_image_of_the_trainer_is_the_default_with_its_pull_secrets() -> None:
    trainer = {"trainer__imagePullSecrets": [{"name": "registry"}], "trainer__imagePullPolicy": "Always"}
    made = build(agents=[{"name": "own", "image": "x:1"}, {"name": "default"}], **trainer)
    own, default = (pod_of(agents.program_set(made, one)) for one in made.experiment.spec.agents)
    assert (default["containers"][0]["image"], default["imagePullSecrets"]) == ("trainer:cuda", [{"name": "registry"}])
    assert default["containers"][0]["imagePullPolicy"] == "Always"
    assert (own["containers"][0]["image"], "imagePullSecrets" in own) == ("x:1", False)


def test_the_command_is_left_as_it_is() -> None:
    [container] = pod_of(agent(command=["run", "$(HOME)"], args=["-x"]))["containers"]
    assert (container["command"], container["args"]) == (["run", "$(HOME)"], ["-x"])


def test_agents_and_the_listed_peers_reach_only_the_gateway_of_the_run() -> None:
    peer = {"namespaceSelector": {"matchLabels": {"team": "x"}}}
    found = policies(agents=[{"name": "solver"}], gateway__allowFrom=[peer])
    port = [{"protocol": "TCP", "port": 8400}]
    assert found["case-gateway"] == {
        "podSelector": {"matchLabels": {**LABELS, **GATEWAY}},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [component("agent"), peer], "ports": port}],
    }
    own = found["case-agents"]
    assert (own["podSelector"], own["policyTypes"], own["ingress"]) == (
        component("agent")["podSelector"],
        ["Ingress", "Egress"],
        [],
    )
    gateway, tools, dns = own["egress"]
    assert gateway == {"to": [{"podSelector": {"matchLabels": {**LABELS, **GATEWAY}}}], "ports": port}
    assert tools == {"to": [component("tool")]}
    assert [entry["port"] for entry in dns["ports"]] == [53, 53]
    assert set(found) == {"case-gateway", "case-agents"}


@pytest.mark.parametrize(
    ("allowed", "rules"),
    [
        (None, [{}]),
        ((), []),
        (({"ipBlock": {"cidr": "10.0.0.0/8"}},), [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]),
    ],
)
def test_an_agent_reaches_external_networks_only_as_far_as_the_chart_allows(allowed: Any, rules: Any) -> None:
    made = build(agents=[{"name": "web", "externalNetwork": True}, {"name": "solver"}])
    made = replace(made, settings=replace(SETTINGS, egress_to=allowed))
    [external] = [one for one in agents.policies(made) if one["metadata"]["name"] == "case-agents-external"]
    assert external["spec"]["egress"] == rules
    assert (
        external["spec"]["podSelector"] == component("agent", **{"areal.dev/external-network": "true"})["podSelector"]
    )
    web, solver = (agents.program_set(made, one)["spec"]["template"]["metadata"] for one in made.experiment.spec.agents)
    assert web["labels"]["areal.dev/external-network"] == "true"
    assert "areal.dev/external-network" not in solver["labels"]


def test_tools_are_reached_by_agents_and_the_trainer_and_reach_nothing() -> None:
    made = policies(tools=[{"name": "a", "port": 9000}, {"name": "b"}], config__rollout__agent__mode="inline")
    ports = [{"protocol": "TCP", "port": port} for port in (8000, 9000)]
    assert made == {
        "case-tools": {
            **component("tool"),
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [component("agent"), component("trainer")], "ports": ports}],
            "egress": [],
        }
    }


def test_the_gateway_has_a_headless_service_of_the_pod_with_rank_0() -> None:
    spec = agents.gateway_service(build())["spec"]
    assert (spec["clusterIP"], spec["ports"][0]["port"]) == ("None", 8400)
    assert spec["selector"] == {**LABELS, **GATEWAY}


def test_code_in_a_config_map_is_prepared_without_network_or_volume_of_the_run_and_is_first_on_the_path() -> None:
    made = build(agents=[{**PROGRAM, "args": ["--fast"]}], code={"archive": ARCHIVE})
    manifest = agents.program_set(made, made.experiment.spec.agents[0])
    pod = pod_of(manifest)
    (fetch,), [container] = pod["initContainers"], pod["containers"]
    assert (fetch["name"], fetch["image"], fetch["command"][-5:]) == (
        "code",
        "trainer:cuda",
        ["/opt/areal-code", "--layers", "/opt/areal-code/.packages", "--archive", "/etc/areal/code/code.tar.gz"],
    )
    assert pod["volumes"][1:] == [
        {"name": "areal-code", "emptyDir": {"sizeLimit": "1Gi"}},
        {"name": "areal-code-archive", "configMap": {"name": ARCHIVE["configMap"]}},
    ]
    assert {"name": "areal-code", "mountPath": "/opt/areal-code", "readOnly": True} in container["volumeMounts"]
    assert (container["command"][-3:], container["args"]) == (["python3", "-m", "solver"], ["--fast"])
    shown = [*container["command"][:-3], "/bin/sh", "-c", "echo $PYTHONPATH"]
    done = subprocess.run(shown, env={"PYTHONPATH": "/opt/areal"}, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "/opt/areal-code/source:/opt/areal"
    assert "areal.dev/external-network" not in manifest["spec"]["template"]["metadata"]["labels"]


def test_the_containers_that_prepare_code_have_the_trainers_credentials_and_the_bounds_of_the_agent() -> None:
    secret = {"name": "AREAL_GIT_PASSWORD", "valueFrom": {"secretKeyRef": {"name": "git", "key": "token"}}}
    trainer = {"trainer__env": [secret], "trainer__fabric": {"ipcLock": True}}
    limits = {"limits": {"cpu": "1", "memory": "2Gi", "nvidia.com/gpu": "1"}}
    agent = {**PROGRAM, "externalNetwork": True, "resources": limits}
    archive = {"archive": {"sha256": "b" * 64}, "requirements": ["a"]}
    made = build(agents=[agent], code=archive, storage__bucket={"url": "s3://team"}, **trainer)
    pod = pod_of(agents.program_set(made, made.experiment.spec.agents[0]))
    assert [one["name"] for one in pod["initContainers"]] == ["download-code", "code"]
    for one in pod["initContainers"]:
        assert secret in one["env"]
        assert one["resources"] == {"limits": {"cpu": "1", "memory": "2Gi"}}
        assert one["securityContext"] == pod["containers"][0]["securityContext"]
        assert "areal-run" not in str(one)
    assert "AREAL_GIT_PASSWORD" not in str(pod["containers"])


def test_pods_without_code_true_get_no_code() -> None:
    made = build(agents=[{"name": "solver"}], tools=[{"name": "python"}], code={"archive": ARCHIVE})
    for one in (*made.experiment.spec.agents, *made.experiment.spec.tools):
        assert "code" not in json.dumps(pod_of(agents.program_set(made, one)))


def test_code_in_an_image_of_the_user_needs_the_pull_secrets_of_both_images() -> None:
    trainer = {"trainer__imagePullSecrets": [{"name": "a"}, {"name": "b"}]}
    tool = {**PROGRAM, "image": "x:1", "imagePullSecrets": [{"name": "b"}, {"name": "c"}]}
    made = build(tools=[tool], code={"archive": ARCHIVE}, **trainer)
    pod = pod_of(agents.program_set(made, made.experiment.spec.tools[0]))
    assert pod["imagePullSecrets"] == [{"name": "b"}, {"name": "c"}, {"name": "a"}]
    assert (pod["initContainers"][0]["image"], pod["containers"][0]["image"]) == ("trainer:cuda", "x:1")


def test_the_longest_names_fit_into_labels() -> None:
    made = build(agents=[{"name": "a" * 24}])
    name = agents.set_name("b" * (MAX_NAMES_LENGTH - 24), made.experiment.spec.agents[0])
    assert len(f"{name}-{'h' * 10}") <= 63  # the label controller-revision-hash
