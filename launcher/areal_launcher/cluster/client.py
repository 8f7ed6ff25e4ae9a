"""A small API server client on top of the kubernetes package: credentials and the few requests that grpo needs."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import urllib3
from kubernetes import client, config
from kubernetes.config.config_exception import ConfigException
from kubernetes.stream import ws_client
from websocket import ABNF, WebSocketException

from areal_api.experiment import API_VERSION, KIND
from areal_api.generate.crd import PLURAL
from areal_api.paths import expand_home
from areal_api.yaml_text import json_as_yaml
from areal_launcher.bounded_files import parse_json
from areal_launcher.errors import RunError

Object = dict[str, Any]
MANAGER = "grpo"
MAX_ANSWER_BYTES = 64 * 2**20
MAX_MESSAGE_LENGTH = 8192
TIMEOUT_S = (5.0, 30.0)  # to connect, to read
EXEC_IDLE_TIMEOUT_S = 60.0  # maximum time without output from a command in a pod
TOO_MANY_REQUESTS, MAX_TRIES = 429, 10
IN_CLUSTER_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
KINDS: dict[str, tuple[str, str]] = {
    KIND: (f"/apis/{API_VERSION}", PLURAL),
    "ConfigMap": ("/api/v1", "configmaps"),
    "Event": ("/api/v1", "events"),
    "Job": ("/apis/batch/v1", "jobs"),
    "Lease": ("/apis/coordination.k8s.io/v1", "leases"),
    "Pod": ("/api/v1", "pods"),
}
REVIEWS = {
    "TokenReview": ("authentication.k8s.io/v1", "tokenreviews"),
    "SubjectAccessReview": ("authorization.k8s.io/v1", "subjectaccessreviews"),
}


class ApiError(RunError):
    """The API server rejected a request. ``code`` is the HTTP status, the text the server's message."""

    def __init__(self, code: int, message: str, conflicts: Mapping[str, str]) -> None:
        super().__init__(message)
        self.code = code
        self.conflicts = dict(conflicts)  # field managed by others → the server's message


class Unreachable(RunError):
    """The API server did not respond."""


@dataclass(frozen=True)
class ClusterTarget:
    """Cluster and namespace given on the command line."""

    kubeconfig: str | None = None
    context: str | None = None
    namespace: str | None = None

    @property
    def options(self) -> list[str]:
        """These options for another grpo command."""
        options = {"--kubeconfig": self.kubeconfig, "--context": self.context, "--namespace": self.namespace}
        return [word for option, value in options.items() if value is not None for word in (option, value)]

    @property
    def kubectl(self) -> str:
        """The kubectl command for this cluster."""
        options = {"--kubeconfig": self.kubeconfig, "--context": self.context}
        words = [word for option, value in options.items() if value is not None for word in (option, value)]
        return shlex.join(["kubectl", *words])


