"""The page of runs in a real browser: time to load a run and time until a new step is shown, by number of steps."""

from __future__ import annotations

import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from areal_api import names
from areal_launcher.run_files import RunLock
from benchmarks.measure import Comparison, by_turns, spread
from hack.testbed.browser import chromium
from hack.testbed.ui_page import served

FEWEST = 10
STATISTICS = 60  # of a step, as a run of the tiny example has
DEADLINE_MS = 120_000


def run(*, small: bool, rounds: int) -> list[Comparison]:
    """Loads per second of runs with many steps and of one with ten."""
    counts = (100,) if small else (1_000, 100_000)
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        root = Path(folder)
        for steps in (FEWEST, *counts):
            write_run(root / f"run{steps}", steps)
        with served(root) as site:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(DEADLINE_MS)
            page.goto(site.address)
            return [compared(page, root, steps, rounds=rounds) for steps in counts]


def compared(page: Any, root: Path, steps: int, *, rounds: int) -> Comparison:
    """A run with ``steps`` steps against one with ten."""
    first_ms = 1e3 * load_s(page, f"run{steps}", steps)  # reads the whole file
    ours, baseline = by_turns(
        lambda: 1 / load_s(page, f"run{steps}", steps), lambda: 1 / load_s(page, f"run{FEWEST}", FEWEST), rounds=rounds
    )
    updates_ms = updates(page, root / f"run{steps}", steps, rounds=rounds)
    notes = [
        f"first load after the start of the server: {first_ms:,.0f} ms",
        f"later loads: {spread([1e3 / one for one in ours])} ms",
        f"later loads with {FEWEST} steps: {spread([1e3 / one for one in baseline])} ms",
        f"from the line in stats.jsonl until the page shows it: {spread(updates_ms)} ms",
    ]
    work = f"a run with {steps:,} steps of {STATISTICS} statistics, until all charts show its last step"
    return Comparison("page", work, "loads/s", ours, f"a run with {FEWEST} steps", baseline, notes=notes)


def load_s(page: Any, name: str, steps: int) -> float:
    """Seconds from the click on a run until its charts are drawn to the last step."""
    page.evaluate("location.hash = '#/'")
    link = page.get_by_role("link", name=name, exact=True)
    link.wait_for()
    started = time.perf_counter()
    link.click()
    page.locator("dd").get_by_text(f"{steps} / {steps}", exact=True).wait_for()
    page.locator(".chart canvas").nth(5).wait_for()
    return time.perf_counter() - started


def updates(page: Any, run: Path, steps: int, *, rounds: int) -> list[float]:
    """Milliseconds until a step that is appended is shown, on an open page."""
    load_s(page, run.name, steps)
    lock = RunLock(run)
    found = []
    for more in range(1, rounds + 1):
        time.sleep(random.Random(more).random())  # at any time between two looks at the file
        started = time.perf_counter()
        with names.stats_file(run).open("a") as file:
            file.write(line(steps + more, steps))
        page.locator("dd").get_by_text(f"{steps + more} / {steps}", exact=True).wait_for()
        found.append(1e3 * (time.perf_counter() - started))
    lock.release()
    return found


def write_run(run: Path, steps: int) -> None:
    """A run directory with statistics alone."""
    run.mkdir()
    names.config_file(run).write_text("seed: 1\n")
    names.stats_file(run).write_text("".join(line(step, steps) for step in range(1, steps + 1)))


def line(step: int, steps: int) -> str:
    """A line of stats.jsonl."""
    share = step / steps
    charts = {"task_reward/avg": share, "grpo_actor/entropy/avg": 1 - share, "grpo_actor/grad_norm": 0.1 + step % 7}
    charts |= {"prompt_len/avg": 30.0, "seq_len/avg": 90.0 + step % 11, "tokens_per_second": 3000.0 + step % 101}
    charts |= {"staleness/avg": 1.0, "staleness/max": 2.0, "timeperf/rollout": 0.4, "timeperf/train_step": 1.2}
    others = {f"grpo_actor/statistic{number}/avg": share * number for number in range(STATISTICS - len(charts))}
    return json.dumps({"step": step, "total_steps": steps, "time": 2.0 * step, **charts, **others}) + "\n"
