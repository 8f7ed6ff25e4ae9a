"""Where nvcc is: SGLang and FlashInfer compile kernels at run time, and SGLang does not look at pip's CUDA toolkit."""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Mapping
from pathlib import Path

SYSTEM_TOOLKIT = Path("/usr/local/cuda")
TOOLKIT_OF_WHEELS = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13"


def find_nvcc(environ: Mapping[str, str], *, system: Path = SYSTEM_TOOLKIT, wheels: Path = TOOLKIT_OF_WHEELS) -> Path:
    """The compiler that a server uses: of CUDA_HOME, PATH, the system or pip's packages.

    Raises ``ValueError`` where there is no nvcc: the server would end at its first forward pass.
    """
    home = environ.get("CUDA_HOME")
    if home is not None:
        if nvcc_of(Path(home)).is_file():
            return nvcc_of(Path(home))
        raise ValueError(f"CUDA_HOME is {home}, which has no bin/nvcc; correct it or leave it out")
    if on_path := shutil.which("nvcc", path=environ.get("PATH")):
        return Path(on_path)
    for toolkit in (system, wheels):
        if nvcc_of(toolkit).is_file():
            return nvcc_of(toolkit)
    raise ValueError(
        "no nvcc was found on PATH, in /usr/local/cuda or among pip's packages, and SGLang compiles kernels at run "
        "time; install it with make setup DEVICE=cuda, or set CUDA_HOME"
    )


def toolkit_environment(
    environ: Mapping[str, str], *, system: Path = SYSTEM_TOOLKIT, wheels: Path = TOOLKIT_OF_WHEELS
) -> dict[str, str]:
    """The variables with which SGLang finds nvcc; empty if it finds one by itself. Raises like ``find_nvcc``."""
    if find_nvcc(environ, system=system, wheels=wheels) != nvcc_of(wheels) or "CUDA_HOME" in environ:
        return {}
    path = environ.get("PATH")
    return {"CUDA_HOME": str(wheels), "PATH": f"{wheels / 'bin'}:{path}" if path else str(wheels / "bin")}


def nvcc_of(toolkit: Path) -> Path:
    """The compiler in a toolkit's folder."""
    return toolkit / "bin" / "nvcc"
