"""Spans of what a trainer process does, by OpenTelemetry: into a file for ``grpo trace``, and to a collector.

``span`` costs about a microsecond until ``tracing`` is entered with a configuration that records spans.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from opentelemetry.trace import NoOpTracer, Span, Tracer

from areal_api import names
from areal_api.tracing import TRACE_SUFFIX, TracingConfig

Value = str | int | float | bool

_active: Tracer = NoOpTracer()


def span(name: str, **attributes: Value) -> AbstractContextManager[Span]:
    """A span around a block, below the span that is open in this task or thread."""
    return _active.start_as_current_span(name, attributes=attributes)


@contextmanager
def tracing(config: TracingConfig, *, run: Path, rank: int, resource: Mapping[str, Value]) -> Iterator[None]:
    """Record the spans of this process while the context is entered, if ``config`` says so.

    ``resource`` describes the run. Spans are exported from a thread; those that it cannot keep up with are dropped.
    """
    global _active
    if not config.file and config.otlp_endpoint is None:
        yield
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from areal_trainer.span_file import FileExporter

    described = {"service.name": "areal-trainer", "areal.rank": rank, **resource}
    provider = TracerProvider(resource=Resource.create(described), shutdown_on_exit=False)
    if config.file:
        path = names.traces_dir(run) / f"rank{rank}-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}{TRACE_SUFFIX}"
        provider.add_span_processor(BatchSpanProcessor(FileExporter(path, max_bytes=config.file_max_bytes)))
    if config.otlp_endpoint is not None:
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=config.otlp_endpoint)))
    previous, _active = _active, provider.get_tracer("areal_trainer")
    try:
        yield
    finally:
        _active = previous
        provider.shutdown()
