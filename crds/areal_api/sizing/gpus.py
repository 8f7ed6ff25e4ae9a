"""GPUs by name, with the memory that a process can allocate on one."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """A GPU model; ``bytes`` is its whole memory as the driver reports it."""

    name: str
    bytes: int


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
