"""Cross-field rules of ``servers.pools`` for the API server, in CEL: a part of ``cel_rules``."""

from __future__ import annotations

from areal_api.generate.rule import Rule, is_set
from areal_api.server_pools import MAX_POOL_NAMES_LENGTH

_POOLS = "self.servers.pools"
_PER_NODE = "self.config.cluster.n_gpus_per_node"


def _own(key: str) -> str:
    """The value of a pool's key, which replaces that of servers."""
    return f"(({is_set(f'one.{key}')}) ? one.{key} : self.servers.{key})"


def _sum(expression: str) -> str:
    return f"(has({_POOLS}) ? {_POOLS}.map(one, {expression}).sum() : 0)"


def _all(expression: str, message: str) -> Rule:
    return Rule("spec", f"!has({_POOLS}) || {_POOLS}.all(one, {expression})", message)


POOL_GPUS = _sum(f"{_own('device')} == 'cuda' ? one.replicas * {_own('tensorParallel')} : 0")
POOL_PODS = _sum(f"one.replicas * {_own('nodesPerServer')}")


def pool_rules() -> list[Rule]:
    """The rules of ``experiment._pool_problems``, and those of all servers that pools can break."""
    new, old = "self.spec.servers.pools", "oldSelf.spec.servers.pools"
    return [
        *_name_rules(),
        Rule(
            "spec",
            f"!has({_POOLS}) || size({_POOLS}) == 0 || !({is_set('self.servers.autoscale')})",
            "servers.autoscale and servers.pools exclude each other; remove one",
        ),
        Rule(
            "",
            "!has(oldSelf.status) || !has(oldSelf.status.startTime) || "
            f"(has({new}) ? {new} : []) == (has({old}) ? {old} : [])",
            "servers.pools of a run that has started does not change; create a new experiment",
        ),
        _all(
            f"{_own('tensorParallel')} % {_own('nodesPerServer')} == 0",
            "tensorParallel of a pool of servers is not a multiple of its nodesPerServer; make it one",
        ),
        _all(
            f"{_own('nodesPerServer')} == 1 || (self.storage.shared && 'ReadWriteMany' in self.storage.accessModes)",
            "a pool of servers with nodesPerServer above 1 needs ReadWriteMany in storage.accessModes, and "
            "storage.shared true",
        ),
        _all(
            f"!({is_set(_PER_NODE)}) || {_own('device')} != 'cuda' || "
            f"{_own('tensorParallel')} <= {_PER_NODE} * {_own('nodesPerServer')}",
            "tensorParallel of a pool of servers is above cluster.n_gpus_per_node × its nodesPerServer; raise "
            "nodesPerServer",
        ),
        _all(
            f"self.config.actor.weight_update_mode != 'distributed' || {_own('device')} == self.trainer.device",
            "actor.weight_update_mode distributed needs one device for the trainer and every pool of servers; set it "
            "to disk",
        ),
        _all(
            f"!({is_set('self.packing')}) || !({is_set('one.affinity')}) || !({is_set('one.affinity.podAffinity')})",
            "packing and affinity.podAffinity of a pool of servers exclude each other; remove one",
        ),
        *_claim_rules(),
    ]


def _name_rules() -> list[Rule]:
    pools = "self.spec.servers.pools"
    return [
        Rule(
            "",
            f"!has({pools}) || {pools}.all(one, size(one.name) + size(self.metadata.name) <= {MAX_POOL_NAMES_LENGTH})",
            f"a name in servers.pools and metadata.name have together more than {MAX_POOL_NAMES_LENGTH} characters; "
            "shorten one",
        ),
        _all(
            f"{_POOLS}.exists_one(other, other.name == one.name)",
            "servers.pools has several entries with one name; give each its own",
        ),
    ]


def _claim_rules() -> list[Rule]:
    sources = [is_set(f"claim.{key}") for key in ("resourceClaimName", "resourceClaimTemplateName")]
    none = "!has(self.servers.resourceClaims) ? [] : self.servers.resourceClaims.map(known, known.name)"
    known = f"(({is_set('one.resourceClaims')}) ? one.resourceClaims.map(known, known.name) : {none})"
    own = f"({is_set('one.resources')}) && ({is_set('one.resources.claims')})"
    servers = is_set("self.servers.resources.claims")
    return [
        _all(
            f"!({is_set('one.resourceClaims')}) || one.resourceClaims.all(claim, ({sources[0]}) != ({sources[1]}))",
            "an entry of resourceClaims of a pool of servers needs exactly one of resourceClaimName and "
            "resourceClaimTemplateName",
        ),
        _all(
            f"({own}) ? one.resources.claims.all(claim, claim.name in {known}) : "
            f"(({is_set('one.resources')}) || !({servers}) || self.servers.resources.claims.all(claim, "
            f"claim.name in {known}))",
            "resources.claims of a pool of servers names a claim that its resourceClaims lacks; add it there",
        ),
    ]
