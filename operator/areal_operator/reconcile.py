"""One reconcile: look, plan, write the status, then act. It may be cut off anywhere; the next one goes on."""

from __future__ import annotations

import asyncio
import base64
import binascii
import functools
import hashlib
import hmac
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from areal_api import resource_names
from areal_api.errors import ConfigError
from areal_api.experiment import API_VERSION, KIND
from areal_api.status import ExperimentStatus
from areal_api.stored import read_experiment, read_status
from areal_operator import transitions
from areal_operator.cluster import MANAGER, ApiError, Cluster, is_transient
from areal_operator.diagnosis import Reason
from areal_operator.manifests.base import Manifest, digest
from areal_operator.manifests.shared import API_KEY
from areal_operator.observed import ExperimentState, Object, Observed, WarningEvent
from areal_operator.plan import Plan, plan, refused
from areal_operator.settings import Settings
from areal_operator.status import SERVERS, STORAGE, TRAINER, find, status_to_write
from areal_operator.store import FINGERPRINT, Key, Store, owner_uid, slim

logger = logging.getLogger(__name__)
EXPLAINED_BY_EVENTS = ("Starting", "Creating", "VolumePending")
MAKE_PODS = ("StatefulSet", "Job")
NAME_TAKEN = "NameTaken"
TAKEN_S = 2.0  # how soon to look again whether the objects of an earlier experiment of this name are gone


class _Replaced(Exception):
    """The experiment that is worked on, or a Job of it, is there no more."""


class Reconciler:
    """Brings what is in the cluster to what an experiment asks for, and says in its status how far that is."""

    def __init__(
        self,
        cluster: Cluster,
        store: Store,
        *,
        settings: Settings,
        root_key: bytes,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._settings = settings
        self._root_key = root_key
        self._now = now
        self._applied: dict[Key, dict[tuple[str, str], tuple[str, str]]] = {}  # digest asked for, fingerprint got
        self._refusals: dict[Key, Reason] = {}
        self._warned: dict[str, tuple[float, Sequence[WarningEvent]]] = {}

    async def reconcile(self, key: Key) -> float | None:
        """Reconcile one experiment; returns after how many seconds to look again, None to wait for news."""
        namespace, name = key
        body = await self._cluster.get(KIND, namespace, name)
        if body is None or body["metadata"].get("deletionTimestamp") is not None:
            self._forget(key)
            return None
        try:
            return await self._bring(key, body)
        except _Replaced:
            return 0.0

    async def _bring(self, key: Key, body: Object) -> float | None:
        try:
            state = state_of(body)
        except ConfigError as error:
            await self._say_refused(body, str(error))
            return None
        decided = await self._plan(key, state)
        await self._write_status(state, decided.status)
        if decided.delete:
            await self._cluster.delete(KIND, *key, uid=state.uid)
            return None
        refusal = await self._act(key, state, decided)
        if refusal == self._refusals.get(key):
            return TAKEN_S if refusal is not None and refusal.reason == NAME_TAKEN else decided.requeue_after_s
        if refusal is None:
            del self._refusals[key]
        else:
            self._refusals[key] = refusal
        return 0.0  # the status is to say it

    async def _plan(self, key: Key, state: ExperimentState) -> Plan:
        """The plan; where something waits and nothing says why, once more with the warnings about it."""
        observed = Observed(self._store.objects(key, state.uid))
        api_key, refusal = self._api_key(state, observed), self._refusals.get(key)

        def decide(observed: Observed) -> Plan:
            return plan(state, observed, self._now(), settings=self._settings, api_key=api_key, refusal=refusal)

        decided = decide(observed)
        if not _waits_in_silence(decided.status):
            return decided
        uids = {str(obj["metadata"]["uid"]) for found in observed.objects.values() for obj in found}
        warnings = [warned for warned in await self._warnings(state.namespace) if warned.uid in uids]
        return decide(replace(observed, warnings=warnings)) if warnings else decided

    async def _warnings(self, namespace: str) -> Sequence[WarningEvent]:
        """The warnings of a namespace; experiments that wait at the same time share one look."""
        looked_at, found = self._warned.get(namespace, (float("-inf"), ()))
        if time.monotonic() - looked_at > self._settings.waiting_s / 3:
            found = await self._cluster.warnings(namespace)
            self._warned[namespace] = (time.monotonic(), found)
        return found

    async def _write_status(self, state: ExperimentState, status: ExperimentStatus) -> None:
        if status == state.status:
            return
        await self._apply_status(state.namespace, state.name, state.uid, status)
        for transition in transitions.between(state.status, status):
            logger.info("%s/%s: %s: %s", state.namespace, state.name, transition.reason, transition.message)
            await self._post(state, transition)

    async def _act(self, key: Key, state: ExperimentState, decided: Plan) -> Reason | None:
        """Remove and apply; what the API server said against an object, if it did."""
        for kind, name in decided.prune:
            found = self._store.get(key, kind, name)
            if found is not None:
                await self._cluster.delete(kind, state.namespace, name, uid=found["metadata"]["uid"])
        for wave in _waves(decided.objects):
            applied = [self._apply(key, state, manifest) for manifest in wave]
            for result in await asyncio.gather(*applied, return_exceptions=True):
                if isinstance(result, BaseException):
                    raise result
                if result is not None:
                    return result
        return None

    async def _apply(self, key: Key, state: ExperimentState, manifest: Manifest) -> Reason | None:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        wanted, known = digest(manifest), self._store.get(key, kind, name)
        applied = self._applied.setdefault(key, {})
        if known is not None and applied.get((kind, name)) == (wanted, known[FINGERPRINT]):
            return None
        if known is None or not _is_ours(known, state):
            existing = await self._cluster.get(kind, state.namespace, name)
            if existing is not None and not _is_ours({**existing, "kind": kind}, state):
                return Reason(NAME_TAKEN, f"{kind} {name} exists and is not this experiment's; delete or rename one")
        try:
            made = await self._cluster.apply(_never_anew(manifest, known))
        except ApiError as error:
            if (
                kind == "Job" and known is not None and error.status == 409
            ):  # deleted meanwhile: what is to be now is another question
                raise _Replaced from error
            if is_transient(error):
                raise
            logger.warning("%s/%s: %s %s is refused: %s", *key, kind, name, error)
            return Reason("Refused", f"{kind} {name}: {error}"[:1000])
        self._store.put(made)
        applied[kind, name] = (wanted, slim(made)[FINGERPRINT])
        return None

    async def _say_refused(self, body: Object, problem: str) -> None:
        metadata = body["metadata"]
        status = read_status(body)
        said = refused(status, problem, now=self._now(), generation=metadata["generation"])
        if said != status:
            await self._apply_status(metadata["namespace"], metadata["name"], metadata["uid"], said)

    async def _apply_status(self, namespace: str, name: str, uid: str, status: ExperimentStatus) -> None:
        metadata = {"name": name, "namespace": namespace, "uid": uid}  # never the status of one that took its name
        manifest = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "status": status_to_write(status)}
        try:
            await self._cluster.apply(manifest, subresource="status")
        except ApiError as error:
            if error.status in (404, 409):  # deleted since it was read; another may have its name by now
                raise _Replaced from error
            raise

    async def _post(self, state: ExperimentState, transition: transitions.Transition) -> None:
        now = self._now().isoformat(timespec="seconds").replace("+00:00", "Z")
        about = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": state.name,
            "namespace": state.namespace,
            "uid": state.uid,
        }
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{state.name}.{uuid.uuid4().hex[:16]}", "namespace": state.namespace},
            "involvedObject": about,
            "type": transition.type,
            "reason": transition.reason,
            "message": transition.message[:1000],
            "source": {"component": MANAGER},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            await self._cluster.create(event)
        except ApiError as error:
            logger.warning("%s/%s: the event %s is refused: %s", *key_of_state(state), transition.reason, error)

    def _api_key(self, state: ExperimentState, observed: Observed) -> str:
        """The key in the Secret that is there, else the one that belongs to this experiment: the same every time."""
        secret = observed.get("Secret", resource_names.api_key_secret(state.name))
        if secret is not None:
            try:
                return base64.b64decode(secret["data"][API_KEY], validate=True).decode()
            except (KeyError, binascii.Error, UnicodeDecodeError):
                logger.warning("%s/%s: the Secret of the API key is damaged and made anew", *key_of_state(state))
        return hmac.new(self._root_key, state.uid.encode(), hashlib.sha256).hexdigest()

    def _forget(self, key: Key) -> None:
        self._applied.pop(key, None)
        self._refusals.pop(key, None)
        self._store.forget(key)


