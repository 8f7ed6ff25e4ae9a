"""Whether this machine has enough GPUs for a run."""

from __future__ import annotations

from areal_api.experiment import ExperimentSpec
from areal_launcher.core.plan import gpus_per_server, gpus_per_trainer_node


def required_gpus(spec: ExperimentSpec) -> tuple[int, int]:
    """Number of GPUs of the servers and of the trainer."""
    return spec.servers.replicas * gpus_per_server(spec), gpus_per_trainer_node(spec)


def check_gpus(spec: ExperimentSpec, gpus: list[str]) -> None:
    """There must be a separate GPU for every process on CUDA."""
    servers, trainer = required_gpus(spec)
    if servers + trainer <= len(gpus):
        return
    parts = [f"servers.device is cuda ({servers} GPUs)"] * bool(servers)
    parts += [f"trainer.device is cuda ({trainer} GPUs)"] * bool(trainer)
    if not gpus:
        keys = ["servers.device=cpu"] * bool(servers) + ["trainer.device=cpu"] * bool(trainer)
        raise ValueError(f"{', '.join(parts)}, but no GPU is visible here; set {' '.join(keys)} to run on CPUs")
    raise ValueError(
        f"{', '.join(parts)}, but {len(gpus)} GPUs are visible here ({', '.join(gpus)}); "
        "lower servers.replicas, servers.tensorParallel or trainer.processesPerNode"
    )
