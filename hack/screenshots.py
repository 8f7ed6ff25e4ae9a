"""Takes the picture of the page of runs in docs/images from a finished run: ``python -m hack.screenshots RUNS``."""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs/images"


def main(runs: Path) -> None:
    """Write ui-run.png."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support.ui_page import served

    with served(runs) as site, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1240, "height": 940})
        page.goto(site.address)
        page.locator("tbody a").first.click()
        page.locator(".chart canvas").last.wait_for()
        page.mouse.move(0, 0)
        page.screenshot(path=IMAGES / "ui-run.png")
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
