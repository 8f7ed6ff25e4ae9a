"""A kubelet's log endpoint, and reader pods whose real command runs on a local folder."""

from __future__ import annotations

import http.server
import ssl
import subprocess
import threading
from pathlib import Path
from urllib.parse import urlsplit

from hack.testbed.fake_kubelet import NODES, Behaviour, end
from hack.testbed.kube_api import Api, Object, Refused

READERS = "app.kubernetes.io/managed-by=grpo"


class NodeLogs:
    """Serves the API server's requests for container logs."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self.logs: dict[tuple[str, str], bytes] = {}  # keyed by (namespace, pod)
        self.previous: dict[tuple[str, str], bytes] = {}  # of the previous container
        logs, previous = self.logs, self.previous

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = urlsplit(self.path)
                _, root, namespace, pod, _ = asked.path.split("/")
                log = (previous if "previous=true" in asked.query else logs).get((namespace, pod))
                self.send_response(200 if root == "containerLogs" and log is not None else 404)
                self.end_headers()
                self.wfile.write(log or b"no such container")

            def log_message(self, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def announce(self, api: Api) -> None:
        """Set the nodes' kubelet endpoint in the API server."""
        status = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._server.server_port}},
        }
        for node in NODES:
            api.patch("Node", None, node, {"status": status}, "status")

    def writing(self, text: str, then: Behaviour) -> Behaviour:
        """A behaviour of pods that first log ``text``."""

        def behave(pod: Object) -> Object | None:
            self.logs[pod["metadata"]["namespace"], pod["metadata"]["name"]] = text.encode()
            return then(pod)

        return behave

    def stop(self) -> None:
        """End."""
        self._server.shutdown()
        self._server.server_close()


class Readers:
    """Runs the pods that read results: their real command on a local folder in place of the volume."""

    def __init__(self, api: Api, node: NodeLogs, namespace: str, folder: Path) -> None:
        self._api = api
        self._node = node
        self._namespace = namespace
        self._folder = folder
        self.pods: list[Object] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Readers:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(0.1):
            for pod in self._api.list("Pod", self._namespace, READERS):
                ended = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
                if pod["spec"].get("nodeName") and not ended and not pod["metadata"].get("deletionTimestamp"):
                    self._read(pod)

    def _read(self, pod: Object) -> None:
        name, container = pod["metadata"]["name"], pod["spec"]["containers"][0]
        self.pods.append(pod)
        python, option, source, _, *files = container["command"]
        done = subprocess.run(
            [python, option, source.replace("$$(", "$("), str(self._folder), *files],
            capture_output=True,
            timeout=60,
            check=False,
        )
        self._node.logs[self._namespace, name] = done.stdout + done.stderr
        status = end(done.returncode, done.stderr.decode()[-1000:])(pod)
        try:
            self._api.patch("Pod", self._namespace, name, {"status": status}, "status")
        except Refused as error:
            if error.status != 404:
                raise
