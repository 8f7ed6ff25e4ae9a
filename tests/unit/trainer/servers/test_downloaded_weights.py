"""An update of servers that do not see the run directory: they download the version from the trainer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from areal_api import names
from areal_trainer.weights.disk import WeightUpdate
from areal_trainer.weights.file_server import FileServer
from support.engines import engine_on, eventually, publish_ones, state_of
from support.scripted_server import Fault, Script, ScriptedServer


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A version that is served."""
    path = publish_ones(tmp_path)
    with FileServer(path.parent, port=0, api_key=None) as server:
        monkeypatch.setenv(names.WEIGHTS_URL, f"http://127.0.0.1:{server.port}")
        yield path


def test_a_server_loads_what_it_has_downloaded(published: Path, tmp_path: Path) -> None:
    folder = tmp_path / "server"
    with ScriptedServer(Script(downloads_to=str(folder))) as server, engine_on(server) as engine:
        engine.update_weights(WeightUpdate(1, published))
        assert state_of(engine, server) == "current"
        assert server.weight_version == "v1"
        loaded = Path(server.model_path)
        assert loaded == folder / published.name
        assert (loaded / "model.safetensors").read_bytes() == (published / "model.safetensors").read_bytes()


def test_a_restarted_server_downloads_again(published: Path, tmp_path: Path) -> None:
    with ScriptedServer(Script(downloads_to=str(tmp_path / "server"))) as server, engine_on(server) as engine:
        engine.update_weights(WeightUpdate(1, published))
        server.restart()
        eventually(lambda: server.weight_version == "v1" and state_of(engine, server) == "current")


def test_a_server_downloads_what_changed_since_the_version_that_it_holds(published: Path, tmp_path: Path) -> None:
    folder, name = tmp_path / "server", "model.safetensors"
    with ScriptedServer(Script(downloads_to=str(folder))) as server, engine_on(server) as engine:
        engine.update_weights(WeightUpdate(0, published))
        path = publish_ones(tmp_path, version=1, deltas=True)
        whole = (path / name).rename(tmp_path / "whole")  # only the delta can be downloaded
        engine.update_weights(WeightUpdate(1, path))
        assert server.weight_version == "v1"
        assert (Path(server.model_path) / name).read_bytes() == whole.read_bytes()


def test_a_failed_download_pauses_nothing_and_is_repeated(published: Path, tmp_path: Path) -> None:
    with ScriptedServer(Script(downloads_to=str(tmp_path / "server"))) as server, engine_on(server) as engine:
        server.add_faults(Fault("status", names.SERVER_WEIGHTS_PATH, status=503, times=1))
        engine.update_weights(WeightUpdate(1, published))
        assert state_of(engine, server) == "current"
        assert server.counts["/pause_generation"] == 1
        assert server.counts[names.SERVER_WEIGHTS_PATH] == 2
