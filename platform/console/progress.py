"""How far a job is, in a sentence and a percentage, from the latest progress line its process wrote. Pure
but for the curve,
which reads the job's progress file from the object store when it is there."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings

from console.drawing import Curve, curve
from learning.models import JOB_OPEN, JobState, LeasedJob, TrainingJob
from learning.training import location

SHOWN = ("reward", "success", "risk", "loss", "model_calls", "grad_norm")
"""Figures of a progress line worth a place on the page, in this order."""


@dataclass(frozen=True)
class JobProgress:
    """What a person wants to know about a job at a glance."""

    percent: float
    sentence: str
    is_open: bool
    metrics: tuple[tuple[str, str], ...] = ()


def progress_of(job: LeasedJob) -> JobProgress:
    """Read the job's state and latest progress line; lines of unknown shape count as no news."""
    line: dict[str, Any] = job.progress if isinstance(job.progress, dict) else {}
    done, total = _count(line, "step", "done"), _count(line, "steps", "total")
    metrics = tuple(
        (name.replace("_", " "), f"{line[name]:.3f}") for name in SHOWN if _is_number(line.get(name))
    )
    if job.state == JobState.SUCCEEDED:
        return JobProgress(100, "done", False, metrics)
    if job.state not in JOB_OPEN:
        return JobProgress(100 * done / total if total else 0, job.state, False, metrics)
    if job.state == JobState.QUEUED:
        return JobProgress(0, "waiting for a worker", True)
    if not total:
        return JobProgress(0, "starting", True)
    rest = f", {_duration(line['time_left_s'])} left" if _is_number(line.get("time_left_s")) else ""
    return JobProgress(100 * min(done, total) / total, f"{done} of {total}{rest}", True, metrics)


def reward_curve(job: TrainingJob) -> Curve | None:
    """The reward at each step so far; None when the job has written fewer than two steps, or none that is
    here to read."""
    points = []
    for line in _lines(settings.OBJECT_STORE.path(f"{location(job.pk, job.lease_epoch)}/progress.jsonl")):
        if _is_number(line.get("step")) and _is_number(line.get("reward")):
            points.append((int(line["step"]), float(line["reward"])))
    steps = job.progress.get("steps", 0) if isinstance(job.progress, dict) else 0
    return curve(points, steps if isinstance(steps, int) else 0)


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return []
    lines = []
    for raw in text.splitlines():
        try:
            line = json.loads(raw)
        except ValueError:  # the last line may be half written
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def _count(line: dict[str, Any], *names: str) -> int:
    return next((int(line[name]) for name in names if _is_number(line.get(name))), 0)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
