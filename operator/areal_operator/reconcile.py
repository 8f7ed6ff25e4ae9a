"""One reconcile: observe, plan, write the status, apply. It may be interrupted anywhere; the next one continues."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from areal_api import conditions, resource_names
from areal_api.errors import ConfigError, describe
from areal_api.experiment import API_VERSION, KIND, GRPOExperiment
from areal_api.render import config_yaml
from areal_api.status import ExperimentStatus
from areal_operator import transitions
from areal_operator.applied import (
    CLAIM,
    CREATE_PODS,
    UNPROCESSABLE,
    digest_of,
    is_applied,
    may_change,
    name_taken,
    names_another_object,
    waves,
)
from areal_operator.cluster import QUOTA, ApiError, Cluster, is_transient
from areal_operator.corrections import PAUSE_S, Corrections
from areal_operator.diagnosis import Reason
from areal_operator.elastic import Loads
from areal_operator.events import event
from areal_operator.experiments import Experiments
from areal_operator.manifests import pod_groups
from areal_operator.manifests.base import DIGEST, Manifest
from areal_operator.observed import ExperimentState, Object, Observed, annotation
from areal_operator.parsing import UnknownPhaseError, parsed_spec, status_of
from areal_operator.patches import changes_of, is_unchanged, mutable_part
from areal_operator.plan import Plan, plan, rejected
from areal_operator.queueing import kueue
from areal_operator.queueing.client import Queue
from areal_operator.queueing.positions import Positions
from areal_operator.settings import Settings
from areal_operator.status import find, pending, status_to_write
from areal_operator.status_pace import StatusPace
from areal_operator.store import FINGERPRINT, Key, Store, owner_uid, slim
from areal_operator.warning_events import NamespaceWarnings
from areal_operator.work_queue import COALESCE_S

logger = logging.getLogger(__name__)
PARALLEL_WRITES = 3  # of one experiment; each needs a connection, which takes memory and CPU time
SECRET = "Secret"
NAME_TAKEN_RETRY_S = 2.0  # an earlier experiment's objects of the same name are about to be collected
CONFLICT = 409
MAX_QUOTAS = 256  # namespaces whose quotas are kept
MAX_PARSED = 128  # parsed specs that are kept; parsing one again takes a few milliseconds


class _Replaced(Exception):
    """An object differs from what was planned with: the experiment or its Job no longer exists, or its claim does."""


@dataclass(frozen=True)
class _Existing:
    """An object that exists although the watch has not shown it."""

    obj: Object


@dataclass(frozen=True)
class _Parsed:
    """A parsed spec and its rendered configuration: both take long, and change only with the generation."""

    uid: str
    generation: int
    experiment: GRPOExperiment
    unknown_fields: tuple[str, ...]
    config_yaml: str


class Reconciler:
    """Brings the cluster to the state that an experiment asks for, and reports the progress in its status."""

    def __init__(
        self,
        cluster: Cluster,
        store: Store,
        experiments: Experiments,
        warnings: NamespaceWarnings,
        *,
        settings: Settings,
        root_key: bytes,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        positions: Positions,
        refused: Callable[[str, str], str | None] = lambda kind, namespace: None,
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._experiments = experiments
        self._warnings = warnings
        self._settings = settings
        self._root_key = root_key
        self._now = now
        self._parsed: OrderedDict[Key, _Parsed] = OrderedDict()  # the last ones used
        # Digest of the manifest that was applied last, and fingerprint of the object that resulted from it.
        self._applied: dict[Key, dict[tuple[str, str], tuple[str, str]]] = {}
        self._rejections: dict[Key, Reason] = {}
        self._corrections = Corrections()
        self._secret_at: dict[Key, dict[str, float]] = {}  # times when Secrets were last known to exist, by name
        self._unwatched_claims: set[Key] = set()  # experiments whose claim lacks the labels that the watch selects
        self._written: set[Key] = set()  # experiments of which this reconcile has written a status or an object
        self._loads = Loads()
        self._pace = StatusPace(settings.status_s)
        self._queue = Queue(cluster, settings, refused, positions)
        self._positions = positions
        self._refused = refused  # why a kind in a namespace cannot be read
        self._quotas: dict[str, tuple[float, tuple[Object, ...]]] = {}  # by namespace: when they were read
        self._unreadable: dict[Key, str] = {}  # resource version of an experiment that another version wrote

    async def reconcile(self, key: Key) -> float | None:
        """Reconcile one experiment; returns after how many seconds to repeat it, None to wait for a change."""
        self._written.discard(key)
        body = self._experiments.get(key)
        if body is None or body["metadata"].get("deletionTimestamp") is not None:
            self._forget(key)
            return None
        try:
            after_s = await self._reconcile_object(key, body)
            # What a write led to is planned with once.
            return _earlier(after_s, COALESCE_S if key in self._written else None)
        except _Replaced:
            await self._read_again(key)
            return 0.0
        except UnknownPhaseError as error:
            version = str(body["metadata"].get("resourceVersion"))
            if self._unreadable.get(key) != version:
                self._unreadable[key] = version
                logger.warning("%s/%s is left alone until the operator is upgraded: %s", *key, error)
            return None

    async def _read_again(self, key: Key) -> None:
        """Read an experiment whose cached state may be older than what a request has found."""
        body = await self._cluster.get(KIND, *key)
        if body is None:
            self._experiments.remove(key)
        else:
            self._experiments.put(body)

    async def _reconcile_object(self, key: Key, body: Object) -> float | None:
        status = status_of(body)
        try:
            state = self._state(key, body, status)
        except ConfigError as error:
            await self._write_rejection(body, status, str(error))
            return None
        decided = await self._plan(key, state)
        held_s = self._pace.wait_s(key, state.status, decided.status)
        if held_s == 0.0:
            await self._write_status(key, state, decided.status)
        self._loads.decided(key, state.status, decided.status, self._now())
        self._store.drop_deleted(key, before_attempt=decided.status.attempt)
        if decided.delete:
            await self._cluster.delete(KIND, *key, uid=state.uid)
            return None
        rejection = await self._apply_plan(key, state, decided)
        await self._report_to_queue(key, state, decided)
        if rejection == self._rejections.get(key):
            if rejection is not None and rejection.code == conditions.NAME_TAKEN:
                return NAME_TAKEN_RETRY_S
            return _earlier(self._requeue_after_s(key, decided), held_s or None)
        if rejection is None:
            del self._rejections[key]
        else:
            self._rejections[key] = rejection
        return 0.0  # the status has to show it

    async def _report_to_queue(self, key: Key, state: ExperimentState, decided: Plan) -> None:
        name = state.name
        reports = [
            (resource_names.borrowed_server(name, number), report, resource_names.borrowed_labels(name, number))
            for number, report in decided.borrowed.items()
        ]
        if decided.workload is not None:
            reports.append((resource_names.workload(name), decided.workload, resource_names.labels(name)))
        for workload_name, report, pods in reports:
            workload = self._store.get(key, kueue.WORKLOAD, workload_name)
            if workload is None or owner_uid(workload) != state.uid:
                continue
            written = await self._queue.report(workload, report, pods=pods, now=self._now())
            if written is not None:
                self._store.put_slim(slim(written))
                self._written.add(key)

    def _requeue_after_s(self, key: Key, decided: Plan) -> float | None:
        contested = self._corrections.contested(key) is not None
        return _earlier(decided.requeue_after_s, PAUSE_S if contested else None)

    def _state(self, key: Key, body: Object, status: ExperimentStatus) -> ExperimentState:
        metadata = body["metadata"]
        parsed = self._parsed.get(key)
        if parsed is None or (parsed.uid, parsed.generation) != (metadata["uid"], metadata["generation"]):
            experiment, unknown = parsed_spec(body)
            config = config_yaml(experiment.spec.config)
            parsed = _Parsed(metadata["uid"], metadata["generation"], experiment, unknown, config)
            self._parsed[key] = parsed
            if len(self._parsed) > MAX_PARSED:
                self._parsed.popitem(last=False)
            if unknown:
                logger.warning("%s/%s: unknown fields have no effect: %s", *key, ", ".join(unknown))
        self._parsed.move_to_end(key)
        return ExperimentState(
            parsed.experiment,
            metadata["namespace"],
            parsed.uid,
            parsed.generation,
            status,
            parsed.unknown_fields,
            parsed.config_yaml,
        )

    async def _plan(self, key: Key, state: ExperimentState) -> Plan:
        """Plan; if something is pending without a reason, fetch its warning events and plan again."""
        observed = Observed(
            self._store.objects(key, state.uid),
            deleted=self._store.deleted(key, state.uid),
            load=self._loads.observe(key, state, self._now()),
            refused=self._refused_groups(state.namespace),
        )
        observed = await self._queue.observe(state, await self._with_claim(key, state, observed))
        observed = await self._with_quotas(state, observed)
        api_key, gateway_key = self._derived_key(state.uid), self._derived_key(f"{state.uid}/gateway")
        rejection = self._rejections.get(key)
        contested = self._corrections.contested(key)

        def decide(observed: Observed) -> Plan:
            return plan(
                state,
                observed,
                self._now(),
                settings=self._settings,
                api_key=api_key,
                gateway_key=gateway_key,
                rejection=rejection,
                contested=contested,
            )

        decided = decide(observed)
        if not any(reason in conditions.UNEXPLAINED for reason in pending(decided.status)):
            self._warnings.forget(key)
            return decided
        uids = {str(obj["metadata"]["uid"]) for children in observed.objects.values() for obj in children}
        if not uids:
            return decided  # nothing was created that a warning could be about
        warnings = await self._warnings.about(key, uids)
        return decide(replace(observed, warnings=warnings)) if warnings else decided

    def _refused_groups(self, namespace: str) -> dict[str, str]:
        """The kinds of pod groups that cannot be read in a namespace, and why."""
        kinds = [pod_groups.APIS[api].kind for _, api in self._settings.gang_schedulers]
        reasons = {kind: self._refused(kind, namespace) for kind in kinds}
        return {kind: reason for kind, reason in reasons.items() if reason is not None}

    def _derived_key(self, purpose: str) -> str:
        return hmac.digest(self._root_key, purpose.encode(), "sha256").hex()

    async def _with_claim(self, key: Key, state: ExperimentState, observed: Observed) -> Observed:
        """``observed`` with a volume claim that the watch does not show, because somebody else created it."""
        name, storage = resource_names.volume_claim(state.name), find(state.status.conditions, conditions.STORAGE_READY)
        if observed.get(CLAIM, name) is not None:
            self._unwatched_claims.discard(key)
            return observed
        if key not in self._unwatched_claims and (storage is None or storage.reason != conditions.NOT_OURS):
            return observed
        claim = await self._cluster.get(CLAIM, state.namespace, name)
        if claim is None:
            self._unwatched_claims.discard(key)
            return observed
        claim = slim({**claim, "kind": CLAIM})
        return replace(observed, objects={**observed.objects, CLAIM: [claim]})

    async def _with_quotas(self, state: ExperimentState, observed: Observed) -> Observed:
        """``observed`` with the namespace's quotas as they were at most ``waiting_s`` ago, if the run is to start."""
        status = state.status
        if status.phase not in ("Pending", "Queued", "Suspended") or state.experiment.spec.run_policy.suspend:
            return observed
        at, quotas = self._quotas.get(state.namespace, (float("-inf"), ()))
        if time.monotonic() - at > self._settings.waiting_s:
            quotas = tuple((await self._cluster.list(QUOTA, state.namespace)).items)
            if len(self._quotas) >= MAX_QUOTAS:
                self._quotas.clear()
            self._quotas[state.namespace] = (time.monotonic(), quotas)
        return replace(observed, quotas=quotas)

    async def _write_status(self, key: Key, state: ExperimentState, status: ExperimentStatus) -> None:
        if status == state.status:
            return
        if await self._apply_status(state.namespace, state.name, state.uid, status):
            self._written.add(key)
        self._pace.written(key)
        for transition in transitions.between(state.status, status):
            logger.info("%s/%s: %s: %s", state.namespace, state.name, transition.reason, transition.message)
            try:
                await self._cluster.create(event(state, transition, self._now()))
            except ApiError as error:
                logger.warning("%s: event %s was refused: %s", state.name, transition.reason, describe(error))

    async def _apply_plan(self, key: Key, state: ExperimentState, decided: Plan) -> Reason | None:
        """Prune and apply; returns the first rejection by the API server.

        An existing object whose update is refused does not hold up the others; a missing one holds up those that make
        pods, because the pods would wait for it.
        """
        for kind, name in decided.prune:
            child = self._store.get(key, kind, name)
            if child is not None:
                await self._cluster.delete(kind, state.namespace, name, uid=child["metadata"]["uid"])
        rejection: Reason | None = None
        new_pods = self._makes_other_pods(key, decided.objects)
        job_created = decided.status.job_uid is not None

        async def write(manifest: Manifest) -> Reason | None:
            if manifest["kind"] == SECRET:
                missing = _is_missing(manifest["metadata"]["name"], decided.status)
                return await self._ensure_secret(key, manifest, new_pods=new_pods, missing=missing)
            return await self._apply(key, state, manifest, job_created=job_created)

        for wave in waves(decided.objects):
            results: list[Reason | BaseException | None] = []
            for start in range(0, len(wave), PARALLEL_WRITES):
                part = wave[start : start + PARALLEL_WRITES]
                results += await asyncio.gather(*[write(manifest) for manifest in part], return_exceptions=True)
            for manifest, result in zip(wave, results, strict=True):
                if isinstance(result, BaseException):
                    raise result
                rejection = rejection or result
                if result is not None and self._store.get(key, manifest["kind"], manifest["metadata"]["name"]) is None:
                    return rejection
        return rejection

    async def _apply(self, key: Key, state: ExperimentState, manifest: Manifest, *, job_created: bool) -> Reason | None:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        wanted, known = digest_of(manifest), self._store.get(key, kind, name)
        if kind == "Job" and known is None and job_created:
            raise _Replaced  # deleted after the plan was made: it must not be created a second time
        applied = self._applied.setdefault(key, {})
        before = applied.get((kind, name))
        if known is not None and before == (wanted, known[FINGERPRINT]):
            return None
        if known is not None and before is None and is_applied(manifest, known):
            applied[kind, name] = (wanted, known[FINGERPRINT])  # by this process's predecessor
            return None
        if known is not None and kind == CLAIM and may_change(known, state) and is_unchanged(manifest, known):
            return None
        if known is not None and not may_change(known, state):
            known = await self._existing(manifest)
            if known is not None and not may_change(known, state):
                return name_taken(manifest)
        if known is not None and before is not None and before[0] == wanted:
            if self._corrections.must_wait(key, known):
                return None
            self._corrections.add(key, known)
        try:
            obj = await self._write(key, state, manifest, known)
        except ApiError as error:
            if kind == "Job" and known is not None and names_another_object(error):  # deleted since it was observed
                raise _Replaced from error
            if is_transient(error):
                raise
            logger.warning("%s/%s: %s %s was refused: %s", *key, kind, name, describe(error))
            return Reason(conditions.REFUSED, f"{kind} {name}: {error}"[:1000])
        if isinstance(obj, Reason):
            return obj
        new = slim({**obj, "kind": kind})
        if known is None or known["metadata"]["resourceVersion"] != new["metadata"]["resourceVersion"]:
            self._written.add(key)
        self._store.put_slim(new)
        applied[kind, name] = (wanted, new[FINGERPRINT])
        return None

    def _makes_other_pods(self, key: Key, manifests: Sequence[Manifest]) -> bool:
        """Whether an object that makes pods does not exist, or was last applied from another manifest."""
        for manifest in manifests:
            if manifest["kind"] in CREATE_PODS:
                known = self._store.get(key, manifest["kind"], manifest["metadata"]["name"])
                if known is None or annotation(known, DIGEST) != manifest["metadata"]["annotations"][DIGEST]:
                    return True
        return False

    async def _ensure_secret(self, key: Key, manifest: Manifest, *, new_pods: bool, missing: bool) -> Reason | None:
        """Create the Secret before what makes pods that mount it, and again if a pod cannot start without it.

        The operator cannot read Secrets. An existing one is ours: its name contains our UID.
        """
        name = manifest["metadata"]["name"]
        known_at = self._secret_at.setdefault(key, {})
        at = known_at.get(name)
        if missing and at is not None and time.monotonic() - at < self._settings.waiting_s:
            return None
        if not missing and (at is not None or not new_pods):
            return None
        try:
            await self._cluster.create(manifest)
        except ApiError as error:
            if is_transient(error):
                raise
            if error.reason != "AlreadyExists":
                logger.warning("%s/%s: Secret %s was refused: %s", *key, name, describe(error))
                return Reason(conditions.REFUSED, f"Secret {name}: {error}"[:1000])
        known_at[name] = time.monotonic()
        return None

    async def _write(
        self, key: Key, state: ExperimentState, manifest: Manifest, known: Object | None
    ) -> Object | Reason:
        """Create an object, or update what of an existing one is mutable.

        A Job is never applied again: after its creation only few fields are mutable, and other controllers may have
        changed immutable ones while it was created. Its uid makes sure that a deleted Job is not created again.
        """
        if known is None:
            created = await self._create(key, state, manifest)
            if not isinstance(created, _Existing):
                return created
            known = created.obj
        if manifest["kind"] in ("Job", CLAIM):
            return await self._cluster.patch(manifest, changes_of(manifest, known))
        try:
            return await self._cluster.apply(manifest)
        except ApiError as error:
            if error.status != UNPROCESSABLE:
                raise
            return await self._cluster.patch(manifest, mutable_part(manifest, known))

    async def _create(self, key: Key, state: ExperimentState, manifest: Manifest) -> Object | Reason | _Existing:
        """Create an object. One of its name that the watch does not show is changed only if it is this experiment's."""
        try:
            return await self._cluster.apply_new(manifest)
        except ApiError as error:
            if error.status != CONFLICT:
                raise
        existing = await self._existing(manifest)
        if existing is None:
            raise _Replaced  # deleted in the meantime
        if manifest["kind"] == CLAIM and key not in self._unwatched_claims:
            self._unwatched_claims.add(key)
            raise _Replaced  # the manifest depends on an existing claim
        return _Existing(existing) if may_change(existing, state) else name_taken(manifest)

    async def _existing(self, manifest: Manifest) -> Object | None:
        metadata = manifest["metadata"]
        obj = await self._cluster.get(manifest["kind"], metadata["namespace"], metadata["name"])
        return None if obj is None else slim({**obj, "kind": manifest["kind"]})

    async def _write_rejection(self, body: Object, status: ExperimentStatus, problem: str) -> None:
        metadata = body["metadata"]
        new = rejected(status, problem, now=self._now(), generation=metadata["generation"])
        if new != status:
            await self._apply_status(metadata["namespace"], metadata["name"], metadata["uid"], new)

    async def _apply_status(self, namespace: str, name: str, uid: str, status: ExperimentStatus) -> bool:
        """Write a status; returns whether that has changed the object."""
        metadata = {"name": name, "namespace": namespace, "uid": uid}  # never that of another object of this name
        manifest = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "status": status_to_write(status)}
        try:
            return self._experiments.refresh(await self._cluster.apply(manifest, subresource="status"))
        except ApiError as error:
            if error.status in (404, 409):  # deleted since it was read; its name may be in use again
                raise _Replaced from error
            raise

    def _forget(self, key: Key) -> None:
        for cache in (self._parsed, self._applied, self._rejections, self._unreadable, self._secret_at):
            cache.pop(key, None)
        for keys in (self._unwatched_claims, self._written):
            keys.discard(key)
        self._corrections.forget(key)
        self._warnings.forget(key)
        self._positions.forget(key)
        self._loads.forget(key)
        self._pace.forget(key)
        self._store.forget(key)


def _earlier(one: float | None, other: float | None) -> float | None:
    """The earlier of two delays; None is never."""
    return min((delay for delay in (one, other) if delay is not None), default=None)


def _is_missing(secret: str, status: ExperimentStatus) -> bool:
    """Whether a pod waits for a Secret that does not exist, as its container or a warning event says."""
    return any(one.reason == conditions.MISSING_SECRET and secret in one.message for one in status.conditions)
