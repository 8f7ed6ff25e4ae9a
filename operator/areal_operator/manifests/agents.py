"""Pods of agents and tools, the Services of gateway and tools, and the network policies between them.

Agents reach the gateway, tools and DNS; tools are reached by agents and the trainer, and reach nothing. Neither has a
token of the service account, a volume of the run, or the servers' API key. The init containers of ``code: true`` have
the trainer's environment, which may contain credentials; they have ended when the program starts.
"""

from __future__ import annotations

from areal_api import names, resource_names
from areal_api.agents import AgentPod, AgentSpec, ToolSpec
from areal_api.commands import bucket_env, with_code
from areal_operator.manifests import code
from areal_operator.manifests.base import Build, Manifest, owned
from areal_operator.manifests.pod import (
    environment,
    node_tolerations,
    scheduling_gates,
    security_context,
    unprivileged,
    without_devices,
)
from areal_operator.manifests.servers import PYTHON
from areal_operator.manifests.shared import API_KEY, base64_text, dns_rule

ATTEMPT = "areal.dev/attempt"  # annotation of an agent's StatefulSet: the attempt of the trainer that it was started in
TMP_SIZE = "1Gi"
TOOL_PROBE_S = 10


def access(build: Build) -> list[Manifest]:
    """What agents and tools need besides their pods: the gateway's key, addresses, and network policies."""
    spec = build.experiment.spec
    gateway = [gateway_key(build), gateway_service(build)] if spec.has_gateway else []
    return [*policies(build), *gateway, *(tool_service(build, tool) for tool in spec.tools)]


def gateway_key(build: Build) -> Manifest:
    """The Secret with the admin key that opens sessions."""
    return owned(
        build,
        api_version="v1",
        kind="Secret",
        name=resource_names.gateway_key_secret(build.name, build.uid),
        labels=resource_names.labels(build.name),
        body={"immutable": True, "type": "Opaque", "data": {API_KEY: base64_text(build.gateway_key)}},
    )


def gateway_service(build: Build) -> Manifest:
    """The address of the gateway: of the pod with rank 0, once it listens."""
    return _service(build, resource_names.gateway(build.name), _gateway_pod(build), resource_names.GATEWAY_PORT)


def tool_service(build: Build, tool: ToolSpec) -> Manifest:
    """The address of a tool's pods that are ready."""
    return _service(build, resource_names.tool(build.name, tool.name), _pod_labels(build, tool), tool.port)


def program_set(build: Build, program: AgentPod) -> Manifest:
    """The StatefulSet of an agent or a tool."""
    return _tool_set(build, program) if isinstance(program, ToolSpec) else _agent_set(build, program)


def _agent_set(build: Build, agent: AgentPod) -> Manifest:
    """The StatefulSet of an agent. The kubelet restarts its containers, with a delay of at most five minutes."""
    access = {
        names.GATEWAY_URL: (url := resource_names.gateway_url(build.name, build.namespace)),
        "OPENAI_BASE_URL": f"{url}/v1",
        "ANTHROPIC_BASE_URL": url,
        **tool_urls(build),
    }
    key = {"name": resource_names.gateway_key_secret(build.name, build.uid), "key": API_KEY}
    keys: list[Manifest] = [
        {"name": name, "valueFrom": {"secretKeyRef": key}} for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY")
    ]
    container = {**_container(build, agent, "agent"), "env": environment(build, agent, access, keys)}
    return _set(build, agent, container, annotations={ATTEMPT: str(build.attempt)})


def _tool_set(build: Build, tool: ToolSpec) -> Manifest:
    """The StatefulSet of a tool. A server that stops listening is restarted."""
    probe = {"tcpSocket": {"port": tool.port}, "periodSeconds": TOOL_PROBE_S, "timeoutSeconds": 5}
    container = {
        **_container(build, tool, "tool"),
        "env": environment(build, tool, {}, []),
        "ports": [{"name": "http", "containerPort": tool.port, "protocol": "TCP"}],
        "startupProbe": {**probe, "periodSeconds": 2, "failureThreshold": 150},
        "readinessProbe": probe,
        "livenessProbe": {**probe, "failureThreshold": 6},
    }
    return _set(build, tool, container)


