"""The GPUs of this machine, and whether a run has enough of them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping

from areal_api.experiment import ExperimentSpec
from areal_launcher.core.plan import gpus_per_server, gpus_per_trainer_node

NVIDIA_SMI_TIMEOUT_S = 60.0


def visible_gpus(environ: Mapping[str, str]) -> list[str]:
    """Ids of the GPUs this process may use, from CUDA_VISIBLE_DEVICES if set, else from nvidia-smi."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        ids = [name.strip() for name in visible.split(",")]
        # Like CUDA: the list ends at the first invalid id.
        return ids[: next((i for i, name in enumerate(ids) if name in ("", "-1")), len(ids))]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=index", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ValueError(
            f"nvidia-smi did not answer within {NVIDIA_SMI_TIMEOUT_S:.0f} s, so the GPUs of this machine are unknown; "
            "repair the driver, or set CUDA_VISIBLE_DEVICES"
        ) from error
    return done.stdout.split() if done.returncode == 0 else []


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
