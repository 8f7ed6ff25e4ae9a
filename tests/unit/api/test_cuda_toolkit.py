"""Finding nvcc for a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from areal_api.cuda_toolkit import toolkit_environment


def with_nvcc(folder: Path) -> Path:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "nvcc").touch(mode=0o755)
    return folder


def found(tmp_path: Path, environ: dict[str, str]) -> dict[str, str]:
    return toolkit_environment(environ, system=tmp_path / "system", wheels=tmp_path / "wheels")


def test_pips_toolkit_is_used_where_there_is_no_other(tmp_path: Path) -> None:
    wheels = with_nvcc(tmp_path / "wheels")
    assert found(tmp_path, {"PATH": "/nowhere"}) == {"CUDA_HOME": str(wheels), "PATH": f"{wheels}/bin:/nowhere"}


@pytest.mark.parametrize("where", ["system", "PATH", "CUDA_HOME"])
def test_a_toolkit_that_sglang_finds_is_left_to_it(tmp_path: Path, where: str) -> None:
    with_nvcc(tmp_path / "wheels")
    other = with_nvcc(tmp_path / ("system" if where == "system" else "other"))
    environ = {"PATH": f"{other}/bin" if where == "PATH" else "/nowhere"}
    assert found(tmp_path, environ | ({"CUDA_HOME": str(other)} if where == "CUDA_HOME" else {})) == {}


def test_without_nvcc_the_server_is_refused_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="make setup DEVICE=cuda"):
        found(tmp_path, {"PATH": "/nowhere"})
    with pytest.raises(ValueError, match="CUDA_HOME is /wrong, which has no bin/nvcc"):
        found(tmp_path, {"CUDA_HOME": "/wrong"})
