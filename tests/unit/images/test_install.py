"""images/install.sh, run on a stand-in of a base image: its own environment is first on PATH, as in SGLang's images."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
UV = ROOT / ".bin/uv/bin/uv"  # make setup installs it


def wheel(folder: Path, name: str, version: str, *, program: str | None = None) -> None:
    """A wheel of one module; with ``program``, also of a shell script under the package's name."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"version = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        **({f"{name}-{version}.data/scripts/{name}": program} if program else {}),
    }
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for file, text in files.items():
            entry = zipfile.ZipInfo(file)
            entry.external_attr = 0o100755 << 16  # a regular, executable file
            archive.writestr(entry, text)


def version_in(python: Path, module: str) -> str | None:
    """The version of a module that an interpreter imports; None if it has none."""
    code = f"import {module}; print({module}.version)"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60)
    return done.stdout.strip() if done.returncode == 0 else None


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base image's root: packages to install, an environment that holds an old version of one, and its tools."""
    (uv_version,) = [line for line in (ROOT / "images/install.sh").read_text().splitlines() if line.startswith("UV_V")]
    wheels = tmp_path / "wheels"
    wheel(wheels, "uv", uv_version.partition("=")[2], program=f'#!/bin/sh\nexec {UV} "$@"\n')
    for name, version in (("areal_kept", "1.0"), ("areal_kept", "2.0"), ("areal_added", "3.0")):
        wheel(wheels, name, version)
    build = tmp_path / "build"
    build.mkdir()
    shutil.copy(ROOT / "images/install.sh", build)
    (build / "requirements.txt").write_text("areal_kept>=1\nareal_added\n")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "getent").write_text("#!/bin/sh\nexit 0\n")  # user 1000 exists
    (tools / "getent").chmod(0o755)
    return tmp_path


def environment(base: Path, name: str) -> Path:
    """A virtual environment with the old version of a package; returns its interpreter."""
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, base / name], check=True, timeout=60)
    python = base / name / "bin" / "python3"
    install = [UV, "pip", "install", "--quiet", "--no-index", "--find-links", base / "wheels", "--python", python]
    subprocess.run([*install, "areal_kept==1.0"], check=True, timeout=60)
    return python


def test_packages_go_into_the_interpreter_that_pods_run_and_its_own_versions_stay(base: Path) -> None:
    own, other = environment(base, "sglang"), environment(base, "system")
    links = str(base / "wheels")
    variables = {
        "PATH": f"{own.parent}:{other.parent}:{base / 'tools'}:/usr/bin:/bin",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": links,
        "UV_OFFLINE": "1",
        "UV_FIND_LINKS": links,
        "HOME": str(base),
    }
    kept = {name: value for name, value in os.environ.items() if name in ("TMPDIR", "LANG")}
    done = subprocess.run(
        ["sh", base / "build/install.sh", "add"], env=kept | variables, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (version_in(own, "areal_kept"), version_in(own, "areal_added")) == ("1.0", "3.0")
    assert (version_in(other, "areal_kept"), version_in(other, "areal_added")) == ("1.0", None)
