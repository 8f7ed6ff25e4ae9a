"""Client of the API server: reads, server-side apply, merge patches, deletes; with kopf's library and credentials."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import ssl
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import aiohttp
import kopf

from areal_api import resource_names
from areal_api.experiment import API_VERSION, KIND
from areal_api.generate.crd import PLURAL
from areal_api.yaml_text import json_as_yaml
from areal_operator.manifests import pod_groups
from areal_operator.observed import Object, WarningEvent
from areal_operator.queueing import kueue

logger = logging.getLogger(__name__)
TIMEOUT_S = 30.0
CREDENTIALS_TTL_S = 60.0  # after which credentials are read again, because the kubelet renews tokens
MANAGER = resource_names.OPERATOR
PROGRESS_MANAGER = "areal-operator-progress"
PAGE = 100
PAGE_OF_EVENTS = 1000  # they are small
QUOTA = "ResourceQuota"
ABSENT = "1"  # a resource version that no object has: apply creates the object, or is refused with a conflict
MAX_MESSAGE_LENGTH = 800
UNDECLARED = re.compile(r"\.status\.(\w+)\S*: field not declared in schema")

# Kinds of children that are watched, in the order of their dependencies. Secrets are only created, never read.
CHILD_KINDS: dict[str, tuple[str, str]] = {
    "ServiceAccount": ("v1", "serviceaccounts"),
    "PersistentVolumeClaim": ("v1", "persistentvolumeclaims"),
    "Service": ("v1", "services"),
    "Pod": ("v1", "pods"),
    "NetworkPolicy": ("networking.k8s.io/v1", "networkpolicies"),
    "PodDisruptionBudget": ("policy/v1", "poddisruptionbudgets"),
    "StatefulSet": ("apps/v1", "statefulsets"),
    "Job": ("batch/v1", "jobs"),
}
KINDS: dict[str, tuple[str, str]] = {
    **CHILD_KINDS,
    KIND: (API_VERSION, PLURAL),
    "Secret": ("v1", "secrets"),
    "Event": ("v1", "events"),
    QUOTA: ("v1", "resourcequotas"),
    "Lease": ("coordination.k8s.io/v1", "leases"),
    **kueue.KINDS,
    **pod_groups.KINDS,
}


class ApiError(Exception):
    """The API server refused a request: its HTTP status, its reason, and the first line of its message.

    Further lines repeat whole objects.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        lines = [line.strip() for line in message.splitlines() if line.strip()]
        super().__init__(lines[0][:MAX_MESSAGE_LENGTH] if lines else f"HTTP status {status} {reason}".rstrip())
        self.full_message = message
        self.status = status
        self.reason = reason


@dataclass(frozen=True)
class ObjectList:
    """Objects of one kind, and the resource version of the list: the same in all its pages."""

    items: list[Object]
    version: int


