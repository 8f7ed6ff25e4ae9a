"""Progress reports: the newest one is sent, older ones are dropped, and failures never affect training."""

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
    """Receives reports and responds with ``status`` once ``may_answer`` is set."""

    def __init__(self) -> None:
        self.received: list[tuple[str, dict[str, Any]]] = []
        self.status, self.may_answer = 202, threading.Event()
        self.may_answer.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.received.append((self.headers["Authorization"], json.loads(body)))
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
    while not receiver.received:
        time.sleep(0.01)
    for step in (2, 3, 4):
        sink.log(step, {"task_reward/avg": 0.5})
    sink.close()
    assert [body["step"] for _, body in receiver.received] == [1, 4]
    assert receiver.received[0] == ("Bearer t0ken", {"step": 1, "totalSteps": 9, "version": 1, "reward": 0.25})


def test_the_last_evaluation_is_repeated_in_every_report(receiver: Receiver, token_file: Path) -> None:
    sink = ProgressSink(receiver.url, token_file, interval_s=60.0)
    sink.log(1, {"eval-rollout/reward": 0.75})
    while not receiver.received:
        time.sleep(0.01)
    sink.log(2, {})
    sink.close()
    assert receiver.received[-1][1] == {"step": 2, "evalReward": 0.75}


def test_an_unreachable_or_failing_receiver_is_only_logged(
    receiver: Receiver, token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.status = 503
    for url, token in ((receiver.url, token_file), ("http://127.0.0.1:9/x", token_file), (receiver.url, Path("/none"))):
        sink = ProgressSink(url, token)
        sink.log(1, {})
        sink.close()
    assert caplog.text.count("the progress report of step 1 failed") == 3


def test_a_slow_receiver_does_not_slow_the_training(receiver: Receiver, token_file: Path) -> None:
    receiver.may_answer.clear()
    sink = ProgressSink(receiver.url, token_file, interval_s=0.0)
    for step in range(20):
        sink.log(step, {})
    assert len(receiver.received) <= 1  # still without a response
    receiver.may_answer.set()
    sink.close()
    assert [body["step"] for _, body in receiver.received][-1] == 19


def test_non_finite_values_are_omitted() -> None:
    report = report_of({"step": 3.0, "task_reward/avg": float("nan"), "tokens_per_second": None, "total_steps": 12})
    assert report.model_dump(exclude_none=True) == {"step": 3, "total_steps": 12}
    assert report.progress == "3/12"


def test_agents_are_reported_in_short() -> None:
    counts = {"rewarded": 120, "abandoned": 4, "expired": 2, "stale": 1, "refused": 3, "failed": 5, "calls": 300}
    stats = {"step": 3.0, "rollout/cache_hit_rate": 0.81234} | {f"agents/{name}": n for name, n in counts.items()}
    report = report_of(stats).model_dump(exclude_none=True, exclude={"step"})
    assert report == {"cache_hit_rate": 0.8123, "agent_sessions": 120, "agent_sessions_lost": 7, "agent_errors": 8}


def test_what_the_number_of_servers_depends_on_is_reported() -> None:
    report = report_of({"step": 3.0, "rollout/wait_share": 0.12345, "rollout/servers_idle": 0.5})
    assert (report.rollout_wait, report.servers_idle) == (0.1235, 0.5)  # 0.12345 is stored a little above


def test_nothing_is_reported_unless_configured() -> None:
    assert progress_sink({}) == []
    with pytest.raises(ValueError, match="AREAL_PROGRESS_TOKEN_FILE is not"):
        progress_sink({names.PROGRESS_URL: "http://x"})


def test_a_configuration_error_goes_to_the_termination_log(tmp_path: Path) -> None:
    path = tmp_path / "termination-log"
    write_termination_message({names.TERMINATION_LOG: str(path)}, ValueError("actor.path: no such model"))
    assert path.read_text() == "error: actor.path: no such model\n"
    write_termination_message({}, ValueError("not written"))
