"""Whether a node has the code of this project that the driver has. Standard library and Ray only.

``describe`` is sent to nodes by value, because a node that lacks the project cannot import it.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec

PACKAGES = ("areal_api", "areal_launcher", "areal_server", "areal_trainer")
MISSING = ""  # digest of a package that is not installed


def describe() -> dict[str, str]:
    """This node's address, its interpreter, and a digest of the source files of each package."""
    import ray

    node = ray.util.get_node_ip_address()
    return {"node": node, "python": sys.executable, **{name: digest_of(name) for name in PACKAGES}}


def digest_of(package: str) -> str:
    """A digest of a package's Python files; ``MISSING`` if there are none."""
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        return MISSING
    total, count = hashlib.sha256(), 0
    for root in sorted(found.submodule_search_locations):
        for directory, folders, files in os.walk(root):
            folders.sort()
            for file in sorted(name for name in files if name.endswith(".py")):
                path, count = os.path.join(directory, file), count + 1
                total.update(os.path.relpath(path, root).encode() + b"\0")
                with open(path, "rb") as source:
                    total.update(hashlib.file_digest(source, "sha256").digest())
    return total.hexdigest() if count else MISSING


def problem(here: Mapping[str, str], there: Mapping[str, str], package: str) -> str | None:
    """What prevents the node ``there`` from running ``package`` for this driver, with the fix; None if nothing does."""
    node, needed = there["node"], ("areal_api", "areal_launcher", package)
    missing = [name for name in needed if there.get(name, MISSING) == MISSING]
    if missing:
        return (
            f"node {node}: Ray's interpreter {there.get('python')} lacks {', '.join(missing)}; install this project "
            "there, or start Ray on that node in the environment of this project"
        )
    other = [name for name in needed if there[name] != here[name]]
    if other:
        return (
            f"node {node}: {', '.join(other)} of Ray's interpreter {there.get('python')} differs from that of "
            f"{here.get('python')}, which runs grpo; install the same version on every node, then restart Ray there"
        )
    return None
