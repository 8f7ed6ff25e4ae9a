"""What an image build takes from pyproject.toml: requirements to install, and the metadata of an installed package.

An image holds the code as it lies in the repository, found by PYTHONPATH: a change of code is a copy, not an install.

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
    """The project's dependencies and those of ``extras``, less the packages named in ``without``.

    Raises ``ValueError`` for an extra, or a package to leave out, that the project does not have.
    """
    optional: dict[str, list[str]] = project["optional-dependencies"]
    if unknown := [extra for extra in extras if extra not in optional]:
        raise ValueError(f"no extra {unknown[0]!r} in pyproject.toml; there are {', '.join(optional)}")
    found = [*project["dependencies"], *(line for extra in extras for line in optional[extra])]
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in found]
    if unknown := [name for name in without if name not in names]:
        raise ValueError(f"{unknown[0]!r} is not among the dependencies; there are {', '.join(names)}")
    return [line for line, name in zip(found, names, strict=True) if name not in without]


def write_metadata(project: dict[str, Any], folder: Path) -> Path:
    """Makes importlib.metadata find the project's name, version and entry points where ``folder`` is on the path."""
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
    """Reads the pyproject.toml of the working directory."""
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
