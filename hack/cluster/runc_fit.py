#!/usr/bin/env python3
"""OCI runtime for hosts without CAP_SYS_RESOURCE: runs runc without what such a host refuses.

Docker requests every capability for a privileged container, and containers may request a lower OOM score or higher
rlimits. Without CAP_SYS_RESOURCE the kernel refuses each of these.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from os import execv
from pathlib import Path
from typing import Any

REFUSED = "CAP_SYS_RESOURCE"


def without_refused(process: dict[str, Any]) -> dict[str, Any]:
    """The ``process`` of an OCI specification without the settings that the host would refuse."""
    capabilities = process.get("capabilities") or {}
    granted = {kind: [name for name in names if name != REFUSED] for kind, names in capabilities.items()}
    rest = {key: value for key, value in process.items() if key != "rlimits"}
    if capabilities:
        rest["capabilities"] = granted
    if rest.get("oomScoreAdj", 0) < 0:
        rest["oomScoreAdj"] = 0
    return rest


def option(arguments: Sequence[str], *spellings: str) -> str | None:
    """The value of an option given as ``--name value`` or ``--name=value``."""
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in spellings:
            return value if equals else arguments[position + 1]
    return None


def fit_request(arguments: Sequence[str]) -> None:
    """Rewrite the specification that runc's ``arguments`` name, if they name one."""
    if "create" in arguments or "run" in arguments:
        path = Path(option(arguments, "--bundle", "-b") or ".") / "config.json"
        spec = json.loads(path.read_text())
        path.write_text(json.dumps({**spec, "process": without_refused(spec["process"])}))
    elif "exec" in arguments and (file := option(arguments, "--process", "-p")):
        path = Path(file)
        path.write_text(json.dumps(without_refused(json.loads(path.read_text()))))


def main() -> None:
    """Rewrite the request, then exec runc."""
    runc = shutil.which("runc", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if runc is None:
        raise SystemExit("runc is missing: apt-get install runc")
    fit_request(sys.argv[1:])
    execv(runc, ["runc", *sys.argv[1:]])


if __name__ == "__main__":
    main()
