"""Experiments on a real cluster: apply, inspect, kill, wait, and check finished runs."""

from __future__ import annotations

import base64
import copy
import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from areal_api import resource_names
from areal_api.areal_config.tree import set_in
from areal_operator.manifests.pod import API_KEY_FILE
from areal_operator.manifests.shared import CONFIG_KEY
from areal_operator.observed import is_active, is_terminating
from hack.cluster.kind_cluster import KindCluster
from hack.cluster.node_pods import ask, kill_process
from hack.testbed.kube_api import Object, eventually

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "examples" / "tiny"
ASK = f"""
import concurrent.futures, http.client, json, sys, threading, time
host, port = sys.argv[1].split(":")
requests, tokens = int(sys.argv[2]), int(sys.argv[3])
headers = {{"Authorization": "Bearer " + open({API_KEY_FILE!r}).read(), "Content-Type": "application/json"}}
sent = threading.Barrier(requests + 1)

def ask(number):
    sampling = {{"max_new_tokens": tokens, "ignore_eos": True}}
    connection = http.client.HTTPConnection(host, int(port), timeout=300)
    body = json.dumps({{"input_ids": [5 + number % 100] * 4, "sampling_params": sampling}})
    connection.request("POST", "/generate", body, headers)
    sent.wait()
    answer = json.load(connection.getresponse())
    return len(answer["output_ids"]), time.time()

with concurrent.futures.ThreadPoolExecutor(requests) as pool:
    answers = pool.map(ask, range(requests))
    sent.wait()
    print("begun", flush=True)
    print(json.dumps(list(answers)))
"""


