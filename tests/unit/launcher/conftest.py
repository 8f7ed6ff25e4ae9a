"""An experiment whose servers and training script are small stand-ins."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from areal_api.commands import Command
from areal_api.experiment import GRPOExperiment
from areal_launcher.core import plan
from areal_launcher.core.processes import ReservedPort
from areal_launcher.run_files import Stats

SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *args):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


TRAINER = """
import json, os, urllib.request
run = os.environ["AREAL_RUN_DIR"]
assert os.stat(os.environ["AREAL_API_KEY_FILE"]).st_mode & 0o777 == 0o600
assert os.path.samefile(os.environ["AREAL_CONFIG"], run + "/config.yaml")
print("servers", os.environ["AREAL_LLM_SERVER_ADDRS"])
with open(run + "/stats.jsonl", "w") as file:
    for step in (1, 2, 3):
        file.write(json.dumps({"step": step, "version": step, "time": step, "task_reward/avg": 0.3 * step}) + "\\n")
if os.environ.get("BREAK"):
    print("no column 'answer' in the data set")
    raise SystemExit(5)
"""


@pytest.fixture
def experiment_path(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (tmp_path / "train.jsonl").write_text('{"question": "1 + 1", "answer": "#### 2"}\n')
    (tmp_path / "train.py").write_text(TRAINER)
    experiment = {
        "apiVersion": "areal.dev/v1alpha1",
        "kind": "GRPOExperiment",
        "metadata": {"name": "words"},
        "spec": {
            "config": {
                "cluster": {"fileroot": str(tmp_path / "runs")},
                "actor": {"path": str(model)},
                "train_dataset": {"path": str(tmp_path / "train.jsonl"), "batch_size": 4},
                "valid_dataset": {"path": str(tmp_path / "train.jsonl"), "batch_size": 4},
            },
            "servers": {"device": "cpu"},
            "trainer": {"device": "cpu", "script": str(tmp_path / "train.py")},
        },
    }
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(experiment))
    return path


@pytest.fixture
def stand_in_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(experiment: GRPOExperiment, index: int, *, port: int, **rest: object) -> Command:
        return Command([sys.executable, "-S", "-c", SERVER, str(port)], {})

    monkeypatch.setattr(plan, "server_command", command)


@pytest.fixture
def ports() -> Iterator[list[ReservedPort]]:
    held = [ReservedPort("127.0.0.1"), ReservedPort("127.0.0.1")]
    yield held
    for port in held:
        port.release()


@pytest.fixture
def stats(tmp_path: Path) -> Stats:
    return Stats(tmp_path / "stats.jsonl")