def _waves(manifests: Sequence[Manifest]) -> list[list[Manifest]]:
    """What pods need, then what makes pods: a pod never waits for its configuration or its claim."""
    needed = [manifest for manifest in manifests if manifest["kind"] not in MAKE_PODS]
    return [needed, [manifest for manifest in manifests if manifest["kind"] in MAKE_PODS]]


def _never_anew(manifest: Manifest, known: Object | None) -> Manifest:
    """A Job that was there when this was planned is not made anew: a pod of it may still run, and would get company."""
    if manifest["kind"] != "Job" or known is None:
        return manifest
    return {**manifest, "metadata": {**manifest["metadata"], "uid": known["metadata"]["uid"]}}


def state_of(body: Object) -> ExperimentState:
    """The experiment in an object of the API server; raises ``ConfigError`` that says what is wrong with it."""
    metadata = body["metadata"]
    experiment, unknown = read_experiment(body, source=metadata["name"])
    if unknown:
        _report_unknown(metadata["namespace"], metadata["name"], tuple(unknown))
    return ExperimentState(
        experiment, metadata["namespace"], metadata["uid"], metadata["generation"], read_status(body)
    )


@functools.lru_cache(maxsize=1024)  # reports once
def _report_unknown(namespace: str, name: str, keys: tuple[str, ...]) -> None:
    logger.warning(
        "%s/%s: fields of a newer resource definition are ignored: %s; update the operator",
        namespace,
        name,
        ", ".join(keys[:20]),
    )


def key_of_state(state: ExperimentState) -> Key:
    """The key of an experiment."""
    return state.namespace, state.name


def _waits_in_silence(status: ExperimentStatus) -> bool:
    if status.phase not in ("Starting", "Running"):
        return False
    found: Sequence[str] = [
        condition.reason
        for kind in (STORAGE, SERVERS, TRAINER)
        if (condition := find(status.conditions, kind)) is not None and condition.status != "True"
    ]
    return any(reason in EXPLAINED_BY_EVENTS for reason in found)


def _is_ours(obj: Object, state: ExperimentState) -> bool:
    """Whether an object may be applied: this experiment owns it. A volume claim without an owner may be used."""
    owner = owner_uid(obj)
    if obj["kind"] == "PersistentVolumeClaim":
        return owner in (None, state.uid)
    return owner == state.uid
