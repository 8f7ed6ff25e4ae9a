"""The OCI runtime for hosts that lack CAP_SYS_RESOURCE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hack.cluster.runc_fit import fit_request, without_refused

PRIVILEGED: dict[str, Any] = {
    "args": ["sh"],
    "capabilities": {"bounding": ["CAP_CHOWN", "CAP_SYS_RESOURCE"], "effective": ["CAP_SYS_RESOURCE", "CAP_KILL"]},
    "oomScoreAdj": -500,
    "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 2**20, "soft": 2**20}],
}
FITTED = {
    "args": ["sh"],
    "capabilities": {"bounding": ["CAP_CHOWN"], "effective": ["CAP_KILL"]},
    "oomScoreAdj": 0,
}


def test_settings_that_the_host_refuses_are_removed() -> None:
    assert without_refused(PRIVILEGED) == FITTED


def test_a_process_without_special_settings_is_unchanged() -> None:
    process = {"args": ["sh"], "capabilities": {"bounding": ["CAP_CHOWN"]}, "oomScoreAdj": 100}
    assert without_refused(process) == process
    assert without_refused({"args": ["sh"]}) == {"args": ["sh"]}


@pytest.mark.parametrize("spelling", [["--bundle", "{}"], ["--bundle={}"], ["-b", "{}"]])
def test_the_bundle_of_a_new_container_is_rewritten(tmp_path: Path, spelling: list[str]) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"hostname": "node", "process": PRIVILEGED}))
    fit_request(["--root", "/run", "create", *(word.format(tmp_path) for word in spelling), "id"])
    assert json.loads(file.read_text()) == {"hostname": "node", "process": FITTED}


def test_a_process_that_joins_a_container_is_rewritten(tmp_path: Path) -> None:
    file = tmp_path / "process.json"
    file.write_text(json.dumps(PRIVILEGED))
    fit_request(["exec", "--detach", "--process", str(file), "id"])
    assert json.loads(file.read_text()) == FITTED


def test_other_commands_change_nothing() -> None:
    for arguments in (["state", "id"], ["delete", "--force", "id"], ["exec", "id", "sh"]):
        fit_request(arguments)