def tool_urls(build: Build) -> dict[str, str]:
    """Environment variables with the addresses of the tools, for agents and the trainer."""
    return {
        names.tool_url(tool.name): resource_names.tool_url(build.name, tool.name, build.namespace, tool.port)
        for tool in build.experiment.spec.tools
    }


def policies(build: Build) -> list[Manifest]:
    """The network policies of gateway, agents and tools."""
    spec, result = build.experiment.spec, []
    agents = {"podSelector": {"matchLabels": resource_names.component_labels(build.name, resource_names.AGENT)}}
    tools = {"podSelector": {"matchLabels": resource_names.component_labels(build.name, resource_names.TOOL)}}
    trainer = {"podSelector": {"matchLabels": resource_names.component_labels(build.name, resource_names.TRAINER)}}
    if spec.has_gateway:
        gateway = {"podSelector": {"matchLabels": _gateway_pod(build)}}
        rule = {"from": [agents, *spec.gateway.allow_from], "ports": [_port(resource_names.GATEWAY_PORT)]}
        body = {**gateway, "policyTypes": ["Ingress"], "ingress": [rule]}
        result.append(_policy(build, resource_names.gateway(build.name), body))
        egress = [{"to": [gateway], "ports": [_port(resource_names.GATEWAY_PORT)]}, {"to": [tools]}, dns_rule()]
        body = {**agents, "policyTypes": ["Ingress", "Egress"], "ingress": [], "egress": egress}
        result.append(_policy(build, resource_names.agents_policy(build.name), body))
    if any(agent.external_network for agent in spec.agents):
        labels = {**agents["podSelector"]["matchLabels"], resource_names.EXTERNAL: "true"}
        allowed = build.settings.egress_to
        rules = [{}] if allowed is None else [{"to": [dict(peer) for peer in allowed]}] if allowed else []
        body = {"podSelector": {"matchLabels": labels}, "policyTypes": ["Egress"], "egress": rules}
        result.append(_policy(build, resource_names.external_agents_policy(build.name), body))
    if spec.tools:
        ports = [_port(port) for port in sorted({tool.port for tool in spec.tools})]
        ingress = [{"from": [agents, trainer], "ports": ports}]
        body = {**tools, "policyTypes": ["Ingress", "Egress"], "ingress": ingress, "egress": []}
        result.append(_policy(build, resource_names.tools_policy(build.name), body))
    return result


def _policy(build: Build, name: str, spec: Manifest) -> Manifest:
    return owned(
        build,
        api_version="networking.k8s.io/v1",
        kind="NetworkPolicy",
        name=name,
        labels=resource_names.labels(build.name),
        body={"spec": spec},
    )


def _port(port: int) -> Manifest:
    return {"protocol": "TCP", "port": port}


def _gateway_pod(build: Build) -> Manifest:
    labels = resource_names.component_labels(build.name, resource_names.TRAINER)
    return {**labels, resource_names.JOB_INDEX: "0"}


def _service(build: Build, name: str, selector: Manifest, port: int) -> Manifest:
    return owned(
        build,
        api_version="v1",
        kind="Service",
        name=name,
        labels=resource_names.labels(build.name),
        body={
            "spec": {
                "clusterIP": "None",
                "selector": selector,
                "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
            }
        },
    )


def _component(pod: AgentPod) -> str:
    return resource_names.TOOL if isinstance(pod, ToolSpec) else resource_names.AGENT


def set_name(experiment: str, pod: AgentPod) -> str:
    """Name of the StatefulSet of an agent or a tool."""
    of = resource_names.tool if isinstance(pod, ToolSpec) else resource_names.agent
    return of(experiment, pod.name)


def _pod_labels(build: Build, pod: AgentPod) -> Manifest:
    return {**resource_names.component_labels(build.name, _component(pod)), resource_names.PROGRAM: pod.name}


