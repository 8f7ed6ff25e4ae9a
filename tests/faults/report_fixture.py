"""A pytest plugin: reports of injected faults, one per kind of place and session, printed at its end."""

from __future__ import annotations

from collections.abc import Callable, Collection

import pytest

from faults.report import Report
from faults.schedule import Kind

REPORTS = pytest.StashKey[dict[str, Report]]()


@pytest.fixture
def fault_report(pytestconfig: pytest.Config) -> Callable[..., Report]:
    """The session's report of a title; the first call creates it with the other arguments of ``Report``."""
    reports = pytestconfig.stash.setdefault(REPORTS, {})

    def report(title: str, kinds: Collection[Kind], deaths: Collection[Kind] = ()) -> Report:
        return reports.setdefault(title, Report(title, kinds, deaths))

    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for report in config.stash.get(REPORTS, {}).values():
        report.show(terminalreporter)
