"""Extracts from pyproject.toml what an image build needs: requirements, and the metadata of an installed package.

An image contains the code as in the repository and finds it by PYTHONPATH, so a code change is a copy, not an install.

    python3 project.py requirements trainer server --without rich
    python3 project.py metadata sglang_image
"""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any


def requirements(project: dict[str, Any], extras: Sequence[str], without: Collection[str]) -> list[str]:
    """The project's dependencies and those of ``extras``, without the packages in ``without``.

    Raises ``ValueError`` for an unknown extra, or an unknown package in ``without``.
    """
    optional: dict[str, list[str]] = project["optional-dependencies"]
    if unknown := [extra for extra in extras if extra not in optional]:
        raise ValueError(f"no extra {unknown[0]!r} in pyproject.toml; known extras: {', '.join(optional)}")
    lines = [*project["dependencies"], *(line for extra in extras for line in optional[extra])]
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in lines]
    if unknown := [name for name in without if name not in names]:
        raise ValueError(f"{unknown[0]!r} is not a dependency; known dependencies: {', '.join(names)}")
    return [line for line, name in zip(lines, names, strict=True) if name not in without]


def write_metadata(project: dict[str, Any], folder: Path) -> Path:
    """Writes metadata with which importlib.metadata finds the project if ``folder`` is on the path."""
    target = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    target.mkdir()
    target.joinpath("METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines: list[str] = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {where}" for name, where in entries.items()), ""]
    target.joinpath("entry_points.txt").write_text("\n".join(lines))
    return target


def main() -> None:
    """Read the pyproject.toml of the working directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("requirements")
    listing.add_argument("extras", nargs="*")
    listing.add_argument("--without", nargs="*", default=[])
    commands.add_parser("metadata").add_argument("folder", type=Path)
    options = parser.parse_args()
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    try:
        if options.command == "metadata":
            write_metadata(project, options.folder)
        else:
            print("\n".join(requirements(project, options.extras, options.without)))
    except ValueError as error:
        raise SystemExit(f"project.py: {error}") from error


if __name__ == "__main__":
    main()
