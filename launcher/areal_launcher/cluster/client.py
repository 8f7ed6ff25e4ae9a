"""The API server of a cluster, by kubernetes' own client: who we are there, and the few requests that are needed."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Self

import urllib3
from kubernetes import client, config
from kubernetes.config.config_exception import ConfigException
from kubernetes.stream import ws_client
from websocket import ABNF, WebSocketException

from areal_api.experiment import API_VERSION, KIND
from areal_api.generate.crd import PLURAL
from areal_launcher.errors import RunError

Object = dict[str, Any]
MANAGER = "grpo"
TIMEOUT_S = (5.0, 30.0)  # to connect, to read
SILENT_S = 60.0  # how long a command in a pod may write nothing
BUSY, BUSY_TRIES = 429, 10
IN_CLUSTER_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
KINDS: dict[str, tuple[str, str]] = {
    KIND: (f"/apis/{API_VERSION}", PLURAL),
    "Event": ("/api/v1", "events"),
    "Job": ("/apis/batch/v1", "jobs"),
    "Lease": ("/apis/coordination.k8s.io/v1", "leases"),
    "Pod": ("/api/v1", "pods"),
}


class ApiError(RunError):
    """The API server refused a request. ``code`` is its HTTP status, the text its message."""

    def __init__(self, code: int, message: str, conflicts: Mapping[str, str]) -> None:
        super().__init__(message)
        self.code = code
        self.conflicts = dict(conflicts)  # fields that others manage, and what the server says of them


class Unreachable(RunError):
    """The API server did not answer."""


@dataclass(frozen=True)
class Place:
    """Which cluster and namespace, as the command line names them."""

    kubeconfig: str | None = None
    context: str | None = None
    namespace: str | None = None

    @property
    def options(self) -> list[str]:
        """The same for another command of ours."""
        given = {"--kubeconfig": self.kubeconfig, "--context": self.context, "--namespace": self.namespace}
        return [word for option, value in given.items() if value is not None for word in (option, value)]

    @property
    def kubectl(self) -> str:
        """kubectl at this place."""
        given = {"--kubeconfig": self.kubeconfig, "--context": self.context}
        words = [word for option, value in given.items() if value is not None for word in (option, value)]
        return shlex.join(["kubectl", *words])


class Cluster:
    """A connection. ``namespace`` is the one that is used where none is named, ``context`` a name for people."""

    def __init__(self, settings: client.Configuration, *, context: str, namespace: str) -> None:
        settings.retries = False  # urllib3 would repeat silently; who follows a run says that it tries again
        self._client = client.ApiClient(settings)
        self._client.user_agent = MANAGER
        self.server = str(settings.host)
        self.context = context
        self.namespace = namespace

    @classmethod
    def connect(cls, place: Place) -> Self:
        """The cluster of the kubeconfig's context, else the one that this process runs in."""
        settings = client.Configuration()
        if not any(Path(path).expanduser().exists() for path in kubeconfig(place).split(os.pathsep) if path):
            if place.kubeconfig is not None or place.context is not None:
                raise ValueError(f"{kubeconfig(place)}: no such kubeconfig; give another by --kubeconfig")
            return cls._inside(settings)
        name, namespace = chosen_context(place)
        try:
            config.load_kube_config(config_file=kubeconfig(place), context=name, client_configuration=settings)
        except (ConfigException, OSError) as error:
            raise ValueError(f"the credentials of context {name} cannot be used: {error}") from error
        return cls(settings, context=name, namespace=place.namespace or namespace)

    @classmethod
    def _inside(cls, settings: client.Configuration) -> Self:
        try:
            config.load_incluster_config(client_configuration=settings)
        except ConfigException as error:
            raise ValueError(
                "no cluster is known: there is no kubeconfig; set KUBECONFIG or --kubeconfig, or make a cluster "
                "(make cluster)"
            ) from error
        return cls(settings, context="of this pod", namespace=IN_CLUSTER_NAMESPACE.read_text().strip())

    def serves(self, path: str) -> bool:
        """Whether there is anything under ``path``."""
        return self._find(path) is not None

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """An object, or None where there is none."""
        return self._find(path_of(kind, namespace, name))

    def list(self, kind: str, namespace: str | None, *, labels: str = "", fields: str = "") -> list[Object]:
        """Objects of a kind, in one namespace or in all."""
        query = {"labelSelector": labels, "fieldSelector": fields}
        return list(self._ask("GET", path_of(kind, namespace), query=query)["items"])

    def apply(self, body: Object, namespace: str) -> Object:
        """Server-side apply. ``ApiError`` with ``conflicts`` where others manage a field and say another value."""
        path = path_of(body["kind"], namespace, body["metadata"]["name"])
        query = {"fieldManager": MANAGER, "fieldValidation": "Strict"}
        return self._ask("PATCH", path, query=query, body=body, content="application/apply-patch+yaml")

    def create(self, body: Object, namespace: str) -> Object:
        """Make an object."""
        return self._ask("POST", path_of(body["kind"], namespace), query={"fieldManager": MANAGER}, body=body)

    def delete(self, kind: str, namespace: str, name: str, *, grace_s: int) -> None:
        """Delete an object; gone already is fine."""
        query = {"gracePeriodSeconds": str(grace_s)}
        try:
            self._ask("DELETE", path_of(kind, namespace, name), query=query)
        except ApiError as error:
            if error.code != 404:
                raise

    def time_s(self) -> float:
        """What the API server's clock says."""
        response = self._send("GET", "/version")
        return parsedate_to_datetime(response.headers["Date"]).timestamp()

    def log(self, namespace: str, pod: str, container: str, **options: str) -> bytes:
        """The log of a container."""
        return bytes(self._send("GET", *log_request(namespace, pod, container, options)).data)

    def follow_log(self, namespace: str, pod: str, container: str, **options: str) -> Iterator[bytes]:
        """Parts of a log as they come, until the container ends."""
        path, query = log_request(namespace, pod, container, {**options, "follow": "true"})
        response = self._send("GET", path, query, timeout=(TIMEOUT_S[0], None), read=False).response
        try:
            yield from response.stream(65536)
        except urllib3.exceptions.HTTPError as error:
            raise Unreachable(f"the log of {pod} ended: {error}") from error
        finally:
            response.close()

    def output_of(self, namespace: str, pod: str, container: str, command: Sequence[str]) -> Iterator[bytes]:
        """Parts of what a command in a container writes, as they come. ``RunError`` at the end where it fails."""
        query = [("container", container), ("stdout", "true"), ("stderr", "true")]
        path = f"{path_of('Pod', namespace, pod)}/exec"
        _, url, headers, *_ = self._client.param_serialize(
            "GET",
            path,
            query_params=[*query, *(("command", word) for word in command)],
            auth_settings=["BearerToken"],
        )
        headers = {name.lower(): value for name, value in headers.items()}
        try:
            # Not ws_client.WSClient, which keeps all that it was sent.
            socket = ws_client.create_websocket(
                self._client.configuration, ws_client.get_websocket_url(url, []), headers
            )
        except (OSError, WebSocketException) as error:
            raise RunError(f"no command can be run in the pod {pod}: {error}") from error
        try:
            socket.settimeout(SILENT_S)
            yield from output_in(socket)
        except (OSError, WebSocketException) as error:
            raise Unreachable(f"the connection to the pod {pod} broke off: {error}") from error
        finally:
            socket.close()

    def _find(self, path: str) -> Any:
        try:
            return self._ask("GET", path)
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    def _ask(self, method: str, path: str, query: Mapping[str, str] | None = None, **more: Any) -> Any:
        return json.loads(self._send(method, path, query, **more).data)

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: Object | None = None,
        content: str = "application/json",
        timeout: tuple[float, float | None] = TIMEOUT_S,
        read: bool = True,
    ) -> Any:
        request = self._client.param_serialize(
            method,
            path,
            query_params=[(key, value) for key, value in (query or {}).items() if value],
            header_params={"Content-Type": content, "Accept": "application/json, */*"},
            body=body,
            auth_settings=["BearerToken"],
        )
        for attempt in range(BUSY_TRIES):
            response = reached(lambda: self._client.call_api(*request, _request_timeout=timeout), self.server)
            if response.status != BUSY or attempt == BUSY_TRIES - 1:
                break
            reached(response.read, self.server)
            time.sleep(1.0)  # what the server asks for, as while it makes the storage of a new definition
        if read or response.status >= 400:
            reached(response.read, self.server)
        if response.status >= 400:
            raise self._error(response.status, response.data)
        return response

    def _error(self, code: int, data: bytes) -> ApiError:
        try:
            said = json.loads(data)
        except ValueError:
            said = {}
        if code == 401:
            return ApiError(code, f"{self.server} does not accept the credentials of context {self.context}", {})
        causes = (said.get("details") or {}).get("causes") or []
        conflicts = {
            one["field"]: one.get("message", "") for one in causes if one.get("reason") == "FieldManagerConflict"
        }
        return ApiError(code, said.get("message") or f"{self.server} answered with HTTP status {code}", conflicts)


