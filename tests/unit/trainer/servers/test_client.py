"""HTTP connections of the client."""

import pytest

from areal_trainer.servers.fleet import NoServerError
from support.engines import (
    engine_on,
    generate,
)
from support.scripted_server import Script, ScriptedServer


def test_connections_are_used_again():
    with ScriptedServer() as server, engine_on(server) as engine:
        for _ in range(20):
            generate(engine)
        assert server.connections <= 2  # probes may need a second one


def test_the_api_key_goes_with_every_request(tmp_path, monkeypatch):
    key_file = tmp_path / "key"
    key_file.write_text("secret\n")
    monkeypatch.setenv("AREAL_API_KEY_FILE", str(key_file))
    with ScriptedServer(Script(api_key="secret")) as server, engine_on(server) as engine:
        assert generate(engine)[0].output_versions[0] == 0


def test_a_wrong_api_key_is_named(tmp_path):
    with (
        ScriptedServer(Script(api_key="secret")) as server,
        pytest.raises(NoServerError, match="AREAL_API_KEY_FILE must contain"),
        engine_on(server, setup_timeout=1.0),
    ):
        pass
