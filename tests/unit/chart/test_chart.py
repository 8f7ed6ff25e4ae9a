"""Rendering of the chart and validation of its values. tests/control_plane/test_chart_releases.py installs it."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

import dashboard
import generate
from areal_api import names, resource_names
from areal_api.load import load_experiment, parse_experiment
from areal_launcher.cli import run_parser
from areal_operator.cluster import CHILD_KINDS, KINDS
from areal_operator.leader import NAME as LEASE
from areal_operator.manifests import pod_groups
from areal_operator.manifests.base import Build
from areal_operator.manifests.shared import network_policy
from areal_operator.metrics import EXPERIMENT_GAUGES, Metrics
from areal_operator.pruning import PRUNED_KINDS
from areal_operator.root_key import ROOT_KEY
from areal_operator.settings import GANG_APIS, Settings
from support.chart import CHART, CPU, ROOT, Helm, HelmError, environment, one, operator_container
from support.operator_objects import decide, manifest, state

EVERYTHING = (
    "ui.enabled=true",
    "operator.replicas=3",
    "operator.watchNamespaces={areal,other}",
    "networkPolicy.enabled=true",
    "networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.team=monitoring",
    "serviceMonitor.enabled=true",
    "podMonitor.enabled=true",
    "grafanaDashboard.enabled=true",
    "grafanaDashboard.annotations.folder=RL",
    "prometheusRule.enabled=true",
    "experiment.enabled=true",
    "image.pullSecrets[0].name=registry",
    "image.pullPolicy=Always",
    "operator.nodeSelector.pool=cpu",
    "operator.tolerations[0].key=x",
    "operator.priorityClassName=high",
    "operator.podLabels.team=rl",
    "operator.podAnnotations.note=x",
)


@pytest.fixture(scope="module")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    return Helm(tmp_path_factory.mktemp("helm"))


def values() -> dict[str, Any]:
    return dict(yaml.safe_load((CHART / "values.yaml").read_text()))


def test_generated_files_of_the_chart_are_up_to_date() -> None:
    for path, text in generate.texts().items():
        assert path.read_text() == text, f"{path.name} is out of date; run: python helm/generate.py --write"


def test_the_chart_and_the_project_have_the_same_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, version)


def test_the_page_is_off_by_default(helm: Helm) -> None:
    assert not [obj["kind"] for obj in helm.template() if "page" in obj["metadata"]["name"]]


def test_the_page_has_its_own_account_that_may_only_list_experiments_and_review(helm: Helm) -> None:
    everywhere = helm.template("ui.enabled=true")
    role = one(everywhere, "ClusterRole", "areal:areal-gsm8k-page")
    assert {(resource, *rule["verbs"]) for rule in role["rules"] for resource in rule["resources"]} == {
        ("grpoexperiments", "list"),
        ("tokenreviews", "create"),
        ("subjectaccessreviews", "create"),
    }
    watched = helm.template("ui.enabled=true", "operator.watchNamespaces={a,b}")
    role = one(watched, "ClusterRole", "areal:areal-gsm8k-page")
    assert {resource for rule in role["rules"] for resource in rule["resources"]} == {
        "tokenreviews",
        "subjectaccessreviews",
    }
    roles = [obj for obj in watched if obj["kind"] == "Role" and obj["metadata"]["name"].endswith("page")]
    assert sorted(obj["metadata"]["namespace"] for obj in roles) == ["a", "b"]
    pod = one(watched, "Deployment", "areal-gsm8k-page")["spec"]["template"]
    assert pod["spec"]["serviceAccountName"] == "areal-gsm8k-page"
    assert environment(pod["spec"]["containers"][0])["AREAL_WATCH_NAMESPACES"] == "a,b"


def test_the_selectors_of_operator_and_page_do_not_match_each_others_pods(helm: Helm) -> None:
    objects = helm.template("ui.enabled=true")
    deployments = [obj["spec"] for obj in objects if obj["kind"] == "Deployment"]
    for spec in deployments:
        selector = spec["selector"]["matchLabels"].items()
        assert sum(selector <= other["template"]["metadata"]["labels"].items() for other in deployments) == 1


def test_only_listed_peers_may_connect_to_the_page(helm: Helm) -> None:
    assert one(helm.template("ui.enabled=true"), "NetworkPolicy", "areal-gsm8k-page")["spec"]["ingress"] == []
    peer = "ui.allowFrom[0].namespaceSelector.matchLabels.team=ingress"
    policy = one(helm.template("ui.enabled=true", peer), "NetworkPolicy", "areal-gsm8k-page")
    assert policy["spec"]["ingress"] == [
        {"from": [{"namespaceSelector": {"matchLabels": {"team": "ingress"}}}], "ports": [{"port": "http"}]}
    ]


def test_rules_list_permissions_without_wildcards() -> None:
    rules = yaml.safe_load((CHART / "files" / "rules.yaml").read_text())
    gangs = {f"gang-{api}" for api in GANG_APIS}
    assert set(rules) == {"experiments", "own", "cluster", "kueue", "kueueCluster", "page", "pageCluster", *gangs}
    assert "*" not in json.dumps(rules)
    names = [name for rule in rules["own"] for name in rule.get("resourceNames", [])]
    assert names == [LEASE, ROOT_KEY]


def test_permissions_are_exactly_those_that_the_operator_uses() -> None:
    """Applying needs create and patch, a look before the creation of an object get, and the caches list and watch."""
    plurals = {kind: plural for kind, (_, plural) in KINDS.items()}
    expected = {plurals[kind]: {"get", "list", "watch", "create", "patch"} for kind in CHILD_KINDS}
    for kind in set(PRUNED_KINDS) - set(pod_groups.KINDS):  # gang-… has those
        expected[plurals[kind]].add("delete")
    expected |= {
        "pods": {"list", "watch"},
        "secrets": {"create"},
        "events": {"create", "list"},
        "resourcequotas": {"list"},
        "grpoexperiments": {"get", "list", "watch", "delete"},  # delete: runPolicy.ttlSecondsAfterFinished
        "grpoexperiments/status": {"patch"},
    }
    rules = yaml.safe_load((CHART / "files" / "rules.yaml").read_text())["experiments"]
    found = [(resource, set(rule["verbs"])) for rule in rules for resource in rule["resources"]]
    assert len(found) == len(expected)
    assert dict(found) == expected


def test_the_schema_has_exactly_the_values() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    for section, below in values().items():
        node = schema["properties"][section]
        assert node["additionalProperties"] is False
        assert set(node["properties"]) - {"global"} == set(below)
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) - {"global"} == set(values())


@pytest.mark.parametrize("more", [(), (f"--values={CPU}",), tuple(f"--set={setting}" for setting in EVERYTHING)])
def test_the_chart_passes_helm_lint(helm: Helm, more: tuple[str, ...]) -> None:
    helm.run("lint", "--strict", str(CHART), "--namespace=areal", *more)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("operator.replica=2", "'replica' not allowed"),
        ("operator.replicas=0", "got 0, want 1"),
        ("operator.workers=many", "got string, want integer"),
        ("operator.watchNamespaces=x", "got string, want array"),
        ("operator.watchNamespaces={A}", "does not match pattern"),
        ("image.registry=https://x", "does not match pattern"),
        ("image.tag=a b", "does not match pattern"),
        ("image.pullPolicy=Sometimes", "must be one of"),
        ("image.pullSecrets={name}", "got string, want object"),
        ("experiment.name=Big", "does not match pattern"),
        ("experiment.example=math", "must be one of '', 'gsm8k', 'tiny'"),
        ("experiment.spec.server.replicas=1", "'server' not allowed"),
        ("prometheusRule.stalledAfter=soon", "does not match pattern"),
        ("networkPolicy.metricsFrom[0].pods=x", "'pods' not allowed"),
        ("podMonitor.interval=often", "does not match pattern"),
        ("admission.volumeTypes={disk}", "must be one of"),
        ("admission.images={a b}", "does not match pattern"),
        ("admission.secrets={x'y}", "does not match pattern"),
        ("crd.enabled=false", "'crd' not allowed"),
    ],
)
def test_a_wrong_value_is_refused(helm: Helm, setting: str, says: str) -> None:
    with pytest.raises(HelmError, match=re.escape(says)):
        helm.template(setting)


def test_a_release_that_cannot_work_is_refused(helm: Helm) -> None:
    with pytest.raises(HelmError, match=r"watchNamespaces is \[other\] without the release's namespace areal"):
        helm.template("experiment.enabled=true", "operator.watchNamespaces={other}")
    with pytest.raises(HelmError, match=r"experiment\.spec has no config"):
        helm.template("experiment.enabled=true", "experiment.example=")
    with pytest.raises(HelmError, match=r'release\'s name "a\.b" cannot be part of a Service'):
        helm.template(release="a.b")


def test_the_operator_parses_its_environment_in_the_chart(helm: Helm) -> None:
    settings = Settings.from_env(environment(operator_container(helm.template(*EVERYTHING))))
    assert settings.watched == ("areal", "other")
    assert settings.progress_url == "http://areal-gsm8k-operator.areal.svc:8080"
    assert settings.metrics_from == ({"namespaceSelector": {"matchLabels": {"team": "monitoring"}}},)
    defaults, plain = Settings(), Settings.from_env(environment(operator_container(helm.template())))
    assert plain.watched == ()
    for name in ("workers", "resync_s", "waiting_s", "retry_s", "port"):
        assert getattr(plain, name) == getattr(defaults, name), name


def test_the_chart_sets_every_variable_of_the_operator(helm: Helm) -> None:
    source = (ROOT / "operator" / "areal_operator" / "settings.py").read_text()
    known = set(re.findall(r"AREAL_[A-Z_]+", source)) - {"AREAL_OPERATOR_PORT"}  # the container's port is fixed
    assert {entry["name"] for entry in operator_container(helm.template())["env"]} == known | {names.LOG_FORMAT}


def test_images_come_from_one_registry_and_tag(helm: Helm) -> None:
    container = operator_container(helm.template("image.registry=localhost:5000", "image.tag=latest"))
    env = environment(container)
    assert container["image"] == "localhost:5000/areal-operator:latest"
    assert env["AREAL_TRAINER_IMAGE"] == "localhost:5000/areal-trainer:latest"
    assert env["AREAL_TRAINER_IMAGE_CPU"] == "localhost:5000/areal-trainer:latest-cpu"
    assert env["AREAL_SERVER_IMAGE"] == "localhost:5000/areal-sglang:latest"
    assert env["AREAL_SERVER_IMAGE_CPU"] == "localhost:5000/areal-sglang:latest-cpu"


def test_a_complete_image_reference_overrides_registry_and_tag(helm: Helm) -> None:
    objects = helm.template("images.serverCpu=r/s@sha256:1", "images.operator=r/o:2")
    container = operator_container(objects)
    assert environment(container)["AREAL_SERVER_IMAGE_CPU"] == "r/s@sha256:1"
    assert container["image"] == "r/o:2"
    assert environment(container)["AREAL_TRAINER_IMAGE"] == "areal-trainer:0.1.0"


def test_an_operator_of_some_namespaces_has_permissions_only_there(helm: Helm) -> None:
    rules = yaml.safe_load((CHART / "files" / "rules.yaml").read_text())
    experiments = rules["experiments"] + rules["gang-kubernetes"]
    assert one(helm.template("rbac.userRoles=false"), "ClusterRole")["rules"] == rules["cluster"] + experiments
    objects = helm.template("operator.watchNamespaces={a,b}", "rbac.userRoles=false")
    assert one(objects, "ClusterRole")["rules"] == rules["cluster"]
    roles = {obj["metadata"]["namespace"]: obj["rules"] for obj in objects if obj["kind"] == "Role"}
    assert roles == {"areal": rules["own"], "a": experiments, "b": experiments}
    bindings = [obj for obj in objects if obj["kind"] == "RoleBinding"]
    assert sorted(obj["metadata"]["namespace"] for obj in bindings) == ["a", "areal", "b"]


def test_several_operators_are_spread_and_not_drained_together(helm: Helm) -> None:
    objects = helm.template("operator.replicas=2")
    assert one(objects, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    assert one(objects, "Deployment")["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert "PodDisruptionBudget" not in [obj["kind"] for obj in helm.template()]


def test_viewers_and_editors_are_aggregated_to_the_default_roles(helm: Helm) -> None:
    objects = helm.template()
    viewer, editor = (
        one(objects, "ClusterRole", f"areal:areal-gsm8k-operator:{role}") for role in ("viewer", "editor")
    )
    aggregated = "rbac.authorization.k8s.io/aggregate-to-"
    assert [viewer["metadata"]["labels"].get(f"{aggregated}{role}") for role in ("view", "edit")] == ["true", "true"]
    assert [editor["metadata"]["labels"].get(f"{aggregated}{role}") for role in ("view", "edit")] == [None, "true"]
    assert viewer["rules"][0]["verbs"] == ["get", "list", "watch"]
    assert "status" not in str([rule for rule in editor["rules"] if "update" in rule["verbs"]])


def test_policies_deny_what_the_values_do_not_list(helm: Helm) -> None:
    name = "areal.areal-gsm8k-operator.experiments"
    policy = one(helm.template("admission.volumeTypes={emptyDir,nfs}"), "ValidatingAdmissionPolicy", name)["spec"]
    denied = re.findall(r"!has\(v\.(\w+)\)\)\)", str(policy["validations"]))
    assert policy["failurePolicy"] == "Fail"
    assert set(denied) >= {"hostPath", "secret", "configMap", "image"}
    assert not {"emptyDir", "nfs"} & set(denied)
    assert "servers.modelCache is not allowed" in str(policy["validations"])
    usual = one(helm.template(), "ValidatingAdmissionPolicy", name)["spec"]
    assert "modelCache" not in str(usual["validations"])
    listed = str(one(helm.template("admission.images={r/*,x}"), "ValidatingAdmissionPolicy", name)["spec"])
    assert "(p.image.startsWith('r/') || p.image == 'x')" in listed
    kinds = [obj["kind"] for obj in helm.template("admission.enabled=false")]
    assert not [kind for kind in kinds if kind.startswith("ValidatingAdmission")]


def test_kueue_is_used_and_its_objects_are_permitted_only_with_its_value(helm: Helm) -> None:
    rules = yaml.safe_load((CHART / "files" / "rules.yaml").read_text())
    without = helm.template("rbac.userRoles=false")
    assert Settings.from_env(environment(operator_container(without))).kueue is False
    assert "kueue" not in str([obj for obj in without if "Role" in obj["kind"]])
    objects = helm.template("rbac.userRoles=false", "kueue.enabled=true", "kueue.namespace=queues")
    assert Settings.from_env(environment(operator_container(objects))).kueue is True
    operators, kueues = [obj for obj in objects if obj["kind"] == "ClusterRole"]
    gangs = rules["gang-kubernetes"]
    expected = [*rules["cluster"], *rules["kueueCluster"], *rules["experiments"], *rules["kueue"], *gangs]
    assert operators["rules"] == expected
    assert kueues["rules"] == [
        {"apiGroups": ["areal.dev"], "resources": ["grpoexperiments"], "verbs": ["get", "list", "watch"]}
    ]
    (binding,) = [
        obj
        for obj in objects
        if obj["kind"] == "ClusterRoleBinding" and obj["roleRef"]["name"] == kueues["metadata"]["name"]
    ]
    (subject,) = binding["subjects"]
    assert (subject["namespace"], subject["name"]) == ("queues", "kueue-controller-manager")
    watched = helm.template("rbac.userRoles=false", "kueue.enabled=true", "operator.watchNamespaces={a}")
    roles = {obj["metadata"]["namespace"]: obj["rules"] for obj in watched if obj["kind"] == "Role"}
    assert roles["a"] == rules["experiments"] + rules["kueue"] + gangs


def test_pod_groups_are_permitted_for_the_apis_of_the_schedulers_in_the_values(helm: Helm) -> None:
    rules = yaml.safe_load((CHART / "files" / "rules.yaml").read_text())
    (role,) = [obj for obj in helm.template("rbac.userRoles=false") if obj["kind"] == "ClusterRole"]
    assert role["rules"] == [*rules["cluster"], *rules["experiments"], *rules["gang-kubernetes"]]
    own = "gang.schedulers.my-volcano=volcano"
    objects = helm.template("rbac.userRoles=false", own, "gang.schedulers.default-scheduler=null")
    (role,) = [obj for obj in objects if obj["kind"] == "ClusterRole"]
    assert role["rules"] == [*rules["cluster"], *rules["experiments"], *rules["gang-volcano"]]
    settings = Settings.from_env(environment(operator_container(objects)))
    assert settings.gang_schedulers == (("my-volcano", "volcano"),)
    for api in GANG_APIS:
        (rule,) = rules[f"gang-{api}"]
        assert (rule["apiGroups"], rule["resources"]) == (
            [pod_groups.APIS[api].api_version.split("/")[0]],
            ["podgroups"],
        )
        assert set(rule["verbs"]) == {"get", "list", "watch", "create", "patch", "delete"}


def test_what_experiments_may_use_of_the_fabric_is_denied_until_the_values_allow_it(helm: Helm) -> None:
    name = "areal.areal-gsm8k-operator"
    for more, allowed in (
        ((), set()),
        (("fabric.ipcLock=true", "fabric.hostNetwork=true"), {"ipcLock", "hostNetwork"}),
    ):
        objects = helm.template(*more)
        assert Settings.from_env(environment(operator_container(objects))).fabric == allowed
        experiments = str(one(objects, "ValidatingAdmissionPolicy", f"{name}.experiments"))
        assert set(re.findall(r"!p\.fabric\.(\w+)\)", experiments)) == {"ipcLock", "hostNetwork"} - allowed
        operator = str(one(objects, "ValidatingAdmissionPolicy", f"{name}.operator"))
        assert ("hostNetwork" in operator) is not bool(allowed)
        assert "hostPID" in operator


def test_only_pods_that_the_operator_created_in_watched_namespaces_reach_it(helm: Helm) -> None:
    spec = one(helm.template("operator.watchNamespaces={a}"), "NetworkPolicy")["spec"]
    peer = spec["ingress"][0]["from"][0]
    assert peer["namespaceSelector"]["matchExpressions"][0]["values"] == ["a"]
    assert {entry["key"] for entry in peer["podSelector"]["matchExpressions"]} == {
        resource_names.EXPERIMENT,
        resource_names.MANAGED_BY,
    }


def test_the_operator_reaches_only_dns_and_the_api_server(helm: Helm) -> None:
    spec = one(helm.template("networkPolicy.apiServerPorts={8443}"), "NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert [[port["port"] for port in rule["ports"]] for rule in spec["egress"]] == [[53, 53], [8443]]


def test_pods_of_experiments_select_the_operator_by_the_labels_of_its_pods(helm: Helm) -> None:
    objects = helm.template()
    variables = environment(operator_container(objects))
    settings = Settings.from_env({**variables, "AREAL_OPERATOR_NAMESPACE": "areal"})
    policy = network_policy(
        Build(load_experiment(ROOT / "examples/tiny/experiment.yaml", []), "x", "u", 1, "", "", settings)
    )
    _, _, operator, everywhere = policy["spec"]["egress"]
    labels = one(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert operator["to"][0]["podSelector"]["matchLabels"].items() <= labels.items()
    assert [peer["ipBlock"]["cidr"] for peer in everywhere["to"]] == ["0.0.0.0/0", "::/0"]
    assert "169.254.0.0/16" in everywhere["to"][0]["ipBlock"]["except"]


@pytest.mark.parametrize("example", ["gsm8k", "tiny"])
def test_the_experiment_is_the_example(helm: Helm, example: str) -> None:
    objects = helm.template("experiment.enabled=true", f"experiment.example={example}", f"experiment.name={example}")
    rendered = one(objects, "GRPOExperiment")
    committed = yaml.safe_load((ROOT / "examples" / example / "experiment.yaml").read_text())
    assert parse_experiment(rendered, source="chart").spec == parse_experiment(committed, source="file").spec


def test_values_for_the_cpu_run_the_tiny_experiment(helm: Helm) -> None:
    rendered = one(helm.template(more=[f"--values={CPU}"]), "GRPOExperiment")
    assert rendered["metadata"]["name"] == "tiny"
    assert rendered["spec"]["servers"]["device"] == "cpu"


def test_the_spec_is_merged_over_the_example(helm: Helm) -> None:
    settings = ("experiment.spec.servers.replicas=2", "experiment.spec.config.actor.path=other")
    secrets = ("image.pullSecrets[0].name=registry", "experiment.spec.trainer.imagePullSecrets[0].name=own")
    spec = one(helm.template("experiment.enabled=true", *settings, *secrets), "GRPOExperiment")["spec"]
    assert (spec["servers"]["replicas"], spec["servers"]["device"]) == (2, "cuda")
    assert (spec["config"]["actor"]["path"], spec["config"]["actor"]["kl_ctl"]) == ("other", 0)
    assert spec["servers"]["imagePullSecrets"] == [{"name": "registry"}]
    assert spec["trainer"]["imagePullSecrets"] == [{"name": "own"}]


def test_an_experiment_may_be_complete_in_the_values(helm: Helm, tmp_path: Path) -> None:
    spec = {"config": {"actor": {"path": "m"}, "train_dataset": {"path": "d", "batch_size": 8}}}
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump({"experiment": {"enabled": True, "example": "", "spec": spec}}))
    assert one(helm.template(more=[f"--values={file}"]), "GRPOExperiment")["spec"]["config"] == spec["config"]


def test_the_definition_is_left_out_where_it_is_not_wanted(helm: Helm) -> None:
    kinds = [obj["kind"] for obj in helm.template("crds.enabled=false", more=["--include-crds"])]
    assert "CustomResourceDefinition" not in kinds
    assert [obj["kind"] for obj in helm.template(more=["--include-crds"])].count("CustomResourceDefinition") == 2


def operator_metrics() -> set[str]:
    """Names of everything that an operator tells."""
    metrics = Metrics()
    status = {
        "phase": "Running",
        **dict.fromkeys((field for _, field in EXPERIMENT_GAUGES.values()), 1),
        "servers": {"ready": 1, "desired": 1},
        "healthWarnings": ["drift"],
    }
    metrics.add_gauges(queue_depth=lambda: 0, leads=lambda: True, experiments=lambda: {("ns", "x"): status})
    return {sample.name for family in metrics.registry.collect() for sample in family.samples}


def test_the_operating_guide_lists_every_metric_of_an_experiment() -> None:
    text = (ROOT / "docs" / "operating.md").read_text()
    assert [name for name in EXPERIMENT_GAUGES if f"`{name.removeprefix('areal_experiment')}`" not in text] == []


def test_alerts_use_metrics_that_the_operator_exports(helm: Helm) -> None:
    exported = operator_metrics()
    rule = one(helm.template("prometheusRule.enabled=true", "prometheusRule.stalledAfter=2h"), "PrometheusRule")
    alerts = rule["spec"]["groups"][0]["rules"]
    assert len(alerts) == 8
    for alert in alerts:
        used = set(re.findall(r"areal_\w+", alert["expr"]))
        assert used, alert
        assert used <= exported, alert["alert"]
    assert [alert["for"] for alert in alerts if alert["alert"] == "ArealRunStalled"] == ["2h"]


def test_the_pod_monitor_selects_the_servers_of_experiments(helm: Helm) -> None:
    spec = one(helm.template("podMonitor.enabled=true"), "PodMonitor")["spec"]
    pods = resource_names.component_labels("x", resource_names.SERVER)
    assert spec["selector"]["matchLabels"].items() <= pods.items()
    assert resource_names.EXPERIMENT not in spec["selector"]["matchLabels"]
    assert spec["namespaceSelector"] == {"any": True}
    [endpoint] = spec["podMetricsEndpoints"]
    [port] = manifest(decide(state()), "StatefulSet")["spec"]["template"]["spec"]["containers"][0]["ports"]
    assert (endpoint["port"], endpoint["path"]) == (port["name"], "/metrics")
    label = re.sub(r"[^a-z]", "_", resource_names.EXPERIMENT)
    assert endpoint["relabelings"] == [
        {"sourceLabels": [f"__meta_kubernetes_pod_label_{label}"], "targetLabel": "name"}
    ]
    watching = one(helm.template("podMonitor.enabled=true", "operator.watchNamespaces={a,b}"), "PodMonitor")["spec"]
    assert watching["namespaceSelector"] == {"matchNames": ["a", "b"]}


def test_the_dashboard_is_in_a_config_map_that_grafanas_sidecar_finds(helm: Helm) -> None:
    found = one(helm.template("grafanaDashboard.enabled=true"), "ConfigMap", "areal-gsm8k-operator-dashboard")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(found["data"]["areal.json"]) == dashboard.dashboard()


def test_the_notes_show_how_to_watch(helm: Helm) -> None:
    text = helm.run("install", "r", str(CHART), "--dry-run=client", f"--values={CPU}", "--namespace=areal")
    assert "kubectl -n areal get grpo tiny --watch" in text
    text = helm.run("install", "r", str(CHART), "--dry-run=client", "--set=operator.watchNamespaces={a,default}")
    assert "get grpo gsm8k --watch" in text
    assert "manages GRPOExperiments in a, default." in text


DOCUMENTS = ("docs/quickstart.md", "helm/areal-gsm8k/README.md")


def commands(document: str, program: str) -> list[list[str]]:
    """The commands of a document that run a program, split into words."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", "").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith(f"{program} ")]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_helm_commands_in_documents_render(helm: Helm, document: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = [words for words in commands(document, "helm") if words[0] in ("install", "upgrade")]
    assert found
    for words in found:
        rendered = helm.run("template", *[word for word in words[1:] if word not in ("--wait", "--create-namespace")])
        one([obj for obj in yaml.safe_load_all(rendered) if obj], "Deployment")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_in_documented_commands_are_experiments(document: str) -> None:
    for words in commands(document, "grpo"):
        if words[0] == "run":
            file, *overrides = run_parser().parse_intermixed_args(words[1:]).items
            load_experiment(ROOT / file, overrides)
    for words in commands(document, "kubectl"):
        for file in [after for word, after in pairwise(words) if word == "-f" and words[0] == "apply"]:
            parse_experiment(yaml.safe_load((ROOT / file).read_text()), source=file)
