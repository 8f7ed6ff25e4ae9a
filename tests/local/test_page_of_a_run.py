"""The page of `grpo ui` on a real run of the tiny experiment, while it trains and afterwards, in a real browser.

With ``PICTURES=docs/images`` the pictures of the documents are written there.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from hack.testbed.ui_page import served
from support.browser import chromium, open_answers, open_tokens, stats_lines, take_pictures

ROOT = Path(__file__).parents[2]
STEPS = 60
MAX_RUN_S = 500


def test_every_view_of_a_run_that_trains(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "areal_launcher.cli", "run", "examples/tiny/experiment.yaml"]
    settings = [f"config.cluster.fileroot={tmp_path}", f"config.total_train_steps={STEPS}"]
    settings += ["config.rollout.dump_to_file=true", "config.gconfig.n_samples=8"]
    run = tmp_path / "tiny" / "trial0"
    with (
        chromium() as browser,
        served(tmp_path) as site,
        subprocess.Popen([*command, *settings], cwd=ROOT, stdout=subprocess.DEVNULL) as process,
    ):
        try:
            page = browser.new_page()
            page.set_default_timeout(MAX_RUN_S * 1000)
            problems: list[str] = []
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.goto(site.address)
            page.get_by_role("link", name="tiny/trial0").click()
            page.locator("dd").get_by_text(re.compile(rf"^[5-9] / {STEPS}$")).wait_for()  # seen while it trains
            page.get_by_text("running", exact=True).wait_for()
            page.get_by_role("row").filter(has_text="server-0").first.wait_for()
            page.get_by_text("Samples", exact=True).click()
            page.get_by_text(re.compile(r"of 256 samples of 32 problems")).wait_for()
            open_tokens(page)
            page.get_by_text("succeeded", exact=True).wait_for()
            assert stats_lines(run) == STEPS
            page.get_by_text("Samples", exact=True).click()
            page.get_by_text("Evaluations", exact=True).click()
            open_answers(page)
            assert problems == []
            take_pictures(browser, site.address, run, Path(os.environ.get("PICTURES", tmp_path / "pictures")))
            assert process.wait(60) == 0
        finally:
            process.terminate()
