"""GPUs by name, with the memory that a process can allocate on one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

GIB = 2**30
USABLE_FRACTION = 0.95  # the rest is lost to fragmentation
CUDA_BYTES = int(1.5 * GIB)  # CUDA context, cuBLAS workspaces and NCCL buffers of a process
PRODUCT_LABEL = "nvidia.com/gpu.product"  # of a node, by NVIDIA's GPU feature discovery


@dataclass(frozen=True)
class Gpu:
    """A GPU model; ``bytes`` is its whole memory as the driver reports it."""

    name: str
    bytes: int

    @property
    def usable_bytes(self) -> int:
        """What a process of PyTorch can allocate for tensors."""
        return int(USABLE_FRACTION * self.bytes) - CUDA_BYTES


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A10-24GB", int(22.1 * GIB)),
        Gpu("A100-40GB", int(39.4 * GIB)),
        Gpu("A100-80GB", int(79.1 * GIB)),
        Gpu("B200-180GB", int(178.3 * GIB)),
        Gpu("H100-80GB", int(79.1 * GIB)),
        Gpu("H200-141GB", int(139.8 * GIB)),
        Gpu("L4-24GB", int(22.0 * GIB)),
        Gpu("L40S-48GB", int(44.4 * GIB)),
        Gpu("RTX4090-24GB", int(23.5 * GIB)),
    )
}


def gpu_named(name: str) -> Gpu:
    """The GPU of that name. Raises ``ValueError`` with the known names."""
    if name in GPUS:
        return GPUS[name]
    close = difflib.get_close_matches(name.upper(), GPUS, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]}? " if close else ""
    raise ValueError(f"--gpu is {name!r}, which is not known; {hint}known names: {', '.join(GPUS)}")


def gpu_of_labels(labels: Mapping[str, str]) -> Gpu | None:
    """The GPU that a node selector asks for by NVIDIA's product label; None if it asks for none, or an unknown one."""
    product = labels.get(PRODUCT_LABEL, "").upper()  # NVIDIA-H100-80GB-HBM3, NVIDIA-A100-SXM4-40GB, NVIDIA-L4, …
    words = set(re.split(r"[^A-Z0-9]+", product))
    fitting = [gpu for gpu in GPUS.values() if gpu.name.split("-")[0] in words]
    exact = [gpu for gpu in fitting if gpu.name.split("-")[1] in words]
    return min(exact or fitting, key=lambda gpu: gpu.bytes, default=None)
