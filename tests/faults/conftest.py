"""One fault report per test session."""

from __future__ import annotations

import pytest

from faults.injectors import DEATHS
from faults.report import Report
from faults.schedule import DECK

REPORT = pytest.StashKey[Report]()


@pytest.fixture
def fault_report(request: pytest.FixtureRequest) -> Report:
    return request.config.stash.setdefault(REPORT, Report("faults", DECK, DEATHS))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if (report := config.stash.get(REPORT, None)) is not None:
        report.show(terminalreporter)