def _set(build: Build, pod: AgentPod, container: Manifest, *, annotations: Manifest | None = None) -> Manifest:
    labels, name = _pod_labels(build, pod), set_name(build.name, pod)
    external = {resource_names.EXTERNAL: "true"} if isinstance(pod, AgentSpec) and pod.external_network else {}
    return owned(
        build,
        api_version="apps/v1",
        kind="StatefulSet",
        name=name,
        labels=labels,
        annotations=annotations,
        body={
            "spec": {
                "replicas": pod.replicas,
                "serviceName": name,
                "podManagementPolicy": "Parallel",
                "updateStrategy": {"type": "RollingUpdate"},
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {
                        "labels": {**pod.pod_labels, **labels, **external},
                        "annotations": pod.pod_annotations,
                    },
                    "spec": _pod_spec(build, pod, container),
                },
            }
        },
    )


def _pod_spec(build: Build, pod: AgentPod, container: Manifest) -> Manifest:
    spec: Manifest = {
        "initContainers": _code_containers(build, pod) if pod.code else [],
        "containers": [container],
        "serviceAccountName": resource_names.service_account(build.name),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": security_context(pod),
        "terminationGracePeriodSeconds": pod.termination_grace_period_seconds,
        "volumes": [
            {"name": "areal-tmp", "emptyDir": {"sizeLimit": TMP_SIZE}},
            *(code.volumes(build) if pod.code else []),
        ],
        "tolerations": [*node_tolerations(pod), *pod.tolerations],
        "imagePullSecrets": _pull_secrets(build, pod),
        "nodeSelector": pod.node_selector,
        "priorityClassName": pod.priority_class_name,
        "runtimeClassName": pod.runtime_class_name,
        "schedulingGates": scheduling_gates(pod),
    }
    return {key: value for key, value in spec.items() if value not in (None, {}, [])}


def _code_containers(build: Build, pod: AgentPod) -> list[Manifest]:
    """The init containers that prepare ``spec.code``, as the trainer's do. They have the resources of the program."""
    spec = build.experiment.spec
    result: Manifest = {
        "image": build.image("trainer"),
        "workingDir": str(names.IMAGE_ROOT),
        "env": environment(build, spec.trainer, bucket_env(spec), []),
        "resources": without_devices(pod.resources),
        "volumeMounts": [{"name": "areal-tmp", "mountPath": "/tmp"}, *code.mounts_to_prepare(build)],
        "imagePullPolicy": spec.trainer.image_pull_policy,
        **unprivileged(),
    }
    shared = {key: value for key, value in result.items() if value not in (None, {}, [])}
    return [
        {"name": name, "command": [word.replace("$(", "$$(") for word in [PYTHON, *command]], **shared}
        for name, command in code.commands(build, layers=code.layers_of_pod())
    ]


def _container(build: Build, pod: AgentPod, name: str) -> Manifest:
    """The container. Command and arguments are the user's, so Kubernetes replaces ``$(NAME)`` in them."""
    own_image = pod.image is not None
    mounted = code.mounts_to_use(build) if pod.code else []
    result: Manifest = {
        "name": name,
        "image": pod.image if own_image else build.image("trainer"),
        "command": with_code(list(pod.command), code.paths(build) if pod.code else None),
        "args": list(pod.args),
        "resources": pod.resources,
        "volumeMounts": [{"name": "areal-tmp", "mountPath": "/tmp"}, *mounted],
        "imagePullPolicy": pod.image_pull_policy
        or (None if own_image else build.experiment.spec.trainer.image_pull_policy),
        **unprivileged(),
    }
    return {key: value for key, value in result.items() if value not in (None, {}, [])}


def _pull_secrets(build: Build, pod: AgentPod) -> list[Manifest]:
    """Those of the pod, and those of the trainer where the pod uses its image."""
    trainers = build.experiment.spec.trainer.image_pull_secrets
    if pod.image is None:
        return pod.image_pull_secrets or trainers
    more = [one for one in trainers if one not in pod.image_pull_secrets] if pod.code else []
    return [*pod.image_pull_secrets, *more]