@dataclass
class ClusterRun:
    """One experiment in a namespace: a file of the tiny example with ``changes`` (dotted keys below ``spec``)."""

    cluster: KindCluster
    namespace: str
    file: str = "experiment.yaml"
    changes: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def name(self) -> str:
        """Name of the experiment."""
        return str(yaml.safe_load((EXAMPLES / self.file).read_text())["metadata"]["name"])

    def apply(self) -> ClusterRun:
        """``kubectl apply`` the example; the file itself if nothing is changed."""
        if not self.changes:
            self.kubectl("apply", "-f", str(EXAMPLES / self.file))
            return self
        data = yaml.safe_load((EXAMPLES / self.file).read_text())
        for key, value in self.changes.items():
            set_in(data, f"spec.{key}", copy.deepcopy(value))
        self.kubectl("apply", "-f", "-", text=json.dumps(data))
        return self

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """Run kubectl in the namespace."""
        return self.cluster.kubectl("--namespace", self.namespace, *arguments, text=text)

    def patch(self, spec: Object) -> None:
        """Change the spec."""
        body = json.dumps({"spec": spec})
        self.kubectl("patch", "grpo", self.name, "--type", "merge", "--patch", body)

    def get(self, kind: str, selector: str = "") -> list[Object]:
        """The experiment's objects of one kind."""
        labels = resource_names.selector(resource_names.labels(self.name)) + (f",{selector}" if selector else "")
        return list(json.loads(self.kubectl("get", kind, "--selector", labels, "--output", "json"))["items"])

    def pods(self, component: str) -> list[Object]:
        """Pods of a component that have not ended and are not on their way out."""
        found = self.get("pods", f"{resource_names.COMPONENT}={component}")
        return [pod for pod in found if is_active(pod) and not is_terminating(pod)]

    @property
    def status(self) -> Object:
        """The experiment's status."""
        found = json.loads(self.kubectl("get", "grpo", self.name, "--output", "json"))
        return dict(found.get("status") or {})

    def condition(self, kind: str) -> Object:
        """A condition; empty if it is missing."""
        found = [one for one in self.status.get("conditions", []) if one["type"] == kind]
        return dict(found[0]) if found else {}

    def until(self, what: Callable[[Object], bool], text: str, timeout_s: float) -> Object:
        """Wait for a status. A run that has failed fails the test at once, with its message."""
        last: Object = {}

        def look() -> Object | None:
            nonlocal last
            last = self.status
            if what(last):
                return last
            assert last.get("phase") not in ("Failed", "Succeeded"), f"ended before {text}: {last}"
            return None

        try:
            return eventually(look, text, timeout_s, pause_s=1.0)
        except AssertionError as error:
            raise AssertionError(f"{error}; the last status was {last}\n{self.describe()}") from None

    def until_phase(self, phase: str, timeout_s: float = 240.0) -> Object:
        """Wait for a phase."""
        return self.until(lambda status: status.get("phase") == phase, f"phase {phase}", timeout_s)

    def until_step(self, step: int, timeout_s: float = 300.0) -> Object:
        """Wait until a number of steps has completed."""
        return self.until(lambda status: (status.get("step") or 0) >= step, f"step {step}", timeout_s)

    def pod(self, component: str, index: int = 0) -> Object:
        """A component's pod, by its index in name order."""
        return sorted(self.pods(component), key=lambda pod: str(pod["metadata"]["name"]))[index]

    def kill_pod(self, component: str, index: int = 0) -> str:
        """Kill a pod without a grace period; returns its name."""
        return self.delete_pod(self.pod(component, index), "--grace-period=0", "--force")

    def delete_pod(self, pod: Object, *options: str) -> str:
        """``kubectl delete`` a pod; returns its name."""
        name: str = pod["metadata"]["name"]
        self.kubectl("delete", "pod", name, *options)
        return name

    def kill_container(self, component: str, index: int = 0) -> str:
        """SIGKILL the main process of a component's pod; the pod remains. Returns its name."""
        pod = self.pod(component, index)
        kill_process(self.cluster, pod, f"areal_{component}")
        return str(pod["metadata"]["name"])

    @cached_property
    def run_folder(self) -> str:
        """Glob pattern of the run directory on the worker."""
        claim = json.loads(self.kubectl("get", "pvc", resource_names.volume_claim(self.name), "--output", "json"))
        volume = json.loads(self.kubectl("get", "pv", claim["spec"]["volumeName"], "--output", "json"))
        source = volume["spec"].get("hostPath") or volume["spec"]["local"]
        return f"{source['path']}/{self.name}/*"

    def on_volume(self, script: str) -> str:
        """Run a script on the node that holds the volume, with the run directory as ``$1``; returns its output."""
        return self.cluster.on_node(self.cluster.worker, "sh", "-c", f"set -- {self.run_folder}; {script}")

    def run_file(self, name: str) -> str:
        """Contents of a file in the run directory."""
        return self.on_volume(f'cat "$1/{name}"')

    def fetch(self, folder: Path, *names: str) -> None:
        """Copy files and folders of the run directory into a local folder."""
        packed = self.on_volume(f'cd "$1" && tar -czf - {" ".join(names)} | base64')
        with tarfile.open(fileobj=io.BytesIO(base64.b64decode(packed))) as archive:
            archive.extractall(folder, filter="data")

    @cached_property
    def api_key(self) -> str:
        """The API key of the run's servers."""
        labels = resource_names.selector(resource_names.labels(self.name))
        found = json.loads(self.kubectl("get", "secret", "--selector", labels, "--output", "json"))["items"]
        secret = next(one for one in found if CONFIG_KEY in one["data"])
        return base64.b64decode(secret["data"]["api-key"]).decode()

    def stats(self) -> list[Object]:
        """Lines of stats.jsonl."""
        return [json.loads(line) for line in self.run_file("stats.jsonl").splitlines()]

    def summary(self) -> Object:
        """summary.json."""
        return dict(json.loads(self.run_file("summary.json")))

    def requests_answered(self, index: int) -> int:
        """Number of /generate requests that a server has answered since its pod started."""
        log = self.kubectl("logs", f"{resource_names.servers(self.name)}-{index}")
        return log.count("POST /generate")

    def version_held(self, pod: Object) -> int:
        """The weight version that a server reports; −1 if it does not answer or has just started."""
        answer = ask(self.cluster, pod, resource_names.SERVER_PORT, "/model_info", self.api_key)
        try:
            version = str(json.loads(answer).get("weight_version"))
        except json.JSONDecodeError:  # it is starting or shutting down
            return -1
        return int(version[1:]) if version[1:].isdigit() else -1

    def ask_server(self, index: int, *, requests: int, tokens: int) -> subprocess.Popen[str]:
        """Send concurrent requests to a server from the trainer's pod. The process prints ``begun`` once all are sent,
        then a list of (number of tokens, time) of each answer."""
        address = resource_names.server_address(self.name, self.namespace, index)
        pod = self.pod("trainer")["metadata"]["name"]
        command = ["--namespace", self.namespace, "exec", pod, "--container", "trainer", "--", "python3", "-c", ASK]
        return self.cluster.start_kubectl(*command, address, str(requests), str(tokens))

    def describe(self) -> str:
        """Objects and events of the run, for error messages."""
        parts = []
        for arguments in (["get", "grpo,pods,pvc,jobs,events"], ["describe", "grpo", self.name]):
            try:
                parts.append(self.kubectl(*arguments))
            except subprocess.CalledProcessError as error:
                parts.append(str(error.stderr))
        return "\n".join(parts)

    def check_finished(self, steps: int, staleness: int = 2) -> None:
        """Check a finished run: each step once, no sample over the staleness bound, all servers deleted."""
        stats = self.stats()
        assert [line["step"] for line in stats] == list(range(1, steps + 1))
        assert max(line["staleness/max"] for line in stats) <= staleness
        assert self.summary()["steps"] == steps
        eventually(
            lambda: not self.get("pods", f"{resource_names.COMPONENT}={resource_names.SERVER}"),
            "the servers to be deleted",
            150.0,
        )