class Cluster:
    """A connection to the API server; use it as an asynchronous context manager."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._login: kopf.ConnectionInfo | None = None
        self._ssl: ssl.SSLContext | None = None
        self._credentials_at = 0.0
        self._undeclared: set[str] = set()  # fields of the status that an older resource definition lacks

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))  # watches keep theirs
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def get(self, kind: str, namespace: str | None, name: str) -> Object | None:
        """An object, or None if it does not exist. ``namespace`` is None for a cluster-scoped kind."""
        try:
            return await self.request("GET", path_of(kind, namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def list(self, kind: str, namespace: str | None, selector: str = "", fields: str = "") -> ObjectList:
        """Objects of a kind, in one namespace or in all."""
        items: list[Object] = []
        async for page in self.pages(kind, namespace, selector, fields):
            items += page.items
        return ObjectList(items, page.version)

    async def pages(
        self, kind: str, namespace: str | None, selector: str = "", fields: str = ""
    ) -> AsyncIterator[ObjectList]:
        """Like ``list``, in pages, so that not all objects are in memory at the same time. There is at least one."""
        size = PAGE_OF_EVENTS if kind == "Event" else PAGE
        query = {"limit": str(size), "labelSelector": selector, "fieldSelector": fields, "continue": ""}
        while True:
            page = await self.request("GET", path_of(kind, namespace), query=query)
            items = [{**item, "kind": kind} for item in page["items"]]
            yield ObjectList(items, int(page["metadata"]["resourceVersion"]))
            query["continue"] = page["metadata"].get("continue", "")
            if not query["continue"]:
                return

    async def apply(self, manifest: Object, *, subresource: str = "", manager: str = MANAGER) -> Object:
        """Server-side apply: afterwards ``manager`` owns the fields of ``manifest`` and no others.

        A status field that the installed resource definition lacks is left out and logged once, because the definition
        may be older than the operator.
        """
        while subresource == "status":
            try:
                return await self._apply(self._declared(manifest), subresource, manager)
            except ApiError as error:
                undeclared = set(UNDECLARED.findall(error.full_message))
                if not undeclared - self._undeclared:
                    raise
                self._undeclared |= undeclared
                text = (
                    "the installed resource definition lacks status.%s: not reported; apply the operator's definition"
                )
                logger.warning(text, ", status.".join(sorted(undeclared)))
        return await self._apply(manifest, subresource, manager)

    async def apply_new(self, manifest: Object) -> Object:
        """Server-side apply of an object that must not exist yet; refused with 409 if one has its name."""
        metadata = {**manifest["metadata"], "resourceVersion": ABSENT}
        return await self._apply({**manifest, "metadata": metadata}, "", MANAGER)

    async def watch(
        self, kind: str, namespace: str | None, selector: str, version: int, *, timeout_s: float
    ) -> AsyncIterator[tuple[str, Object]]:
        """Types and objects of the changes since ``version``, until the server ends the watch after ``timeout_s``.

        Raises ``ApiError`` if the server no longer has that version.
        """
        query = {"watch": "true", "labelSelector": selector, "resourceVersion": str(version)}
        query |= {"timeoutSeconds": str(int(timeout_s))}
        limit = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT_S, sock_read=timeout_s + TIMEOUT_S)
        async with self._open("GET", path_of(kind, namespace), query=query, timeout=limit) as response:
            rest = b""
            async for part in response.content.iter_any():
                *lines, rest = (rest + part).split(b"\n")
                for line in filter(None, lines):
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        status = event["object"]
                        raise ApiError(
                            status.get("code") or 500, status.get("reason") or "", status.get("message") or ""
                        )
                    yield event["type"], {**event["object"], "kind": kind}

    async def patch(self, manifest: Object, changes: Object, *, subresource: str = "") -> Object:
        """Merge ``changes`` into the object that ``manifest`` names; refused with 404 if it does not exist, and with
        409 if ``changes`` contain another resource version than its own."""
        metadata = manifest["metadata"]
        path = path_of(manifest["kind"], metadata["namespace"], metadata["name"], subresource)
        query = {"fieldManager": MANAGER}
        return await self.request("PATCH", path, query=query, body=changes, kind="application/merge-patch+json")

    def _declared(self, manifest: Object) -> Object:
        status = {key: value for key, value in manifest["status"].items() if key not in self._undeclared}
        return {**manifest, "status": status}

    async def _apply(self, manifest: Object, subresource: str, manager: str) -> Object:
        metadata = manifest["metadata"]
        path = path_of(manifest["kind"], metadata["namespace"], metadata["name"], subresource)
        query = {"fieldManager": manager, "force": "true", "fieldValidation": "Strict"}
        return await self.request(
            "PATCH", path, query=query, body=_plain(manifest), kind="application/apply-patch+yaml"
        )

    async def create(self, manifest: Object) -> Object:
        """Create an object that must not exist yet."""
        path = path_of(manifest["kind"], manifest["metadata"]["namespace"])
        return await self.request("POST", path, query={"fieldManager": MANAGER}, body=_plain(manifest))

    async def replace(self, manifest: Object) -> Object:
        """Replace an object as it was read; refused with 409 if it has changed since."""
        metadata = manifest["metadata"]
        return await self.request(
            "PUT", path_of(manifest["kind"], metadata["namespace"], metadata["name"]), body=manifest
        )

    async def delete(self, kind: str, namespace: str, name: str, *, uid: str) -> None:
        """Delete the object with this uid and its dependents; an object that no longer exists is no error."""
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        try:
            await self.request("DELETE", path_of(kind, namespace, name), body=body)
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    async def warning_events(self, namespace: str) -> Sequence[WarningEvent]:
        """The warning events of a namespace, newest last."""
        listed = await self.list("Event", namespace, fields="type=Warning")
        events = [event for event in listed.items if (event.get("involvedObject") or {}).get("uid")]
        events.sort(key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""))
        return [
            WarningEvent(event["involvedObject"]["uid"], event.get("reason") or "", event.get("message") or "")
            for event in events
        ]

    async def review_token(self, token: str, audience: str) -> str | None:
        """The user that a token authenticates, if it is valid for ``audience``."""
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [audience]},
        }
        review = await self.request("POST", "/apis/authentication.k8s.io/v1/tokenreviews", body=body)
        status = review.get("status") or {}
        if not status.get("authenticated") or audience not in (status.get("audiences") or ()):
            return None
        return str(status["user"]["username"])

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        kind: str = "application/json",
    ) -> Any:
        """Send a request; returns the parsed response, raises ``ApiError`` for a refusal."""
        async with self._open(method, path, query=query, body=body, kind=kind) as response:
            return json.loads(await response.read())

    @asynccontextmanager
    async def _open(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        kind: str = "application/json",
        timeout: aiohttp.ClientTimeout | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        assert self._session is not None, "use the cluster as a context manager"
        login = self._credentials()
        async with self._session.request(
            method,
            f"{(login.server or '').rstrip('/')}{path}",
            params={key: value for key, value in (query or {}).items() if value},
            data=None if body is None else json_as_yaml(body).encode(),
            headers={**login.as_http_headers(), "Content-Type": kind, "User-Agent": MANAGER},
            ssl=self._ssl or True,
            timeout=timeout or aiohttp.ClientTimeout(total=TIMEOUT_S),
        ) as response:
            if response.status == 401:
                self._credentials_at = 0.0
            if response.status >= 400:
                raise await _error_of(response)
            yield response

    def _credentials(self) -> kopf.ConnectionInfo:
        if self._login is None or time.monotonic() - self._credentials_at > CREDENTIALS_TTL_S:
            login = read_credentials()
            if login != self._login:
                self._login, self._ssl = login, login.as_ssl_context()
            self._credentials_at = time.monotonic()
        assert self._login is not None
        return self._login


def read_credentials() -> kopf.ConnectionInfo:
    """This pod's service account, else the current context of the kubeconfig; raises ``ValueError`` without either."""
    settings = kopf.OperatorSettings()
    login = kopf.login_with_service_account(settings=settings) or kopf.login_with_kubeconfig(settings=settings)
    if login is None:
        raise ValueError("found neither a service account nor a kubeconfig; set KUBECONFIG to the path of one")
    return login


