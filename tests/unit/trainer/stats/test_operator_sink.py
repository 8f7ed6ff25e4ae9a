"""The trainer's reports: the newest arrives, the rest is dropped, and nothing that goes wrong reaches the training."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from areal_api import names
from areal_api.progress import report_of
from areal_trainer.stats.operator_sink import ProgressSink, progress_sink, write_termination_message


class Receiver:
    """Takes reports and answers with ``status``, once ``may_answer`` is set."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, Any]]] = []
        self.status, self.may_answer = 202, threading.Event()
        self.may_answer.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((self.headers["Authorization"], json.loads(body)))
                receiver.may_answer.wait(60.0)
                self.send_response(receiver.status)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/progress"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("t0ken\n")
    return path


def test_the_first_and_the_newest_report_arrive(receiver: Receiver, token_file: Path) -> None:
    sink = ProgressSink(receiver.url, token_file, interval_s=60.0)
    sink.log(1, {"task_reward/avg": 0.25, "total_steps": 9, "version": 1})
    while not receiver.got:
        time.sleep(0.01)
    for step in (2, 3, 4):
        sink.log(step, {"task_reward/avg": 0.5})
    sink.close()
    assert [body["step"] for _, body in receiver.got] == [1, 4]
    assert receiver.got[0] == ("Bearer t0ken", {"step": 1, "totalSteps": 9, "version": 1, "reward": 0.25})


def test_the_last_evaluation_is_told_again_with_every_step(receiver: Receiver, token_file: Path) -> None:
    sink = ProgressSink(receiver.url, token_file, interval_s=60.0)
    sink.log(1, {"eval-rollout/reward": 0.75})
    while not receiver.got:
        time.sleep(0.01)
    sink.log(2, {})
    sink.close()
    assert receiver.got[-1][1] == {"step": 2, "evalReward": 0.75}


def test_a_receiver_that_is_away_or_refuses_disturbs_nothing(
    receiver: Receiver, token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.status = 503
    for url, token in ((receiver.url, token_file), ("http://127.0.0.1:9/x", token_file), (receiver.url, Path("/none"))):
        sink = ProgressSink(url, token)
        sink.log(1, {})
        sink.close()
    assert caplog.text.count("progress of step 1 was not taken") == 3


def test_a_slow_receiver_does_not_slow_the_training(receiver: Receiver, token_file: Path) -> None:
    receiver.may_answer.clear()
    sink = ProgressSink(receiver.url, token_file, interval_s=0.0)
    for step in range(20):
        sink.log(step, {})
    assert len(receiver.got) <= 1  # which is not answered yet
    receiver.may_answer.set()
    sink.close()
    assert [body["step"] for _, body in receiver.got][-1] == 19


def test_what_is_not_finite_is_left_out() -> None:
    report = report_of({"step": 3.0, "task_reward/avg": float("nan"), "tokens_per_second": None, "total_steps": 12})
    assert report.model_dump(exclude_none=True) == {"step": 3, "total_steps": 12}
    assert report.progress == "3/12"


def test_nothing_is_reported_unless_the_environment_says_where() -> None:
    assert progress_sink({}) == []
    with pytest.raises(ValueError, match="AREAL_PROGRESS_TOKEN_FILE is not"):
        progress_sink({names.PROGRESS_URL: "http://x"})


def test_a_wrong_configuration_is_said_where_kubernetes_looks(tmp_path: Path) -> None:
    path = tmp_path / "termination-log"
    write_termination_message({names.TERMINATION_LOG: str(path)}, ValueError("actor.path: no such model"))
    assert path.read_text() == "error: actor.path: no such model\n"
    write_termination_message({}, ValueError("nobody asks"))