class Cluster:
    """A connection. ``namespace`` is the default namespace, ``context`` a name to display."""

    def __init__(self, settings: client.Configuration, *, context: str, namespace: str) -> None:
        settings.retries = False  # urllib3 would retry silently; callers report retries
        if is_loopback(str(settings.host)):
            settings.proxy = None  # like kubectl
        self._client = client.ApiClient(settings)
        self._client.user_agent = MANAGER
        self.server = str(settings.host)
        self.context = context
        self.namespace = namespace

    @classmethod
    def connect(cls, target: ClusterTarget) -> Self:
        """Connect to the cluster of the kubeconfig's context, else to the one this process runs in."""
        settings = client.Configuration()
        if not any(Path(expand_home(path)).exists() for path in kubeconfig(target).split(os.pathsep) if path):
            if target.kubeconfig is not None or target.context is not None:
                raise ValueError(f"{kubeconfig(target)}: no such kubeconfig; give another by --kubeconfig")
            return cls._inside(settings)
        name, namespace = chosen_context(target)
        try:
            config.load_kube_config(config_file=kubeconfig(target), context=name, client_configuration=settings)
        except (ConfigException, OSError) as error:
            raise ValueError(f"the credentials of context {name} are not usable: {error}") from error
        return cls(settings, context=name, namespace=target.namespace or namespace)

    @classmethod
    def _inside(cls, settings: client.Configuration) -> Self:
        try:
            config.load_incluster_config(client_configuration=settings)
        except ConfigException as error:
            raise ValueError(
                "no cluster is configured: there is no kubeconfig; set KUBECONFIG or --kubeconfig, or create a cluster "
                "(make cluster)"
            ) from error
        return cls(settings, context="of this pod", namespace=IN_CLUSTER_NAMESPACE.read_text(encoding="utf-8").strip())

    def serves(self, path: str) -> bool:
        """Whether ``path`` exists."""
        return self._get_or_none(path) is not None

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """Get an object, or None if it does not exist."""
        body = self._get_or_none(path_of(kind, namespace, name))
        return None if body is None else self._checked(body)

    def list(self, kind: str, namespace: str | None, *, labels: str = "", fields: str = "") -> list[Object]:
        """List objects of a kind in one namespace, or in all."""
        query = {"labelSelector": labels, "fieldSelector": fields}
        answer = self._request_json("GET", path_of(kind, namespace), query=query)
        items = answer.get("items")
        if not isinstance(items, list):
            raise self._malformed("a list without items")
        return [self._checked(item) for item in items]

    def apply(self, body: Object, namespace: str) -> Object:
        """Server-side apply. Raises ``ApiError`` with ``conflicts`` if others manage a field with another value."""
        path = path_of(body["kind"], namespace, body["metadata"]["name"])
        query = {"fieldManager": MANAGER, "fieldValidation": "Strict"}
        return self._checked(
            self._request_json(
                "PATCH", path, query=query, body=json_as_yaml(body), content="application/apply-patch+yaml"
            )
        )

    def merge(self, kind: str, namespace: str, name: str, changes: Object) -> Object:
        """Change the given fields of an object that exists."""
        query = {"fieldManager": MANAGER, "fieldValidation": "Strict"}
        return self._checked(
            self._request_json(
                "PATCH",
                path_of(kind, namespace, name),
                query=query,
                body=changes,
                content="application/merge-patch+json",
            )
        )

    def create(self, body: Object, namespace: str) -> Object:
        """Create an object."""
        return self._checked(
            self._request_json("POST", path_of(body["kind"], namespace), query={"fieldManager": MANAGER}, body=body)
        )

    def review(self, kind: str, spec: Object) -> Object:
        """The status of a TokenReview or SubjectAccessReview."""
        version, plural = REVIEWS[kind]
        body = {"apiVersion": version, "kind": kind, "spec": spec}
        status = self._request_json("POST", f"/apis/{version}/{plural}", body=body).get("status")
        if not isinstance(status, dict):
            raise self._malformed("a review without a status")
        return status

    def delete(self, kind: str, namespace: str, name: str, *, grace_s: int) -> None:
        """Delete an object if it exists."""
        query = {"gracePeriodSeconds": str(grace_s)}
        try:
            self._request_json("DELETE", path_of(kind, namespace, name), query=query)
        except ApiError as error:
            if error.code != 404:
                raise

    def time_s(self) -> float:
        """The API server's clock."""
        response = self._request("GET", "/version")
        try:
            return parsedate_to_datetime(str(response.headers["Date"])).timestamp()
        except (KeyError, ValueError) as error:
            raise self._malformed("no valid Date header") from error

    def log(self, namespace: str, pod: str, container: str, **options: str) -> bytes:
        """Get a container's log."""
        return bytes(self._request("GET", *log_request(namespace, pod, container, options)).data)

    def follow_log(self, namespace: str, pod: str, container: str, **options: str) -> Iterator[bytes]:
        """Stream chunks of a log until the container exits."""
        path, query = log_request(namespace, pod, container, {**options, "follow": "true"})
        response = self._request("GET", path, query, timeout=(TIMEOUT_S[0], None), read=False).response
        try:
            yield from response.stream(65536)
        except urllib3.exceptions.HTTPError as error:
            raise Unreachable(f"the log of {pod} was interrupted: {error}") from error
        finally:
            response.close()

    def exec(self, namespace: str, pod: str, container: str, command: Sequence[str]) -> Iterator[bytes]:
        """Run a command in a container and stream its standard output. Raises ``RunError`` at the end if it failed."""
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
            # Not ws_client.WSClient, which buffers everything it receives.
            socket = ws_client.create_websocket(
                self._client.configuration, ws_client.get_websocket_url(url, []), headers
            )
        except (OSError, WebSocketException) as error:
            raise RunError(f"cannot run a command in pod {pod}: {error}") from error
        try:
            socket.settimeout(EXEC_IDLE_TIMEOUT_S)
            yield from exec_output(socket)
        except (OSError, WebSocketException) as error:
            raise Unreachable(f"the connection to pod {pod} was lost: {error}") from error
        finally:
            socket.close()

    def _get_or_none(self, path: str) -> Any:
        try:
            return self._request_json("GET", path)
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    def _request_json(self, method: str, path: str, query: Mapping[str, str] | None = None, **more: Any) -> Any:
        try:
            answer = parse_json(self._request(method, path, query, **more).data)
        except ValueError as error:
            raise self._malformed(f"invalid JSON ({error})") from error
        if not isinstance(answer, dict):
            raise self._malformed("JSON that is not an object")
        return answer

    def _checked(self, body: Any) -> Object:
        """``body`` if it has the metadata of an object."""
        metadata = body.get("metadata") if isinstance(body, dict) else None
        if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
            raise self._malformed("an object without a name")
        for key in ("labels", "annotations"):
            metadata[key] = metadata.get(key) or {}
        return dict(body)

    def _malformed(self, problem: str) -> RunError:
        return RunError(f"{self.server} returned {problem}; is it a Kubernetes API server, reached without a proxy?")

    def _read(self, response: Any) -> None:
        """Read the body of a response, at most ``MAX_ANSWER_BYTES``."""
        chunks: list[bytes] = []
        size = 0
        while chunk := or_unreachable(lambda: response.response.read(2**20), self.server):
            chunks.append(chunk)
            size += len(chunk)
            if size > MAX_ANSWER_BYTES:
                response.response.close()
                raise self._malformed(f"more than {MAX_ANSWER_BYTES} bytes")
        response.data = b"".join(chunks)

    def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: Object | str | None = None,
        content: str = "application/json",
        timeout: tuple[float, float | None] = TIMEOUT_S,
        read: bool = True,
    ) -> Any:
        arguments = self._client.param_serialize(
            method,
            path,
            query_params=[(key, value) for key, value in (query or {}).items() if value],
            header_params={"Content-Type": content, "Accept": "application/json, */*"},
            body=body,
            auth_settings=["BearerToken"],
        )
        for attempt in range(MAX_TRIES):
            response = or_unreachable(lambda: self._client.call_api(*arguments, _request_timeout=timeout), self.server)
            if response.status != TOO_MANY_REQUESTS or attempt == MAX_TRIES - 1:
                break
            self._read(response)
            time.sleep(1.0)  # its Retry-After, for example while it sets up the storage of a new definition
        if read or response.status >= 400:
            self._read(response)
        if response.status >= 400:
            raise self._error(response.status, response.data)
        return response

    def _error(self, code: int, data: bytes) -> ApiError:
        try:
            status = parse_json(data)
        except ValueError:
            status = None
        status = status if isinstance(status, dict) else {}
        if code == 401:
            return ApiError(code, f"{self.server} does not accept the credentials of context {self.context}", {})
        causes = (status.get("details") or {}).get("causes") or []
        conflicts = {
            cause["field"]: cause.get("message", "")
            for cause in causes
            if cause.get("reason") == "FieldManagerConflict"
        }
        message = str(status.get("message") or f"{self.server} returned HTTP status {code}")
        return ApiError(code, message[:MAX_MESSAGE_LENGTH], conflicts)


