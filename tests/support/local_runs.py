"""Local runs with small stand-in commands, and the statistics that they write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from areal_api.experiment import GRPOExperiment
from areal_api.load import load_experiment
from areal_launcher.core.place import PORT, ProcessSpec
from areal_launcher.core.plan import RunPlan
from areal_launcher.core.run import Run
from areal_launcher.core.servers import ServerLimits
from areal_launcher.display import Display
from areal_launcher.places.local.place import LocalPlace
from support.process_trees import DEADLINE_S, PROCESS_TREE, python

SERVER = (
    PROCESS_TREE
    + """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        hangs = self.path == "/health" and os.path.exists(sys.argv[1] + "-hangs")
        self.send_response(200 if self.path in ("/ready", "/health") and not hangs else 404)
        self.end_headers()
    def log_message(self, *args):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""
)


EXITS_ON_SIGTERM = (
    PROCESS_TREE
    + """
import signal
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("checkpoint written")))
time.sleep(600)
"""
)


IGNORES_SIGTERM = (
    PROCESS_TREE
    + """
import signal
signal.signal(signal.SIGTERM, lambda *_: print("no", flush=True))
while True:
    time.sleep(1)
"""
)


class RecordingDisplay:
    """A display that remembers."""

    def __init__(self, on_message: Callable[[str], None] = lambda text: None) -> None:
        self.messages: list[str] = []
        self.on_message = on_message

    def __enter__(self) -> RecordingDisplay:
        return self

    def __exit__(self, *error: object) -> None: ...
    def update(self, stats: object, total: int | None) -> None: ...

    def phase(self, text: str) -> None:
        if text not in self.messages:
            self.message(text)

    def message(self, text: str) -> None:
        self.messages.append(text)
        self.on_message(text)


def plan(tmp: Path, trainer: list[str], servers: list[list[str]]) -> RunPlan:
    logs = tmp / "logs"
    return RunPlan(
        run=tmp,
        servers=[ProcessSpec("server", i, argv, {}, logs / f"server-{i}.log") for i, argv in enumerate(servers)],
        trainer=[ProcessSpec("trainer", 0, trainer, {}, logs / "trainer.log")],
        limits=ServerLimits(startup_s=DEADLINE_S, unhealthy_s=DEADLINE_S),
        total_steps=None,
    )


def execute(plan: RunPlan, display: Display) -> int:
    return Run(plan, LocalPlace(), display).run()


def serving(tmp: Path) -> list[str]:
    return python(SERVER, tmp / "pids", PORT)


def line(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "version": step,
        "time": 2.0 * step,
        "task_reward/avg": 0.1 * step,
        "staleness/avg": 1.25,
        "staleness/max": 2,
        "tokens_per_second": 3210.4,
        **more,
    }


def append(path: Path, *lines: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(one) + "\n" for one in lines)


def load(path: Path, *overrides: str) -> GRPOExperiment:
    return load_experiment(path, overrides)
