"""A real Prometheus with the chart's scrape configuration and rules, and promtool."""

from __future__ import annotations

import json
import math
import re
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from hack.cluster.control_plane import BuildError, binaries, die_with_parent, free_ports
from hack.testbed.kube_api import eventually

BUILD = Path(__file__).parents[2] / "hack" / "cluster" / "prometheus.sh"
SCRAPE_S = 1
Object = dict[str, Any]


def prometheus_binaries() -> Path:
    """The folder of prometheus and promtool; skips the test if they cannot be built."""
    try:
        return binaries(BUILD)
    except (BuildError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"Prometheus is not available: {error}")


@dataclass(frozen=True)
class Pod:
    """A scrape target as Prometheus would discover it in a cluster."""

    address: str
    namespace: str
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


def scrape(monitor: Object, pods: Sequence[Pod]) -> Object:
    """The scrape configuration of a ServiceMonitor or PodMonitor, with ``pods`` in place of service discovery."""
    spec = monitor["spec"]
    [endpoint] = spec.get("endpoints") or spec["podMetricsEndpoints"]
    relabelings: list[Object] = [
        {"sourceLabels": ["__meta_kubernetes_namespace"], "targetLabel": "namespace"},
        {"sourceLabels": ["__meta_kubernetes_pod_name"], "targetLabel": "pod"},
        *endpoint.get("relabelings", ()),
    ]
    return {
        "job_name": f"{monitor['kind']}/{monitor['metadata']['name']}",
        "metrics_path": endpoint["path"],
        "honor_labels": endpoint.get("honorLabels", False),
        "scrape_interval": f"{SCRAPE_S}s",
        "relabel_configs": [{_snake(key): value for key, value in one.items()} for one in relabelings],
        "static_configs": [{"targets": [pod.address], "labels": _discovered(pod)} for pod in pods],
    }


def rule_groups(rule: Object) -> str:
    """A PrometheusRule as a rule file."""
    return yaml.safe_dump(rule["spec"])


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str) -> None:
        self._url = url

    @property
    def ready(self) -> bool:
        """Whether it answers queries."""
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=10.0):
                return True
        except urllib.error.URLError:
            return False

    def values(self, expression: str) -> list[float]:
        """Current values of an expression, without NaN."""
        found = self._get("query", query=expression)["result"]
        numbers = [float(one["value"][1]) for one in found]
        return [number for number in numbers if not math.isnan(number)]

    def labels(self, expression: str) -> list[dict[str, str]]:
        """Labels of the series that an expression selects now."""
        return [one["metric"] for one in self._get("query", query=expression)["result"]]

    def rules(self) -> list[Object]:
        """The rules with their state and health."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def _get(self, what: str, **parameters: str) -> Any:
        url = f"{self._url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10.0) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error


@contextmanager
def prometheus(folder: Path, scrapes: Sequence[Object], rules: str) -> Iterator[Prometheus]:
    """Start a Prometheus and wait until it has scraped every target once."""
    program = prometheus_binaries() / "prometheus"
    (folder / "rules.yml").write_text(rules)
    config = {
        "global": {"evaluation_interval": f"{SCRAPE_S}s"},
        "rule_files": ["rules.yml"],
        "scrape_configs": list(scrapes),
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    [port] = free_ports(1)
    command = [
        *[str(program), f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"],
        *[f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"],
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, preexec_fn=die_with_parent)
    running = Prometheus(f"http://127.0.0.1:{port}")
    targets = sum(len(one["static_configs"]) for one in scrapes)

    def scraped() -> bool:
        assert process.poll() is None, (folder / "prometheus.log").read_text()[-3000:]
        return running.ready and running.values("sum(up)") == [targets]

    try:
        eventually(scraped, f"{targets} targets are scraped", 60.0)
        yield running
    finally:
        process.terminate()
        process.wait(20.0)


def promtool(*arguments: str, folder: Path) -> str:
    """Run promtool and return its output; a failure fails the test with that output."""
    command = [str(prometheus_binaries() / "promtool"), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _discovered(pod: Pod) -> dict[str, str]:
    labels = {
        f"__meta_kubernetes_pod_label_{re.sub(r'[^A-Za-z0-9_]', '_', key)}": value for key, value in pod.labels.items()
    }
    return {"__meta_kubernetes_namespace": pod.namespace, "__meta_kubernetes_pod_name": pod.name, **labels}


def _snake(key: str) -> str:
    return re.sub(r"[A-Z]", lambda letter: f"_{letter[0].lower()}", key)
