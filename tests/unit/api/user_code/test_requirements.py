"""Layers of packages, installed by the real pip from a folder of wheels."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from areal_api.user_code.folder import CodeError
from areal_api.user_code.requirements import install


def wheel(folder: Path, name: str, *, requires: str = "") -> None:
    folder.mkdir(exist_ok=True)
    info = f"{name}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    files = {
        f"{name}.py": "value = 42\n",
        f"{info}/METADATA": metadata + (f"Requires-Dist: {requires}\n" if requires else ""),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text)}\n"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as file:
        for path, text in {**files, f"{info}/RECORD": record + f"{info}/RECORD,,\n"}.items():
            file.writestr(path, text)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    wheel(tmp_path / "wheels", "extra_of_ours", requires="helper_of_ours")
    wheel(tmp_path / "wheels", "helper_of_ours", requires="pydantic")
    wheel(tmp_path / "wheels", "clash_of_ours", requires="pydantic<1")
    return {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "wheels")}


def test_a_layer_holds_what_the_environment_lacks_and_nothing_else(tmp_path: Path, environ: dict[str, str]) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text("# ours\nextra_of_ours>=1\n")
    layer = install([], file, layers=tmp_path / "layers", environ=environ, timeout_s=120)
    found = sorted(path.name for path in layer.iterdir() if not path.name.startswith("__"))
    assert found == [
        *("extra_of_ours-1.0.dist-info", "extra_of_ours.py", "helper_of_ours-1.0.dist-info", "helper_of_ours.py")
    ]
    script = "import extra_of_ours, pydantic; print(extra_of_ours.value, pydantic.__file__)"
    env = {**os.environ, "PYTHONPATH": str(layer)}
    shown = subprocess.run([sys.executable, "-c", script], env=env, check=True, capture_output=True, text=True).stdout
    assert shown.startswith("42 ")
    assert str(layer) not in shown
    (layer / "mark").touch()
    again = install([], file, layers=tmp_path / "layers", environ={}, timeout_s=1)
    assert again == layer  # without pip
    assert [path.name for path in (tmp_path / "layers").iterdir()] == [layer.name]


def test_a_package_that_would_replace_one_of_the_environment_is_refused(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    with pytest.raises(CodeError, match=r"1\.0 depends on pydantic<1; the environment of the trainer has pydantic=="):
        install(["clash_of_ours"], None, layers=tmp_path / "layers", environ=environ, timeout_s=120)
    assert list((tmp_path / "layers").iterdir()) == []


def test_a_package_that_does_not_exist_is_named(tmp_path: Path, environ: dict[str, str]) -> None:
    with pytest.raises(CodeError, match="missing_of_ours"):
        install(["missing_of_ours"], None, layers=tmp_path / "layers", environ=environ, timeout_s=120)


def test_a_requirements_file_that_is_missing_or_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CodeError, match=r"code\.requirementsFile: r\.txt of the code cannot be read"):
        install([], tmp_path / "r.txt", layers=tmp_path, environ={}, timeout_s=1)
    (tmp_path / "r.txt").write_text("#" * 300_000)
    with pytest.raises(CodeError, match="more than 262144 bytes"):
        install([], tmp_path / "r.txt", layers=tmp_path, environ={}, timeout_s=1)
