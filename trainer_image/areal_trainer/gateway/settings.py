"""What the trainer passes to the gateway's process."""

from __future__ import annotations

import secrets
from typing import Any

from pydantic import Field

from areal_api.agent_config import AgentConfig
from areal_api.generation import GenerationHyperparameters
from areal_api.section import Section


class GatewaySettings(Section):
    """The gateway's settings; both sampling sections include the tokenizer's stop tokens."""

    tokenizer: str = Field(description="Path or hub name of the tokenizer.")
    model: str = Field(description="Name that /v1/models shows; requests may also use 'default'.")
    gconfig: GenerationHyperparameters = Field(description="Sampling of training sessions.")
    eval_gconfig: GenerationHyperparameters = Field(description="Sampling of evaluation sessions.")
    agent: AgentConfig = Field(description="rollout.agent.")
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, description="Arguments of the chat template.")
    admin_key: str = Field(min_length=16, description="Key that opens sessions.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(0, ge=0, le=65535, description="Port to listen on; 0 for any free one.")


def new_key() -> str:
    """A random key."""
    return f"sk-{secrets.token_urlsafe(24)}"