def reached(ask: Callable[[], Any], server: str) -> Any:
    """What ``ask`` returns; ``Unreachable`` where the server does not answer."""
    try:
        return ask()
    except (urllib3.exceptions.HTTPError, client.ApiException) as error:  # the client makes its own of TLS errors
        said = str(error.reason) if isinstance(error, client.ApiException) else str(error)
        reason = " ".join(said.rpartition(">: ")[2].rpartition("): ")[2].split())
        raise Unreachable(f"the API server {server} does not answer: {reason}") from error


def output_in(socket: Any) -> Iterator[bytes]:
    """What a command wrote to its standard output, out of the frames of a connection. ``RunError`` where it failed.

    The first byte of a frame says what it belongs to; the last one is the command's status.
    """
    said = b""
    while True:
        operation, frame = socket.recv_data_frame(True)
        if operation == ABNF.OPCODE_CLOSE:
            raise RunError("the command ended without a status")
        if operation not in (ABNF.OPCODE_BINARY, ABNF.OPCODE_TEXT) or not frame.data:
            continue
        channel, data = frame.data[0], frame.data[1:]
        if channel == ws_client.STDOUT_CHANNEL and data:
            yield data
        elif channel == ws_client.STDERR_CHANNEL:
            said += data
        elif channel == ws_client.ERROR_CHANNEL:
            status = json.loads(data)
            if status.get("status") == "Success":
                return
            raise RunError(said.decode(errors="replace").strip() or str(status.get("message")))


