"""``spec.slurm``: how ``grpo run --on slurm`` asks for an allocation. The operator ignores it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from areal_api.section import CamelSection

MAX_ARGS = 64
MAX_TEXT = 1024
Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
Argument = Annotated[str, Field(min_length=1, max_length=MAX_TEXT, pattern=r"^[^\x00-\x1f]+$")]


class SlurmServers(CamelSection):
    """A separate component for the servers, in a heterogeneous job."""

    nodes: int = Field(1, ge=1, le=1024, description="Nodes of the servers' component.")
    partition: Text | None = Field(None, description="Partition; null is that of the trainer.")
    constraint: Text | None = Field(None, description="Required features of the nodes; null is none.")
    args: list[Argument] = Field([], max_length=MAX_ARGS, description="Additional arguments of sbatch.")


class SlurmSpec(CamelSection):
    """Options of sbatch and srun for grpo --on slurm. Kubernetes ignores them."""

    partition: Text | None = Field(None, description="Partition; null is the cluster's default.")
    account: Text | None = Field(None, description="Account that is charged; null is the user's default.")
    qos: Text | None = Field(None, description="Quality of service; null is the default.")
    time: Text | None = Field(None, description="Time limit, as in sbatch: 12:00:00 or 2-00; null is the partition's.")
    constraint: Text | None = Field(None, description="Required features of the nodes; null is none.")
    nodes: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Nodes of the allocation; null is cluster.n_nodes, else as few as hold servers and trainer.",
    )
    cpus_per_node: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="CPUs on each node; null is one per process on cpu and four per GPU on cuda, if a node has them.",
    )
    args: list[Argument] = Field([], max_length=MAX_ARGS, description="Additional arguments of sbatch.")
    requeue: bool = Field(
        True, description="Queue the job again after preemption, a lost node or the time limit; it continues by itself."
    )
    stop_seconds: int = Field(
        150,
        ge=30,
        le=3600,
        description="How long before the time limit the trainer is asked to write a recovery checkpoint and end.",
        json_schema_extra={"unit": "s"},
    )
    container_image: Text | None = Field(
        None, description="Image in which servers and trainer run; null is the environment of grpo."
    )
    container_runtime: Literal["pyxis", "apptainer"] = Field(
        "pyxis", description="pyxis passes srun --container-image; apptainer runs apptainer exec in each step."
    )
    container_args: list[Argument] = Field(
        [], max_length=MAX_ARGS, description="Additional arguments of srun (pyxis) or apptainer exec."
    )
    python: Text | None = Field(
        None, description="Interpreter on the nodes; null is that of grpo, or python3 in a container."
    )
    servers: SlurmServers | None = Field(
        None, description="A separate component for the servers (heterogeneous job); null is one allocation."
    )
