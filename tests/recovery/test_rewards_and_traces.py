"""A whole run with several rewards, a judge, mixed training sets and traces, and its resume."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from areal_api.names import config_file
from areal_launcher.cli import main
from support.recovery_runs import configuration, environment, torchrun
from support.scripted_server import Script, ScriptedServer
from support.tiny_policy import VOCABULARY


class Judge(BaseHTTPRequestHandler):
    """Gives every completion five points."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        choices = [{"message": {"content": "Score: 5"}}]
        body = json.dumps({"choices": choices, "usage": {"prompt_tokens": 10, "completion_tokens": 10}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture
def judge() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Judge) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def test_a_run_with_terms_a_mix_and_traces_trains_and_resumes(tmp_path: Path, judge: str) -> None:
    config = configuration(tmp_path, asynchronous=True)
    other = tmp_path / "other.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"w{n}"}], "answer": "0"} for n in range(3)]
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    terms = [
        {"name": "half", "path": "support.rewards:token_parity", "weight": 0.5},
        {"name": "style", "weight": 0.1, "judge": {"url": judge, "model": "m", "output_price": 1000.0}},
    ]
    config |= {
        "reward": {**config["reward"], "terms": terms},
        "train_mix": [{"name": "other", "weight": 0.5, "path": str(other)}],
        "tracing": {"file": True, "profile_steps": [2]},
    }
    run = tmp_path / "run" / "run"
    with ScriptedServer(Script(vocab_size=VOCABULARY)) as server:
        env = environment(config | {"total_train_steps": 2}, tmp_path / "run", server)
        assert torchrun(env, ranks=1, log=tmp_path / "log") == 0, (tmp_path / "log").read_text()[-3000:]
        first = lines(run)
        file = Path(env["AREAL_CONFIG"])
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"total_train_steps": 4}))
        assert torchrun(env, ranks=1, log=tmp_path / "log") == 0, (tmp_path / "log").read_text()[-3000:]
    every = lines(run)
    assert [line["step"] for line in every] == [1, 2, 3, 4]
    for line in every:
        assert line["reward/task"] == line["reward/half"]
        assert line["reward/style"] == 0.5
    assert every[2]["judge/style/cost"] > first[-1]["judge/style/cost"] > 0
    kept = json.loads((run / "judge-style.json").read_text())
    assert kept["cost"] >= every[-1]["judge/style/cost"]
    spans = [json.loads(text) for path in (run / "traces").iterdir() for text in path.read_text().splitlines()]
    names = {one["name"] for one in spans}
    assert {"step", "rollout", "train_step", "episode", "generate", "reward", "weight_update"} <= names
    config_file(run).write_text("{}")
    assert main(["trace", str(run)]) == 0
    events = json.loads((run / "trace.json").read_text())["traceEvents"]
    assert sum(event["ph"] in "Xb" for event in events) == len(spans)
    assert [path.name for path in (run / "profiles").iterdir()] == ["step2-rank0.trace.json.gz"]


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(text) for text in (run / "stats.jsonl").read_text().splitlines()]
