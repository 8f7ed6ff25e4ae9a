"""Whether the ResourceQuotas of a namespace can hold a run: what its pods request, and what is allowed. Pure.

Only what can never fit keeps a run from starting. Whether there is room at the moment is decided when pods are created;
the conditions ServersReady and TrainerRunning then show the refusal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal

from areal_api import conditions
from areal_api.quantities import parse_quantity
from areal_operator.diagnosis import Reason, truncated
from areal_operator.manifests import servers, trainer
from areal_operator.manifests.base import Build, Manifest
from areal_operator.observed import Object
from areal_operator.status import ConditionStatus, ConditionUpdate

NATIVE = ("cpu", "memory", "ephemeral-storage")  # in quotas also without the prefix requests.
PODS = "pods"
Amounts = Mapping[str, Decimal]


def within_quota(build: Build, quotas: Sequence[Object]) -> ConditionUpdate | None:
    """The condition WithinQuota; None if no quota of the namespace limits what the run requests."""
    if not quotas:
        return None
    needed = demand(build)
    compared: list[str] = []
    for quota in sorted(quotas, key=lambda one: str(one["metadata"]["name"])):
        spec = quota.get("spec") or {}
        if spec.get("scopes") or spec.get("scopeSelector"):
            continue  # it counts some pods alone
        for key, text in sorted((spec.get("hard") or {}).items()):
            amount = needed.get(key)
            if amount is None:
                continue
            what = f"ResourceQuota {quota['metadata']['name']} allows {text} {key}, and the run needs {_show(amount)}"
            if amount > parse_quantity(text):
                text = f"{what}; raise the quota, or lower servers.replicas or the requests of servers and trainer"
                return _condition(conditions.QUOTA_TOO_SMALL, text)
            compared.append(what)
    return _condition(conditions.WITHIN_QUOTA, "; ".join(compared)) if compared else None


def demand(build: Build) -> Amounts:
    """What servers and trainer count for, by the names in quotas. Limits replace requests that are not listed."""
    spec = build.experiment.spec
    sets = (
        (spec.servers.min_pods, servers.server_set(build, spec.servers.replicas)),
        *((int(pool["spec"]["replicas"]), pool) for pool in servers.pool_sets(build)),
        (spec.trainer.nodes, trainer.trainer_job(build)),
    )
    total: dict[str, Decimal] = {PODS: Decimal(0)}
    for count, owner in sets:
        total[PODS] += count
        for key, amount in _pod_demand(owner["spec"]["template"]["spec"]).items():
            total[key] = total.get(key, Decimal(0)) + count * amount
    return total


def _pod_demand(pod: Manifest) -> Amounts:
    """Of one pod: its containers and sidecars together, or an init container with the sidecars before it."""
    running = _sum(_container_demand(one) for one in pod["containers"])
    sidecars: Amounts = {}
    peak: Amounts = {}
    for one in pod.get("initContainers", ()):
        own = _sum((sidecars, _container_demand(one)))
        peak = _largest(peak, own)
        sidecars = own if one.get("restartPolicy") == "Always" else sidecars
    return _largest(peak, _sum((running, sidecars)))


def _container_demand(container: Manifest) -> Amounts:
    resources = container.get("resources") or {}
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    result = {f"limits.{name}": parse_quantity(amount) for name, amount in limits.items()}
    for name, amount in {**limits, **requests}.items():
        result[f"requests.{name}"] = parse_quantity(amount)
        if name in NATIVE:
            result[name] = parse_quantity(amount)
    return result


def _sum(amounts: Iterable[Amounts]) -> Amounts:
    result: dict[str, Decimal] = {}
    for one in amounts:
        for key, amount in one.items():
            result[key] = result.get(key, Decimal(0)) + amount
    return result


def _largest(one: Amounts, other: Amounts) -> Amounts:
    return {key: max(one.get(key, Decimal(0)), other.get(key, Decimal(0))) for key in {**one, **other}}


def _show(amount: Decimal) -> str:
    for suffix, power in (("Ti", 40), ("Gi", 30), ("Mi", 20)):
        if amount >= 2**power and amount % 2**power == 0:
            return f"{int(amount) >> power}{suffix}"
    return format(amount.normalize(), "f")


def _condition(code: str, message: str) -> ConditionUpdate:
    status: ConditionStatus = "True" if code == conditions.WITHIN_QUOTA else "False"
    return ConditionUpdate(conditions.WITHIN_QUOTA, status, Reason(code, truncated(message)))
