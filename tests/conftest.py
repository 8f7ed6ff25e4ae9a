"""Hooks for the whole suite: signals, distribution over workers, and one summary for ``make test``'s two sessions."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

pytest_plugins = ["support.control_plane_fixtures", "faults.report_fixture"]

# Folders whose tests share one control plane run in one worker.
SHARED_SCOPES = {"tests/control_plane": "control plane", "tests/hostile": "control plane"}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("areal")
    group.addoption("--save-reports", type=Path, metavar="FILE", help="save this session's test reports to FILE")
    group.addoption("--add-reports", type=Path, metavar="FILE", help="include the reports saved in FILE in the summary")


def pytest_configure() -> None:
    # No test may depend on how busy the machine is. Generated inputs are the same in every run, except in `make fuzz`.
    settings.register_profile("fixed", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
    settings.register_profile("random", settings.get_profile("fixed"), derandomize=False, print_blob=True)
    settings.load_profile("random" if os.environ.get("FUZZ") else "fixed")
    # A shell's background jobs ignore SIGINT, and the processes that tests interrupt would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


class ByFolder(LoadScopeScheduling):
    """Keeps the tests of a file (unit tests) or of a folder (all others) in one worker, for their shared fixtures."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if file.startswith("tests/unit/"):
            return file
        folder = file.rpartition("/")[0]
        return SHARED_SCOPES.get(folder, folder)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFolder:
    return ByFolder(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> Any:
    reports: dict[str, list[Any]] = terminalreporter.stats
    if file := config.getoption("--save-reports"):
        file.write_text(json.dumps({outcome: _to_json(some, config) for outcome, some in reports.items()}))
    if file := config.getoption("--add-reports"):
        for outcome, some in json.loads(file.read_text()).items():
            reports.setdefault(outcome, []).extend(_from_json(some, config))
    return (yield)


def _to_json(reports: list[Any], config: pytest.Config) -> list[dict[str, Any]]:
    tests = [report for report in reports if isinstance(report, pytest.TestReport | pytest.CollectReport)]
    saved = [config.hook.pytest_report_to_serializable(config=config, report=report) for report in tests]
    return [{key: value for key, value in data.items() if key != "node"} for data in saved]  # node: xdist's worker


def _from_json(saved: list[dict[str, Any]], config: pytest.Config) -> list[Any]:
    for data in saved:
        if isinstance(data["longrepr"], list):  # (file, line, reason) of a skipped test; pytest needs a tuple
            data["longrepr"] = tuple(data["longrepr"])
    return [config.hook.pytest_report_from_serializable(config=config, data=data) for data in saved]
