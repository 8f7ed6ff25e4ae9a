"""Two real servers under the launcher, of which one freezes inside a broadcast of weights.

Neither the trainer nor the other server waits beyond the deadlines, and the launcher restarts the frozen one.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from areal_launcher.core.place import HOST, PORT, ProcessSpec
from areal_launcher.core.servers import Server, ServerFleet, ServerLimits
from areal_launcher.core.supervisor import descendants, kill_all
from areal_launcher.places.local.place import LocalPlace
from areal_trainer.engine import RemoteSGLangEngine
from areal_trainer.publisher import Publisher
from areal_trainer.ranks import Ranks
from areal_trainer.servers.control import ServerTimings
from areal_trainer.weights import broadcast
from areal_trainer.weights.broadcast import Broadcast, Bucket
from areal_trainer.weights.disk import WeightUpdate
from support.engines import engine_on, generate, status_of
from support.real_server import write_config
from support.tiny_policy import save_tiny_model

pytestmark = pytest.mark.real
LONGEST_S = 240.0
UNHEALTHY_S = 24.0  # in which two checks of a server that works must not fail on a busy machine
TIMINGS = ServerTimings(probe_period_s=0.5, probe_timeout_s=3.0, abort_timeout_s=3.0)
BROADCAST_S = 15.0  # with the time to abort less than UNHEALTHY_S
BUCKET_BYTES = 24 << 20  # more than the buffers of a connection hold


@dataclass
class Launched:
    """The launcher's servers, watched in a thread, and its messages."""

    fleet: ServerFleet
    messages: list[str] = field(default_factory=list)

    def addresses(self) -> list[str]:
        return [str(server.address) for server in self.fleet.servers]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Two tensors of 32 MiB, so that there are two buckets.
    sizes = {"vocab_size": 32768, "hidden_size": 256, "max_position_embeddings": 1024}
    return save_tiny_model(tmp_path_factory.mktemp("model"), tied=False, **sizes)


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Launched]:
    folder, messages = tmp_path_factory.mktemp("servers"), []
    config = write_config(folder, model, {"max_total_tokens": 16384})
    argv = [sys.executable, "-m", "areal_server.launch", "--config", str(config), "--device", "cpu"]
    argv += ["--host", HOST, "--port", PORT]
    specs = [ProcessSpec("server", i, argv, {}, folder / f"server-{i}.log") for i in range(2)]
    place, ended = LocalPlace(), threading.Event()
    limits = ServerLimits(startup_s=LONGEST_S, unhealthy_s=UNHEALTHY_S)
    fleet = ServerFleet(place, specs, limits=limits, notify=messages.append)

    def watch() -> None:
        while not ended.wait(0.1):
            fleet.tick()

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        until(lambda: fleet.ready == 2)
        yield Launched(fleet, messages)
    finally:
        ended.set()
        watching.join()
        place.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONGEST_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not hold"
        time.sleep(0.05)


class Weights:
    """A policy of constant tensors."""

    def __init__(self, model: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)

    def named_full_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in self._model.named_parameters():
            yield name, parameter.detach()

    def named_own_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self.named_full_tensors()

    def buffers(self) -> dict[str, torch.Tensor]:
        return {}

    def save_model_config(self, directory: Path) -> None:
        self._model.config.save_pretrained(directory)


def freeze_during(
    monkeypatch: pytest.MonkeyPatch, server: Server, *, only: Callable[[int], bool] = lambda pid: True
) -> None:
    """Stop processes of ``server`` once, after the first bucket of the next broadcast."""
    send, sent = Broadcast.send, 0

    def stopping(self: Broadcast, bucket: Bucket) -> None:
        nonlocal sent
        sent += 1
        if sent == 2:
            process: Any = server.process
            kill_all([pid for pid in descendants(process.pid) if only(pid)], signal.SIGSTOP)
        send(self, bucket)

    monkeypatch.setattr(Broadcast, "send", stopping)


def is_scheduler(pid: int) -> bool:
    return b"scheduler" in Path(f"/proc/{pid}/cmdline").read_bytes()


def publisher_of(engine: RemoteSGLangEngine, model: Path, run: Path) -> Publisher:
    ranks = Ranks(0, 1, torch.device("cpu"))
    weights = Weights(model)
    return Publisher(
        weights, engine, mode="distributed", run=run, dtype=torch.float32, ranks=ranks, timeout_s=BROADCAST_S
    )


def versions(engine: RemoteSGLangEngine) -> set[int]:
    return {version for answer in generate(engine, n=4) for version in answer.output_versions}


@pytest.fixture
def engine(launched: Launched, model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RemoteSGLangEngine]:
    monkeypatch.setattr(broadcast, "BUCKET_BYTES", BUCKET_BYTES)
    limits = {"setup_timeout": LONGEST_S, "request_timeout": LONGEST_S, "broadcast_timeout": BROADCAST_S}
    weights = WeightUpdate(0, path=model)
    with engine_on(*launched.addresses(), weights=weights, timings=TIMINGS, **limits) as engine:
        until(lambda: all(server.ready for server in engine.servers()))
        yield engine


def test_the_run_goes_on_without_a_frozen_server_which_is_restarted_and_joins_the_next_group(
    launched: Launched, engine: RemoteSGLangEngine, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    frozen, other = launched.fleet.servers
    publisher = publisher_of(engine, model, tmp_path)
    with monkeypatch.context() as patch:
        freeze_during(patch, frozen)
        publisher.publish(1, wait=True)
    assert (tmp_path / "weights/v1").is_dir()  # after the failed broadcast
    assert versions(engine) == {1}
    assert not status_of(engine, str(frozen.address)).ready
    until(lambda: status_of(engine, str(frozen.address)).ready)
    assert any(message.startswith("server-0 died (its health checks failed") for message in launched.messages)
    assert (frozen.restarts, other.restarts) == (1, 0)
    publisher.publish(2, wait=True)
    assert [server.version for server in engine.servers()] == [2, 2]
    assert not (tmp_path / "weights/v2").exists()  # a broadcast to both
    assert versions(engine) == {2}
    publisher.close()


def test_a_server_whose_scheduler_hangs_is_told_to_exit(
    launched: Launched, engine: RemoteSGLangEngine, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hanging = launched.fleet.servers[1]
    publisher = publisher_of(engine, model, tmp_path)
    freeze_during(monkeypatch, hanging, only=is_scheduler)
    publisher.publish(1, wait=True)
    assert versions(engine) == {1}
    until(lambda: hanging.restarts == 1)
    assert any(message.startswith("server-1 died (exit status 75)") for message in launched.messages)
    publisher.close()
