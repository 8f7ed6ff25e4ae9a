"""A real browser on the page of `grpo ui`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hack.testbed.ui_page import Served, served
from support.browser import chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser, whose event loop runs until the last test of the module."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Served]:
    """`grpo ui` on an empty folder of runs."""
    with served(tmp_path / "runs") as site:
        yield site


@pytest.fixture
def page(browser: Any, site: Served) -> Iterator[Any]:
    """The page, opened; fails the test if a script on it failed or was refused."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(60_000)
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.goto(site.address)
    yield page
    context.close()
    assert [text for text in problems if text not in site.expected_problems] == []
