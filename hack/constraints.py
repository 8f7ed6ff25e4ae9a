"""Keeps constraints.txt complete: one version of every package that either device installs.

``python hack/constraints.py --check`` resolves the CPU and the CUDA set against constraints.txt, and fails if one
cannot be resolved, a resolved package has no pin, or a pinned package is in neither set. ``--write`` resolves both sets
and writes their union, keeping the pins that still resolve; ``--write --upgrade`` takes the newest versions instead.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
UV = ROOT / ".bin" / "uv" / "bin" / "uv"
HEADER = "# One version of every package, for CPU and CUDA. Written by `make constraints`.\n"
COMMON = ("trainer", "server", "operator", "ray", "dev")
DEVICES = {
    "cpu": ("--excludes", "sglang_image/cpu-excludes.txt"),
    "cuda": ("--extra", "cuda"),
}

Pins = dict[str, str]


class ResolutionError(Exception):
    """A set of packages has no solution; the text is the resolver's explanation."""


def pins(text: str) -> Pins:
    """Versions by package name, from lines of ``name==version``; comments and markers are ignored."""
    lines = (re.match(r"([\w.-]+)(?:\[[\w,-]+\])?==([^\s;]+)", line) for line in text.splitlines())
    return {found[1].lower().replace("_", "-"): found[2] for found in lines if found}


def resolve(device: str, constraints: Path | None) -> Pins:
    """The packages that ``make setup DEVICE=device`` installs. Raises ``ResolutionError``."""
    command = [str(UV), "pip", "compile", "--quiet", "--prerelease=allow", "--python", sys.executable]
    command += ["--no-header", "--no-annotate", "--no-emit-index-url", *DEVICES[device]]
    for extra in COMMON:
        command += ["--extra", extra]
    if constraints is not None:
        command += ["--constraints", str(constraints)]
    done = subprocess.run([*command, "pyproject.toml"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ResolutionError(f"DEVICE={device} does not resolve:\n{done.stderr.strip()}")
    return pins(done.stdout)


def problems(pinned: Pins, resolved: dict[str, Pins]) -> list[str]:
    """What is wrong with the constraints, one line each; empty if nothing is."""
    found = [
        f"{name}=={version} is installed for DEVICE={device} but has no pin"
        for device, packages in resolved.items()
        for name, version in packages.items()
        if name not in pinned
    ]
    used = set().union(*resolved.values())
    return found + [f"{name} is pinned but neither device installs it" for name in pinned if name not in used]


def check() -> int:
    """Print the problems of constraints.txt; the exit status is 1 if there are any."""
    try:
        resolved = {device: resolve(device, CONSTRAINTS) for device in DEVICES}
    except ResolutionError as error:
        print(error, file=sys.stderr)
        return 1
    found = problems(pins(CONSTRAINTS.read_text()), resolved)
    for line in found:
        print(f"constraints.txt: {line}; run `make constraints`", file=sys.stderr)
    return 1 if found else 0


def write(*, upgrade: bool) -> None:
    """Write the union of both sets. The CUDA set is resolved first: it has more requirements on what both share."""
    cuda = resolve("cuda", None if upgrade else CONSTRAINTS)
    CONSTRAINTS.write_text(rendered(cuda))
    CONSTRAINTS.write_text(rendered(cuda | resolve("cpu", CONSTRAINTS)))


def rendered(packages: Pins) -> str:
    """The file, sorted by name."""
    return HEADER + "".join(f"{name}=={version}\n" for name, version in sorted(packages.items()))


def main() -> int:
    """Check or write constraints.txt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--check", action="store_true")
    mode.add_argument("--write", action="store_true")
    parser.add_argument("--upgrade", action="store_true", help="with --write: take the newest versions")
    options = parser.parse_args()
    if options.check:
        return check()
    write(upgrade=options.upgrade)
    return 0


if __name__ == "__main__":
    sys.exit(main())
