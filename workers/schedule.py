"""What happens by the clock, on one screen. Every entry is a sweep: it looks for rows that are due and hints at them.

A sweep that runs twice, late or not at all loses nothing; `expires` keeps missed ones from piling up in Redis."""

from typing import Any

from kernel.queueing import app


def _every(seconds: float, task: str, queue: str = "default") -> dict[str, Any]:
    return {
        "task": task,
        "schedule": seconds,
        "options": {"expires": max(5.0, 2 * seconds), "queue": queue},
    }


app.conf.beat_schedule = {
    "seal the ledger": _every(1.0, "audit.seal"),
    "stitch calls, join signals, build episodes": _every(2.0, "telemetry.sweep"),
    "close idle runs": _every(30.0, "telemetry.close_idle"),
    "close attribution windows": _every(30.0, "telemetry.mature"),
    "draw closed runs for review": _every(30.0, "telemetry.draw_reviews"),
    "make the months to come, drop those whose retention is over": _every(3600.0, "telemetry.keep_periods"),
    "send training jobs and evaluations that are due": _every(5.0, "learning.sweep"),
    "let judges judge": _every(30.0, "learning.judge", queue="judges"),
    "move promotions on, load adapters": _every(1.0, "release.sweep"),
}
