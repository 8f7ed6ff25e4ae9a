"""The gateway's settings: where it listens, and with which key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from areal_api import names
from areal_api.config import GRPOConfig
from areal_trainer.rollout.make_workflow import gateway_settings
from support.chat_tokenizer import ChatTokenizer


def settings(mode: str) -> Any:
    config = GRPOConfig(
        experiment_name="e",
        actor={"path": "model"},
        train_dataset={"path": "data.jsonl", "batch_size": 8},
        rollout={"agent": {"mode": mode, "host": "127.0.0.2", "port": 7000}},
    )
    return gateway_settings(config, ChatTokenizer(), {})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mode", "address", "expected"),
    [
        ("online", None, ("127.0.0.2", 7000)),
        ("online", "10.0.0.7:8400", ("10.0.0.7", 8400)),
        ("online", "fd00::7:8400", ("fd00::7", 8400)),
        ("inline", "10.0.0.7:8400", ("127.0.0.2", 7000)),
    ],
)
def test_in_online_mode_the_place_decides_where_the_gateway_listens(
    monkeypatch: pytest.MonkeyPatch, mode: str, address: str | None, expected: tuple[str, int]
) -> None:
    monkeypatch.delenv(names.GATEWAY_ADDRESS, raising=False)
    if address is not None:
        monkeypatch.setenv(names.GATEWAY_ADDRESS, address)
    made = settings(mode)
    assert (made.host, made.port) == expected


def test_the_admin_key_is_that_of_the_file_or_a_random_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(names.GATEWAY_KEY_FILE, raising=False)
    assert settings("online").admin_key != settings("online").admin_key
    file = tmp_path / "key"
    file.write_text("sk-from-the-secret\n")
    monkeypatch.setenv(names.GATEWAY_KEY_FILE, str(file))
    assert settings("online").admin_key == "sk-from-the-secret"
