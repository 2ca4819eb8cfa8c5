"""The one place that reads the wall clock. Services take `now` as an argument; only edges call this."""

from datetime import UTC, datetime


def now() -> datetime:
    """The current time, timezone-aware, in UTC."""
    return datetime.now(UTC)
