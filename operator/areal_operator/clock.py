"""Timestamps in Kubernetes' format: UTC, whole seconds."""

from __future__ import annotations

from datetime import UTC, datetime


def parse(text: str) -> datetime:
    """The time in a timestamp such as 2026-01-31T12:00:00Z; without a zone it is UTC."""
    time = datetime.fromisoformat(text)
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def show(time: datetime) -> str:
    """A time as a timestamp."""
    return time.astimezone(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z")


def seconds_since(text: str | None, now: datetime) -> float:
    """Seconds from a timestamp until now; 0 without a timestamp."""
    return (now - parse(text)).total_seconds() if text else 0.0


def not_after(text: str | None, now: datetime) -> str | None:
    """The timestamp, or ``now`` if it is later or unreadable: nothing may wait for the clock of another machine."""
    if text is None:
        return None
    try:
        return show(now) if parse(text) > now else text
    except ValueError:
        return show(now)
