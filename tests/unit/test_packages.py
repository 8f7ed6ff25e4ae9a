"""What `pip install` installs."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_folder_with_code_is_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        ".".join([name, *file.parent.relative_to(ROOT / folder).parts])
        for name, folder in settings["package-dir"].items()
        for file in (ROOT / folder).rglob("*.py")
    }
    assert sorted(folders) == sorted(settings["packages"])
