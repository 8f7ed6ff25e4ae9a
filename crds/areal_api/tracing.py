"""Traces of a run: spans of what it does, and profiles of chosen steps."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from areal_api.section import Section

MAX_PROFILES = 64  # chosen steps: a profile has tens of megabytes
TRACE_SUFFIX: Final = ".spans.jsonl"

Steps = list[Annotated[int, Field(ge=1)]]


class TracingConfig(Section):
    """Spans of episodes, requests, rewards, training stages and weight updates; profiles of chosen steps."""

    file: bool = Field(False, description="Write spans to traces/, for grpo trace.")
    file_max_bytes: int = Field(
        2**28,
        ge=2**20,
        description="Largest file of spans of a process; later spans are left out.",
        json_schema_extra={"unit": "bytes"},
    )
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        description="Send spans to this OpenTelemetry collector (OTLP over HTTP), for example "
        "http://collector:4318/v1/traces; null sends none. Headers are taken from OTEL_EXPORTER_OTLP_HEADERS.",
    )
    profile_steps: Steps = Field(
        default_factory=list,
        max_length=MAX_PROFILES,
        description="Training steps that torch's profiler records, without their rollout, into profiles/.",
    )
    memory_steps: Steps = Field(
        default_factory=list,
        max_length=MAX_PROFILES,
        description="Training steps whose allocations of GPU memory are recorded into profiles/; needs "
        "trainer.device: cuda.",
    )
