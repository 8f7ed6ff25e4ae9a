"""The settings of the gateway's process."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from areal_api.agent_config import AgentConfig
from areal_api.generation import GenerationHyperparameters
from areal_trainer.gateway.settings import GatewaySettings, new_key


def settings_of(**changed: Any) -> GatewaySettings:
    sampling = GenerationHyperparameters()
    values = {"tokenizer": "model", "model": "org/model", "gconfig": sampling, "eval_gconfig": sampling}
    return GatewaySettings(**{**values, "agent": AgentConfig(), "admin_key": new_key(), **changed})


def test_the_process_gets_what_the_trainer_wrote() -> None:
    written = settings_of(chat_template_kwargs={"enable_thinking": False}, host="0.0.0.0", port=8400)
    assert GatewaySettings.model_validate_json(written.model_dump_json()) == written


def test_by_default_only_this_machine_connects() -> None:
    assert settings_of().host == "127.0.0.1"


@pytest.mark.parametrize("changed", [{"admin_key": "short"}, {"port": 65536}, {"port": -1}])
def test_a_weak_key_or_an_impossible_port_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(changed))):
        settings_of(**changed)


def test_keys_are_long_and_differ() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith("sk-") and len(key) >= 35 for key in keys)
