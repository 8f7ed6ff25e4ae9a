"""The section ``rollout.agent``: agents and the session gateway that they call.

The pods of agents in Kubernetes are in ``agents``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from areal_api.section import Section


class AgentConfig(Section):
    """Agents: workflows that call the model by HTTP through the session gateway. Used if workflow.path is an agent."""

    mode: Literal["inline", "subproc", "online"] = Field(
        "inline",
        description="inline runs the agent at workflow.path on every row, in the trainer's process; subproc runs it in "
        "worker processes; online runs no agent and trains on sessions that external programs open and end.",
    )
    subproc_max_workers: int = Field(4, ge=1, le=1024, description="Most processes of mode subproc.")
    subproc_memory_gb: float = Field(
        4.0,
        ge=0.25,
        description="Most memory (data segment) of a process of mode subproc; beyond it an agent gets a MemoryError.",
        json_schema_extra={"unit": "GiB"},
    )
    python: str | None = Field(
        None,
        min_length=1,
        description="Python interpreter of mode subproc's processes, for agents whose libraries do not fit the "
        "trainer's environment; null is the trainer's.",
    )
    host: str = Field(
        "127.0.0.1", min_length=1, description="Address that the gateway listens on; 0.0.0.0 is every interface."
    )
    port: int = Field(0, ge=0, le=65535, description="Port that the gateway listens on; 0 is any free one.")
    tool_call_parser: str | None = Field(
        None,
        min_length=1,
        description="SGLang's parser of the model's tool calls, such as qwen25; null refuses requests with tools.",
    )
    reasoning_parser: str | None = Field(
        None,
        min_length=1,
        description="SGLang's parser of the model's reasoning, such as qwen3; null leaves it in the content.",
    )
    turn_discount: float = Field(
        1.0, ge=0, le=1, description="Factor on a later completion's reward in the reward of the one before it."
    )
    export_style: Literal["individual", "concat"] = Field(
        "individual",
        description="individual makes one sample of every completion; concat makes one of every conversation, and of "
        "every branch of it.",
    )
    session_timeout_seconds: float = Field(
        3600.0,
        gt=0,
        description="Longest time of a session; after it, the session is closed and its agent is cancelled.",
        json_schema_extra={"unit": "s"},
    )
    max_calls: int = Field(256, ge=1, description="Most model calls of a session.")
    max_concurrent_calls: int = Field(16, ge=1, description="Most model calls of a session at a time.")
    unsupported_sampling: Literal["refuse", "ignore"] = Field(
        "refuse",
        description="What to do with a request's parameters that would sample from another distribution than the one "
        "that is trained: answer with status 400, or sample as gconfig says.",
    )
    constrained_decoding: Literal["refuse", "untrained"] = Field(
        "refuse",
        description="What to do with a request for a response format or a forced tool call. The servers answer it by "
        "constrained decoding, which is not the distribution that is trained: answer with status 400, or leave its "
        "completion out of training.",
    )
    message_preprocessors: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field(
        default_factory=list,
        max_length=16,
        description="Import paths of classes that change the messages of requests to /v1/messages, in this order; they "
        "remove text that a command-line agent changes from call to call.",
    )
