"""Debian's Chromium on the page of runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from areal_api import names
from hack.testbed.browser import chromium as browser_of_debian


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser. Skips the test if Chromium is not installed."""
    with contextlib.ExitStack() as stack:
        try:
            browser = stack.enter_context(browser_of_debian())
        except FileNotFoundError as error:
            pytest.skip(str(error))
        yield browser


def take_pictures(browser: Any, address: str, run: Path, folder: Path) -> None:
    """Write pictures of the views of a finished run, which has samples and evaluations, into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    page = browser.new_page(viewport={"width": 1240, "height": 900})
    page.goto(address)
    page.get_by_role("link", name=run.name).first.wait_for()
    page.screenshot(path=folder / "ui-list.png", clip={"x": 0, "y": 0, "width": 1240, "height": 260})
    page.get_by_role("link", name=run.name).first.click()
    page.locator(".chart canvas").last.wait_for()
    _wait_for_points(page)
    page.screenshot(path=folder / "ui-run.png")
    _picture_of_details(page, folder / "ui-samples.png", "Samples", open_tokens)
    _picture_of_details(page, folder / "ui-evaluations.png", "Evaluations", open_answers)
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 390, "height": 844})
    page.reload()
    page.locator(".chart canvas").last.wait_for()
    _wait_for_points(page)
    page.screenshot(path=folder / "ui-narrow.png")
    page.close()


def open_tokens(page: Any) -> None:
    """Open a problem of the samples, and the tokens of an answer, coloured."""
    steps = page.get_by_label("Step", exact=True)
    steps.locator("option").first.wait_for(state="attached")
    with page.expect_response(lambda response: "/rollouts/" in response.url):
        steps.select_option(index=min(10, steps.locator("option").count()) - 1)
    page.locator(".rollouts[open] summary:has(.mean)").first.click()
    page.get_by_text("Tokens", exact=True).first.click()
    page.locator(".tokens span").first.wait_for()


def open_answers(page: Any) -> None:
    """Open the first problem that changed between two evaluations."""
    page.locator(".rollouts[open] section summary:has(.mean)").first.click()
    page.locator(".sides pre").first.wait_for()


def _picture_of_details(page: Any, path: Path, title: str, open_parts: Any) -> None:
    view = page.locator("details.rollouts").filter(has=page.get_by_text(title, exact=True))
    view.locator("> summary").click()
    open_parts(page)
    view.evaluate("view => view.scrollIntoView()")
    page.screenshot(path=path)
    view.locator("> summary").click()


def _wait_for_points(page: Any) -> None:
    page.locator(".chart .u-legend .u-marker").nth(3).wait_for(state="attached")
    page.mouse.move(0, 0)
    page.wait_for_timeout(300)


def stats_lines(run: Path) -> int:
    """Steps that a run has finished."""
    try:
        return names.stats_file(run).read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0