def kubeconfig(place: Place) -> str:
    """The kubeconfig that is named, else kubectl's; several are separated by colons."""
    return place.kubeconfig or os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")


def chosen_context(place: Place) -> tuple[str, str]:
    """Name and namespace of the context; ``ValueError`` names those that there are."""
    try:
        known, current = config.list_kube_config_contexts(config_file=kubeconfig(place))
    except (ConfigException, OSError) as error:
        raise ValueError(f"the kubeconfig cannot be used: {error}; set KUBECONFIG or --kubeconfig") from error
    found = {str(one["name"]): one for one in known}
    name = place.context or (str(current["name"]) if current else "")
    if name not in found:
        raise ValueError(f"there is no context {name} in the kubeconfig; give --context one of {', '.join(found)}")
    return name, str(found[name]["context"].get("namespace") or "default")


def path_of(kind: str, namespace: str | None, name: str = "") -> str:
    """The path of an object, or of all of a kind."""
    root, plural = KINDS[kind]
    parts = [root, *(("namespaces", namespace) if namespace is not None else ()), plural, name]
    return "/".join(part for part in parts if part)


def log_request(namespace: str, pod: str, container: str, options: Mapping[str, str]) -> tuple[str, Mapping[str, str]]:
    """Path and query of a log."""
    return f"{path_of('Pod', namespace, pod)}/log", {"container": container, **options}
