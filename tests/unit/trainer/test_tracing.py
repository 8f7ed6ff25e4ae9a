"""Spans of a trainer process."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from areal_api.tracing import TracingConfig
from areal_trainer import tracing as module
from areal_trainer.tracing import span, tracing


def record(run: Path, **settings: Any) -> list[dict[str, Any]]:
    """The lines of two concurrent episodes and a training step."""

    async def episode(number: int) -> None:
        with span("episode", number=number):
            with span("generate", tokens=3):
                await asyncio.sleep(0.01)
            with span("reward"):
                await asyncio.sleep(0)

    async def episodes() -> None:
        await asyncio.gather(episode(1), episode(2))

    with tracing(TracingConfig(**settings), run=run, rank=0, resource={"areal.trial": "t"}):
        with span("step", step=1, thread="training"):
            asyncio.run(episodes())
        with pytest.raises(KeyError), span("reward"):
            raise KeyError("no such thing")
    return [json.loads(line) for path in (run / "traces").glob("*") for line in path.read_text().splitlines()]


def test_spans_know_what_they_are_part_of(tmp_path: Path) -> None:
    spans = record(tmp_path, file=True)
    by_id = {one["id"]: one for one in spans}
    [step] = [one for one in spans if one["name"] == "step"]
    episodes = [one for one in spans if one["name"] == "episode"]
    assert sorted(one["attributes"]["number"] for one in episodes) == [1, 2]
    assert {by_id[one["parent"]]["name"] for one in spans if one["name"] == "generate"} == {"episode"}
    assert step["parent"] is None
    assert all(step["start"] <= one["start"] <= one["end"] <= step["end"] for one in episodes)
    assert [one["error"] for one in spans if one["error"]] == ["KeyError: 'no such thing'"]


def test_without_a_configuration_nothing_is_recorded(tmp_path: Path) -> None:
    assert record(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_bounded_and_a_full_disk_does_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from areal_trainer.span_file import FileExporter

    with tracing(TracingConfig(file=True), run=tmp_path, rank=0, resource={}), span("one"):
        pass
    [path] = (tmp_path / "traces").iterdir()
    exporter = FileExporter(tmp_path / "small", max_bytes=1)
    (tmp_path / "blocked").write_text("")
    blocked = FileExporter(tmp_path / "blocked" / "spans", max_bytes=10**6)
    provider_spans: list[Any] = []
    monkeypatch.setattr(FileExporter, "export", lambda self, spans: provider_spans.extend(spans))
    with tracing(TracingConfig(file=True), run=tmp_path, rank=0, resource={}), span("two"):
        pass
    monkeypatch.undo()
    for one in (exporter, blocked):
        for _ in range(2):
            one.export(provider_spans)
    assert not (tmp_path / "small").exists()
    assert [record.message.partition(" ")[0] for record in caplog.records] == [str(tmp_path / "small"), "spans"]
    assert "later spans are left out" in caplog.text
    assert "spans cannot be written" in caplog.text
    assert path.exists()


def test_a_collector_receives_the_spans(tmp_path: Path) -> None:
    received: list[ExportTraceServiceRequest] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            import gzip

            body = self.rfile.read(int(self.headers["Content-Length"]))
            body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        record(tmp_path, otlp_endpoint=f"http://127.0.0.1:{server.server_port}/v1/traces")
        server.shutdown()
    [resource] = [one for request in received for one in request.resource_spans]
    described = {one.key: one.value.string_value for one in resource.resource.attributes}
    assert (described["service.name"], described["areal.trial"]) == ("areal-trainer", "t")
    names = [one.name for scope in resource.scope_spans for one in scope.spans]
    assert sorted(names) == ["episode", "episode", "generate", "generate", "reward", "reward", "reward", "step"]


def test_the_tracer_is_inactive_after_the_run(tmp_path: Path) -> None:
    before = module._active
    record(tmp_path, file=True)
    assert module._active is before
