"""One report for all runs of a session."""

from __future__ import annotations

import pytest

from faults.report import Report

REPORT = pytest.StashKey[Report]()


@pytest.fixture
def fault_report(request: pytest.FixtureRequest) -> Report:
    return request.config.stash.setdefault(REPORT, Report())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    report = config.stash.get(REPORT, None)
    if report is not None and (lines := report.lines()):
        terminalreporter.section("faults")
        for line in lines:
            terminalreporter.write_line(line)
