"""Times as Kubernetes writes them: UTC, whole seconds."""

from __future__ import annotations

from datetime import UTC, datetime


def parse(text: str) -> datetime:
    """The time in a text such as 2026-01-31T12:00:00Z."""
    return datetime.fromisoformat(text)


def show(time: datetime) -> str:
    """The text of a time."""
    return time.astimezone(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z")


def seconds_since(text: str | None, now: datetime) -> float:
    """Seconds from a written time until now; 0 where none is written."""
    return (now - parse(text)).total_seconds() if text else 0.0
