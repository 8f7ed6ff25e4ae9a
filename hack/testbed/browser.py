"""Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser. Raises ``FileNotFoundError`` if Chromium is not installed."""
    executable = shutil.which("chromium")
    if executable is None:
        raise FileNotFoundError("Chromium is not installed: hack/browser/install.sh installs it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()
