"""``servers``: the SGLang servers of an experiment."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from areal_api.autoscale import AutoscaleSpec
from areal_api.bounds import FreeForm
from areal_api.pod_fields import Name
from areal_api.pods import MAX_PODS, MAX_PROCESSES, PodSettings
from areal_api.section import CamelSection
from areal_api.server_pools import MAX_POOLS, ServerPool


class ModelCache(CamelSection):
    """A volume with models of the Hugging Face hub that the servers of several experiments share."""

    claim_name: Name = Field(
        description="PersistentVolumeClaim of the namespace. Every server must be able to mount it: ReadWriteMany, or "
        "all servers on one node."
    )


class ServersSpec(PodSettings):
    """SGLang servers."""

    replicas: int = Field(1, ge=1, le=MAX_PODS, description="Number of servers; may be changed during the run.")
    max_replicas: int | None = Field(
        None, ge=1, le=MAX_PODS, description="Upper limit of replicas during the run; null is replicas."
    )
    min_replicas: int | None = Field(
        None,
        ge=1,
        le=MAX_PODS,
        description="Number of servers that the run starts with if its queue has no quota for more, only in Kubernetes "
        "with a queue of Kueue; null is replicas.",
    )
    autoscale: AutoscaleSpec | None = Field(
        None,
        description="Lets the operator choose the number of servers from how long the trainer and the servers wait; "
        "the run starts with replicas. Only in Kubernetes, without a queue of Kueue. null keeps replicas.",
    )
    tensor_parallel: int = Field(1, ge=1, le=MAX_PROCESSES, description="GPUs per server (on cpu: processes).")
    nodes_per_server: int = Field(
        1,
        ge=1,
        le=MAX_PROCESSES,
        description="Pods of each server, on as many nodes, with equal shares of its GPUs; they start, restart and end "
        "together. Only in Kubernetes.",
    )
    termination_grace_period_seconds: int = Field(
        120,
        ge=10,
        le=86400,
        description="How long a server may finish the requests it has begun.",
        json_schema_extra={"unit": "s"},
    )
    startup_seconds: int = Field(
        3600,
        ge=30,
        le=86400,
        description="How long the process of a server may take until it is ready, before it is restarted; in a cluster "
        "the time to pull its image does not count.",
        json_schema_extra={"unit": "s"},
    )
    model_cache: ModelCache | None = Field(
        None,
        description="Shared cache of models. An init container downloads the model if the cache lacks it, and the "
        "server reads it from there; null downloads it in every pod. Only in Kubernetes.",
    )
    args: FreeForm = Field(
        default_factory=dict,
        description="Additional SGLang arguments, named as in its ServerArgs; they override config.sglang.",
    )

    pools: list[ServerPool] = Field(
        default_factory=list,
        max_length=MAX_POOLS,
        description="Further servers with other devices, sizes or nodes, beside the replicas of servers itself. Only "
        "in Kubernetes; they do not change once the run has started.",
    )

    @property
    def groups(self) -> list[ServerGroup]:
        """The servers of this section itself, then each pool."""
        without = self.model_copy(update={"pools": []})
        fixed = {"max_replicas": None, "min_replicas": None, "autoscale": None}
        pools = [
            ServerGroup(pool.name, number, without.model_copy(update={**fixed, **pool.changes()}))
            for number, pool in enumerate(self.pools, start=1)
        ]
        return [ServerGroup(None, 0, without), *pools]

    @property
    def processes_per_pod(self) -> int:
        """GPUs (on cpu: processes) of each of a server's pods."""
        return self.tensor_parallel // self.nodes_per_server

    @property
    def pods(self) -> int:
        """Pods of all servers."""
        return self.replicas * self.nodes_per_server

    @property
    def guaranteed(self) -> int:
        """Servers that are not borrowed."""
        return self.replicas if self.autoscale is None else min(self.replicas, self.autoscale.min)

    @property
    def min_pods(self) -> int:
        """Pods of as many servers as are enough to start."""
        return min(self.guaranteed, self.min_replicas or self.replicas) * self.nodes_per_server


@dataclass(frozen=True)
class ServerGroup:
    """Servers with the same settings: those of ``servers`` itself, or a pool."""

    pool: str | None  # its name; None for those of servers itself
    number: int  # 0 for those of servers itself, then in the order of servers.pools
    servers: ServersSpec  # without pools

    @property
    def key(self) -> str:
        """Where a user writes its settings."""
        return "servers" if self.pool is None else f"servers.pools[{self.pool}]"