def path_of(kind: str, namespace: str | None, name: str = "", subresource: str = "") -> str:
    """URL path of an object, or of all objects of a kind."""
    version, plural = KINDS[kind]
    parts = ["/api" if version == "v1" else "/apis", version]
    parts += ["namespaces", namespace] if namespace is not None else []
    parts += [part for part in (plural, name, subresource) if part]
    assert not {".", ".."} & set(parts), parts  # HTTP clients resolve them, quoted or not
    parts[1:] = [version, *(quote(part, safe="") for part in parts[2:])]
    return "/".join(parts)


def _plain(manifest: Object) -> Object:
    """``manifest`` with the kind alone, where ``kind.group`` was needed to tell it from others of its name."""
    return {**manifest, "kind": manifest["kind"].partition(".")[0]}


def is_transient(error: Exception) -> bool:
    """Whether a retry may help because the server is unavailable or overloaded."""
    if isinstance(error, ApiError):
        return error.status in (401, 408, 429, 502, 503, 504)  # 500 also answers invalid objects
    return isinstance(error, (aiohttp.ClientError, asyncio.TimeoutError, OSError))


async def _error_of(response: aiohttp.ClientResponse) -> ApiError:
    try:
        status = await response.json(content_type=None)
    except ValueError:
        status = None
    if not isinstance(status, dict):
        return ApiError(response.status, response.reason or "", f"HTTP status {response.status}")
    return ApiError(response.status, str(status.get("reason", "")), str(status.get("message", "")))