def or_unreachable(send: Callable[[], Any], server: str) -> Any:
    """Call ``send``. Raises ``Unreachable`` if the server does not respond."""
    try:
        return send()
    except (urllib3.exceptions.HTTPError, client.ApiException) as error:  # the client wraps TLS errors
        text = str(error.reason) if isinstance(error, client.ApiException) else str(error)
        reason = " ".join(text.rpartition(">: ")[2].rpartition("): ")[2].split())
        raise Unreachable(f"the API server {server} does not respond: {reason}") from error


def exec_output(socket: Any) -> Iterator[bytes]:
    """Extract a command's standard output from WebSocket frames. Raises ``RunError`` if it failed.

    The first byte of each frame is its channel; the last frame is the command's status.
    """
    errors = b""
    while True:
        operation, frame = socket.recv_data_frame(True)
        if operation == ABNF.OPCODE_CLOSE:
            raise RunError("the command ended without an exit status")
        if operation not in (ABNF.OPCODE_BINARY, ABNF.OPCODE_TEXT) or not frame.data:
            continue
        channel, data = frame.data[0], frame.data[1:]
        if channel == ws_client.STDOUT_CHANNEL and data:
            yield data
        elif channel == ws_client.STDERR_CHANNEL:
            errors = (errors + data)[-MAX_MESSAGE_LENGTH:]
        elif channel == ws_client.ERROR_CHANNEL:
            try:
                status = parse_json(data)
            except ValueError:
                status = None
            status = status if isinstance(status, dict) else {"message": "the command ended without an exit status"}
            if status.get("status") == "Success":
                return
            raise RunError(errors.decode(errors="replace").strip() or str(status.get("message"))[:MAX_MESSAGE_LENGTH])


def kubeconfig(target: ClusterTarget) -> str:
    """The kubeconfig given, else kubectl's default; several paths are separated by colons."""
    return target.kubeconfig or os.environ.get("KUBECONFIG") or expand_home("~/.kube/config")


def chosen_context(target: ClusterTarget) -> tuple[str, str]:
    """Name and namespace of the context. Raises ``ValueError`` with the known contexts if it does not exist."""
    try:
        known, current = config.list_kube_config_contexts(config_file=kubeconfig(target))
    except (ConfigException, OSError) as error:
        raise ValueError(f"the kubeconfig is not usable: {error}; set KUBECONFIG or --kubeconfig") from error
    contexts = {str(entry["name"]): entry for entry in known}
    name = target.context or (str(current["name"]) if current else "")
    if name not in contexts:
        raise ValueError(f"the kubeconfig has no context {name}; set --context to one of {', '.join(contexts)}")
    return name, str(contexts[name]["context"].get("namespace") or "default")


def is_loopback(url: str) -> bool:
    """Whether an address is on this machine."""
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def path_of(kind: str, namespace: str | None, name: str = "") -> str:
    """The API path of an object or of a collection."""
    root, plural = KINDS[kind]
    parts = [root, *(("namespaces", namespace) if namespace is not None else ()), plural, name]
    return "/".join(part for part in parts if part)


def log_request(namespace: str, pod: str, container: str, options: Mapping[str, str]) -> tuple[str, Mapping[str, str]]:
    """API path and query of a log."""
    return f"{path_of('Pod', namespace, pod)}/log", {"container": container, **options}
